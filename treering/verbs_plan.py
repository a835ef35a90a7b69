"""What `treering plan` does: laws from pilots, and what they recommend. Never imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from treering.analysis.laws import KINDS, pilots
from treering.analysis.laws.answers import Budget, answer
from treering.analysis.laws.bootstrap import Resampled, bootstrap
from treering.analysis.laws.fitting import fit as fitted
from treering.analysis.laws.form import Array, Form
from treering.analysis.laws.holdout import Judged, Mask, choose, judge, splits
from treering.analysis.laws.points import SPARE
from treering.atomic import replacing
from treering.config import Invalid
from treering.report import law as law_figure
from treering.report import planning
from treering.report.planning import Planned
from treering.schema import near
from treering.verbs_pilots import recommend, template

LAWS = ("dcpt", "dcpt-l1", "dcpt-l5", "replay")  # of N, D and share
REPLAYS = np.unique(np.concatenate([[0], np.geomspace(0.001, 0.1, 61), np.linspace(0.1, 0.9, 81)]))


def fit(options: argparse.Namespace) -> int:
    """Fits the law, prints it, its errors on what was held out beside a competitor's, and where
    it is at a bound."""
    figure = None if options.figure is None else Path(options.figure)
    if figure is not None:
        law_figure.form_of(figure)
    form, new = _form(options.law), options.new is not None
    corpus = options.new if new else options.old
    points = pilots.losses(pilots.table(options.pilots), corpus, new=new)
    laws = _resampled(form, points, options.resamples)
    other = KINDS["dcpt-l1" if options.law != "dcpt-l1" else "dcpt-l5"]
    held = _splits(max(form, other, key=lambda each: len(each.names)), points)
    judged = choose([form, other], points, held) if held else [Judged(laws.fit, {})]
    console, law = Console(), laws.fit
    n, runs = len(points["loss"]), laws.runs
    console.print(f"{form.name}, loss of {corpus}: {form.source}")
    console.print(f"{n} points, {runs} runs; N = {_range(points['N'])} parameters that multiply, "
                  f"D = {_range(points['D'])} tokens, share {_range(points['share'])}")  # fmt: skip
    _parameters(laws, console)
    quality = law.quality
    console.print(f"residuals: {quality['rms']:.2%} rms, {quality['worst']:.4f} nats at worst")
    if law.at_bounds:
        console.print(f"at their bounds, so not identified: {', '.join(law.at_bounds)}")
    _held_out(judged, console)
    if figure is not None:
        law_figure.draw(laws, points, figure, corpus)
        print(figure)
    return 0


def ask(options: argparse.Namespace) -> int:
    """Prints the size and the replay share for a budget that keep old corpora within their limits,
    with intervals, and how far that is beyond the pilots."""
    table = pilots.table(options.pilots)
    if not 0 < options.budget < np.inf:
        raise Invalid(f"--budget {options.budget}: must be positive FLOPs, such as 1e20")
    if (options.recipe is None) != (options.out is None):
        raise Invalid("--recipe and --out: give both, to write the recommended recipe, or neither")
    begin = None if options.recipe is None else template(options)
    corpus, tolerance = _kept(options.keep)
    before = options.before if options.before else pilots.before(options.pilots, corpus)
    if before is None:
        raise Invalid(f"--keep {options.keep}: the loss before is not known; give --before NATS")
    limit = before * (1 + tolerance)
    form = _form(options.law)
    old_points = pilots.losses(table, corpus, new=False)
    new_points = pilots.losses(table, options.learn, new=True)
    old, new = (_resampled(form, p, options.resamples) for p in (old_points, new_points))
    known = table["N"]
    sizes = (
        np.array([options.size])
        if options.size
        else np.geomspace(known.min(), known.max() * 100, 61)
    )
    choices = Budget(options.budget, sizes, REPLAYS)
    answers = [answer(lambda a, b, i=i: choices.best(a, b, limit)[i], new, old) for i in range(3)]
    if np.isnan(answers[0].value):
        raise Invalid(f"--keep {options.keep}: no size and share hold {corpus} within {limit:.4f} "
                      f"nats at {options.budget:g} FLOPs; allow more, or spend more")  # fmt: skip
    size, replay, learned = answers
    asked = {corpus: (form, old_points), options.learn: (form, new_points)} if options.page else {}
    held = {name: judge(*pair, _splits(*pair)) for name, pair in asked.items()}
    found = Planned(corpus, options.learn, limit, choices, size, replay, learned, old, new, held)
    _show(found)
    if options.page is not None:
        with replacing(Path(options.page)) as beside:
            beside.write_text(planning.page(found), encoding="utf-8")
        print(options.page)
    if begin is not None:
        recommend(begin, Path(options.out), size.value, found.tokens, replay.value)
    return 0


def _show(found: Planned) -> None:
    """The answer in words and as a table."""
    console, table = Console(), RichTable("", "best", "95% interval")
    for row in planning.rows(found):
        table.add_row(*row)
    console.print(planning.sentence(found))
    console.print(table)
    for text in planning.warnings(found):
        console.print(text)


def _form(name: str) -> Form:
    if name not in LAWS:
        raise Invalid(f"--law {name}: no law of N, D and share{near(name, list(LAWS))}")
    return KINDS[name]


def _splits(form: Form, points: Mapping[str, Array]) -> dict[str, Mask]:
    """What may be held out so that enough is left to fit."""
    least = len(form.names) + SPARE
    return {name: mask for name, mask in splits(points).items() if (~mask).sum() >= least}


def _kept(text: str) -> tuple[str, float]:
    """CORPUS=PERCENT% or CORPUS=SHARE."""
    corpus, equals, amount = text.partition("=")
    try:
        tolerance = float(amount.removesuffix("%")) / (100 if amount.endswith("%") else 1)
    except ValueError:
        equals = ""
        tolerance = 0.0
    if not equals or not 0 <= tolerance < 10:
        raise Invalid(f"--keep {text}: give CORPUS=1%, how much its loss may rise")
    return corpus, tolerance


def _resampled(form: Form, points: Mapping[str, Array], resamples: int) -> Resampled:
    if resamples < 100:
        raise Invalid(f"--resamples {resamples}: at least 100, or an interval says nothing")
    by = "run" if "run" in points and len(np.unique(points["run"])) > 2 else None
    return bootstrap(fitted(form, points), resamples, by=by)


def _parameters(laws: Resampled, console: Console) -> None:
    table = RichTable("parameter", "value", "95% interval")
    for name, (low, high) in laws.spread().items():
        table.add_row(name, f"{laws.fit.values[name]:.4g}", f"{low:.4g} to {high:.4g}")
    console.print(table)
    middle = ", ".join(f"{name} / {value:.4g}" for name, value in laws.fit.units.items())
    console.print(f"in units of the pilots' middle: {middle}")


def _held_out(judged: list[Judged], console: Console) -> None:
    if not judged[0].held:
        console.print("nothing could be held out: more sizes, tokens or shares are needed to judge")
        return
    table = RichTable("error on what was held out", *judged[0].held)
    for found in judged:
        table.add_row(found.fit.form.name, *(f"{error:.2%}" for error in found.held.values()))
    console.print(table)


def _range(values: Array) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"
