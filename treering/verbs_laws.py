"""Laws of pilots, as `treering plan` fits and judges them. Imports scipy, never torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table as RichTable

from treering.analysis.laws import KINDS
from treering.analysis.laws.bootstrap import Resampled, bootstrap
from treering.analysis.laws.fitting import Search
from treering.analysis.laws.fitting import fit as fitted
from treering.analysis.laws.form import Array, Form
from treering.analysis.laws.holdout import Judged, Mask, choose, splits
from treering.analysis.laws.points import SPARE
from treering.config import Invalid
from treering.schema import near

LAWS = ("dcpt", "dcpt-l1", "dcpt-l5", "replay")  # of N, D and share


def form_of(name: str) -> Form:
    """A law of `--law`. Raises Invalid where there is none of that name."""
    if name not in LAWS:
        raise Invalid(f"--law {name}: no law of N, D and share{near(name, list(LAWS))}")
    return KINDS[name]


def resampled(form: Form, points: Mapping[str, Array], resamples: int) -> Resampled:
    """The law fitted to points, and to so many resamples of their runs."""
    if resamples < 100:
        raise Invalid(f"--resamples {resamples}: at least 100, or an interval says nothing")
    return bootstrap(fitted(form, points), resamples, by="run")


def judged(laws: Resampled, points: Mapping[str, Array]) -> list[Judged]:
    """The law and a competitor by what was held out, the better one first; where nothing can be,
    the law alone."""
    form = laws.fit.form
    other = KINDS["dcpt-l1" if form is not KINDS["dcpt-l1"] else "dcpt-l5"]
    held = _splits(max(form, other, key=lambda each: len(each.names)), points)
    quick = Search(starts=3)
    return choose([form, other], points, held, search=quick) if held else [Judged(laws.fit, {})]


def _splits(form: Form, points: Mapping[str, Array]) -> dict[str, Mask]:
    """What may be held out so that enough is left to fit."""
    least = len(form.names) + SPARE
    return {name: mask for name, mask in splits(points).items() if (~mask).sum() >= least}


def show_held_out(judged: Sequence[Judged], console: Console, of: str) -> None:
    """The errors of laws of a corpus's loss on what they were not fitted to."""
    if not judged[0].held:
        console.print(
            f"{of}: nothing could be held out: more sizes, tokens or shares are needed to judge"
        )
        return
    console.print(f"{of}: error on what was held out")
    table = RichTable("law", *judged[0].held)
    for found in judged:
        table.add_row(found.fit.form.name, *(f"{error:.2%}" for error in found.held.values()))
    console.print(table)
