"""Laws of pilots, as `treering plan` fits, judges and chooses them. Imports scipy, never torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable

from treering.analysis.laws import KINDS
from treering.analysis.laws.bootstrap import Resampled, bootstrap
from treering.analysis.laws.fitting import Search
from treering.analysis.laws.fitting import fit as fitted
from treering.analysis.laws.form import Array, Form
from treering.analysis.laws.holdout import Judged, choose, splits
from treering.analysis.laws.points import check, select
from treering.config import Invalid
from treering.schema import near

NEW = ("dcpt", "dcpt-l1", "dcpt-l5")  # of N, D and share; the first where none can be judged
OLD = (*NEW, "replay", "forgetting")  # the loss of an old corpus may rise with D


def named(given: Sequence[str], corpora: Sequence[str]) -> dict[str, Form]:
    """The laws of `--law`, by corpus; none of those that are to be chosen. Raises Invalid where
    there is no such law or corpus."""
    found: dict[str, Form] = {}
    for text in sorted(given, key=lambda text: "=" in text):
        corpus, _, name = text.rpartition("=")
        if corpus and corpus not in corpora:
            raise Invalid(f"--law {text}: asked is about {', '.join(corpora)}")
        if name not in OLD:
            raise Invalid(f"--law {text}: no law of N, D and share{near(name, list(OLD))}")
        found |= dict.fromkeys([corpus] if corpus else corpora, KINDS[name])
    return found


def law_of(
    points: Mapping[str, Array], given: Form | None, resamples: int, *, new: bool
) -> tuple[Resampled, list[Judged]]:
    """A corpus's law, fitted to points and to resamples of their runs, and what it was judged
    beside: the law that is given, else that which is nearest to what was held out."""
    if resamples < 100:
        raise Invalid(f"--resamples {resamples}: at least 100, or an interval says nothing")
    among = [KINDS[name] for name in (NEW if new else OLD)]
    forms = among if given is None or given in among else [given, *among]
    with Console(stderr=True).status(f"judging {len(forms)} laws on what is held out") as shown:
        tried = judged(points, forms)
        form = given or (tried[0].fit.form if tried else among[0])
        shown.update(f"fitting {form.name} to {resamples:,} resamples")
        return bootstrap(fitted(form, points), resamples, by="run"), tried


def judged(points: Mapping[str, Array], forms: Sequence[Form]) -> list[Judged]:
    """Laws by their error on what was held out, the best first: all forms that can be fitted to
    what is left of some split; none where nothing can be held out."""
    for most in sorted({len(form.names) for form in forms}, reverse=True):
        left = [form for form in forms if len(form.names) <= most]
        held = {
            name: mask for name, mask in splits(points).items()
            if all(_suffices(select(points, ~mask), form) for form in left)
        }  # fmt: skip
        if held:
            return choose(left, points, held, search=Search(starts=3))
    return []


def _suffices(points: Mapping[str, Array], form: Form) -> bool:
    try:
        check(form, points, "loss", forced=False)
    except Invalid:
        return False
    return True


def show_held_out(judged: Sequence[Judged], console: Console, of: str) -> None:
    """The errors of laws of a corpus's loss on what they were not fitted to."""
    if not judged:
        console.print(
            f"{of}: nothing could be held out: more sizes, tokens or shares are needed to judge"
        )
        return
    console.print(f"{of}: error on what was held out, the best law first")
    table = RichTable("law", *judged[0].held, "mean")
    for found in judged:
        errors = (*found.held.values(), found.error)
        table.add_row(found.fit.form.name, *(f"{error:.2%}" for error in errors))
    console.print(table)
