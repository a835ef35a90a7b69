"""What `treering plan` does: laws from pilots, and what they recommend. Never imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from treering.analysis.laws import before, doubts, pilots
from treering.analysis.laws.answers import Budget, Within, answer
from treering.analysis.laws.before import Before
from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.form import Array
from treering.analysis.laws.holdout import Judged
from treering.analysis.laws.manner import manner
from treering.analysis.laws.pilots import Run
from treering.atomic import replacing
from treering.config import Invalid
from treering.report import law as law_figure
from treering.report import planning
from treering.report.planning import Kept, Planned
from treering.verbs_laws import law_of, named, show_held_out
from treering.verbs_pilots import recommend, template

REPLAYS = np.unique(np.concatenate([[0], np.geomspace(0.001, 0.1, 61), np.linspace(0.1, 0.9, 81)]))


def fit(options: argparse.Namespace) -> int:
    """Fits the law, or that which is nearest to what was held out; prints it, its errors beside
    those of the others, and where it is at a bound."""
    figure = None if options.figure is None else Path(options.figure)
    if figure is not None:
        law_figure.form_of(figure)
    new = options.new is not None
    corpus = options.new if new else options.old
    given = named(options.law, [corpus]).get(corpus)
    trained = pilots.runs(options.pilots)
    manner(trained)
    table = pilots.table(options.pilots, trained)
    points = pilots.losses(table, corpus, new=new)
    laws, tried = law_of(points, given, options.resamples, new=new)
    console, law = Console(), laws.fit
    for text in (
        *doubts.of_runs(trained),
        *doubts.of_points(table, points),
        *doubts.of_losses(points, corpus, new=new),
    ):
        console.print(text)
    n, runs = len(points["loss"]), laws.runs
    console.print(f"{law.form.name}, loss of {corpus}: {law.form.source}")
    console.print(f"{n} points, {runs} runs; N = {_range(points['N'])} parameters that multiply, "
                  f"D = {_range(points['D'])} tokens, share {_range(points['share'])}")  # fmt: skip
    _parameters(laws, console)
    quality = law.quality
    console.print(f"residuals: {quality['rms']:.2%} rms, {quality['worst']:.4f} nats at worst")
    if law.at_bounds:
        console.print(f"at their bounds, so not identified: {', '.join(law.at_bounds)}")
    show_held_out(tried, console, corpus)
    if figure is not None:
        law_figure.draw(laws, points, figure, corpus)
        print(figure)
    if options.points is not None:
        pilots.write(table, Path(options.points))
        print(options.points)
    return 0


def ask(options: argparse.Namespace) -> int:
    """Prints the size and the replay share for a budget that keep old corpora within their limits,
    with intervals, and how far that is beyond the pilots."""
    if not 0 < options.budget < np.inf:
        raise Invalid(f"--budget {options.budget}: must be positive FLOPs, such as 1e20")
    if options.size is not None and not 0 < options.size < np.inf:
        raise Invalid(f"--size {options.size:g}: must be positive")
    if (options.recipe is None) != (options.out is None):
        raise Invalid("--recipe and --out: give both, to write the recommended recipe, or neither")
    trained = pilots.runs(options.pilots)
    like = manner(trained)
    begin = None if options.recipe is None else template(options, like)
    wanted = _kept(options, trained)
    found = _planned(options, wanted, trained)
    _show(found)
    if options.page is not None:
        with replacing(Path(options.page)) as beside:
            beside.write_text(planning.page(found), encoding="utf-8")
        print(options.page)
    if begin is not None:
        recommend(begin, options, (found.size.value, found.tokens, found.replay.value))
    return 0


def _planned(
    options: argparse.Namespace,
    wanted: Mapping[str, tuple[float, Before]],
    trained: Sequence[tuple[int, Run]],
) -> Planned:
    """What is best. Raises Invalid where nothing keeps what is wanted."""
    given = named(options.law, [*wanted, options.learn])
    table = pilots.table(options.pilots, trained)
    of = {corpus: pilots.losses(table, corpus, new=False) for corpus in wanted}
    of[options.learn] = pilots.losses(table, options.learn, new=True)
    laws, held = dict[str, Resampled](), dict[str, list[Judged]]()
    for name, points in of.items():
        new = name == options.learn
        laws[name], held[name] = law_of(points, given.get(name), options.resamples, new=new)
    kept = [Kept(name, laws[name], known, factor) for name, (factor, known) in wanted.items()]
    many = np.geomspace(table["N"].min(), table["N"].max() * 100, 61)
    sizes = np.array([options.size]) if options.size else many
    choices, learn = Budget(options.budget, sizes, REPLAYS), laws[options.learn]
    limits = [each.limit(choices.table()[0]) for each in kept]
    size, replay, learned = (
        answer(lambda a, *old, i=i: choices.best(a, Within(old, limits), 1.0)[i], learn,
               *(each.law for each in kept))
        for i in range(3)
    )  # fmt: skip
    if np.isnan(size.value):
        raise Invalid(f"--keep {' '.join(options.keep)}: no size and share hold that at "
                      f"{options.budget:g} FLOPs; allow more, or spend more")  # fmt: skip
    told = [*doubts.of_runs(trained), *doubts.of_points(table, of[options.learn])]
    for name, points in of.items():
        told += doubts.of_losses(points, name, new=name == options.learn)
    if options.before and not options.size:
        told.append("--before is taken for the loss before at every N; give --size N with that "
                    "model's own")  # fmt: skip
    return Planned(kept, options.learn, choices, size, replay, learned, learn, held, told)


def _show(found: Planned) -> None:
    """The answer in words and as a table."""
    console, table = Console(), RichTable("", "best", "95% interval")
    for row in planning.rows(found):
        table.add_row(*row)
    console.print(planning.sentence(found))
    console.print(table)
    for name, tried in found.held.items():
        show_held_out(tried, console, name)
    for text in planning.warnings(found):
        console.print(text)


def _kept(
    options: argparse.Namespace, trained: Sequence[tuple[int, Run]]
) -> dict[str, tuple[float, Before]]:
    """How many times its loss before each corpus of --keep may have, and that loss."""
    told, found = _told(options), dict[str, tuple[float, Before]]()
    for text in options.keep:
        corpus, tolerance = _tolerance(text)
        if corpus in found or corpus == options.learn:
            raise Invalid(f"--keep {text}: {corpus} is named twice; name it once")
        nats = told.get(corpus)
        loss = before.known(trained, corpus) if nats is None else before.given(nats)
        if loss is None:
            more = f"{corpus}=NATS" if len(options.keep) > 1 else "NATS"
            raise Invalid(f"--keep {text}: the loss before is not known; give --before {more}")
        found[corpus] = 1 + tolerance, loss
    return found


def _told(options: argparse.Namespace) -> dict[str, float]:
    """Losses of --before by corpus; of one corpus alone it needs no name."""
    corpora, found = [text.partition("=")[0] for text in options.keep], {}
    for text in options.before or ():
        name, _, amount = text.rpartition("=")
        corpus = name or corpora[0]
        try:
            found[corpus] = float(amount)
        except ValueError:
            found[corpus] = 0.0
        good = corpus in corpora and (name or len(corpora) == 1)
        if not good or not 0 < found[corpus] < np.inf:
            which = "NATS" if len(corpora) == 1 else f"CORPUS=NATS for each of {', '.join(corpora)}"
            raise Invalid(f"--before {text}: give {which}, a positive loss")
    return found


def _tolerance(text: str) -> tuple[str, float]:
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


def _parameters(laws: Resampled, console: Console) -> None:
    table = RichTable("parameter", "value", "95% interval")
    for name, (low, high) in laws.spread().items():
        table.add_row(name, f"{laws.fit.values[name]:.4g}", f"{low:.4g} to {high:.4g}")
    console.print(table)
    middle = ", ".join(f"{name} / {value:.4g}" for name, value in laws.fit.units.items())
    console.print(f"in units of the pilots' middle: {middle}")


def _range(values: Array) -> str:
    return f"{values.min():.3g} to {values.max():.3g}"
