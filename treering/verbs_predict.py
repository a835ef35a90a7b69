"""What `treering plan predict` does: the losses of a recipe before it is trained, by laws of
pilots. Never imports torch."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table as RichTable

from treering import config, piloting
from treering.analysis.laws import doubts, pilots
from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.form import Array
from treering.analysis.laws.manner import Manner, manner
from treering.atomic import replacing
from treering.config import Invalid, Recipe
from treering.shapes import shape
from treering.verbs_laws import law_of, named, show_held_out
from treering.verbs_pilots import free, shares_of, vocabulary, warn_of_memory

FIELDS = ("corpus", "law", "N", "D", "replay", "loss", "low", "high", "run_low", "run_high")
Row = dict[str, str | float]


def predict(options: argparse.Namespace) -> int:
    """Prints the loss of each corpus that its law expects at the recipe's size and tokens, by
    replay share, with 95% intervals of the law and of a run; writes them to `--out` as CSV."""
    if not options.old and not options.new:
        raise Invalid("--old and --new: name a corpus at least")
    if options.out is not None:
        free(Path(options.out))
    wanted = dict.fromkeys(options.old, False) | dict.fromkeys(options.new, True)
    given = named(options.law, list(wanted))
    recipe = config.load(options.recipe, data=options.data)
    shares = shares_of(options.shares, (float(recipe.replay.share),))
    if not all(0 <= share < 1 for share in shares):
        raise Invalid(f"--shares {options.shares}: shares of training, from 0 to below 1")
    if options.size is not None and not 0 < options.size < np.inf:
        raise Invalid(f"--size {options.size:g}: must be positive")
    size = options.size or _size(recipe)
    trained = pilots.runs(options.pilots)
    table, like = pilots.table(options.pilots, trained), manner(trained)
    console, rows, replay = Console(), list[Row](), np.array(shares)
    annealed = like is None or like.part > 0
    tokens = np.array([piloting.tokens(recipe, share, annealed=annealed) for share in shares])
    told = [*doubts.of_runs(trained), *_unlike(recipe, like)]
    for corpus, new in wanted.items():
        points = pilots.losses(table, corpus, new=new)
        told += [*doubts.of_points(table, points), *doubts.of_losses(points, corpus, new=new)]
        laws, tried = law_of(points, given.get(corpus), options.resamples, new=new)
        show_held_out(tried, console, corpus)
        at = {"N": np.full(len(shares), size), "D": tokens, "share": 1 - replay if new else replay}
        rows += _rows(corpus, laws, at, replay)
        told += doubts.of_law(corpus, laws, at, tried)
    shown = RichTable("loss of", "N", "D", "replay", "expected", "95% of the law", "95% of a run")
    for row in rows:
        shown.add_row(*_cells(row))
    console.print(shown)
    for text in dict.fromkeys(told):
        console.print(text)
    warn_of_memory(recipe)
    if options.out is not None:
        _write(Path(options.out), rows)
    return 0


def _size(recipe: Recipe) -> int:
    if recipe.model.from_ is not None:
        raise Invalid(f"model.from = {recipe.model.from_}: its size is not in the recipe; say its "
                      "parameters that multiply, by --size N")  # fmt: skip
    return shape(recipe.model).multiplying(vocabulary(recipe))


def _rows(corpus: str, laws: Resampled, at: Mapping[str, Array], replay: Array) -> Iterator[Row]:
    found, law = laws.fit.predict(at), laws.interval(at)
    run = laws.interval(at, measured=True)
    columns = (at["N"], at["D"], replay, found, *law, *run)
    for numbers in zip(*(column.tolist() for column in columns), strict=True):
        yield dict(zip(FIELDS, (corpus, laws.fit.form.name, *numbers), strict=True))


def _unlike(recipe: Recipe, like: Manner | None) -> Iterator[str]:
    """Which of a run's losses is predicted, and where its rate does not go as that of pilots."""
    last, own = recipe.phases[-1], recipe.anneal
    annealed = own.after(last.name)
    if like is None:
        yield "A CSV does not tell how the rate of its runs went: a run like them is predicted."
        return
    if recipe.schedule.get("kind") != like.schedule.get("kind"):
        yield (f"schedule.kind = {recipe.schedule.get('kind')}: that of the pilots is "
               f"{like.schedule.get('kind')}, and so is what is predicted")  # fmt: skip
    if like.part and not annealed:
        yield (f"anneal: the pilots' points are annealed branches, and the recipe has none of "
               f"{last.name}; it will end higher")  # fmt: skip
    elif like.part:
        yield f"Predicted is RUN/annealed/{last.name}."
        part = own.tokens / last.tokens
        if not 0.9 < part / like.part < 1.1:
            yield (f"anneal.tokens = {own.tokens}: {part:.0%} of {last.name}, {like.part:.0%} of "
                   "pilots")  # fmt: skip
    elif annealed:
        yield "Predicted is the run itself, not its annealed branch: the pilots had none."


def _cells(row: Row) -> list[str]:
    size, tokens, replay, *losses = (float(row[name]) for name in FIELDS[2:])
    loss, low, high, run_low, run_high = (f"{each:.4f}" for each in losses)
    return [str(row["corpus"]), f"{size:,.0f}", f"{tokens:,.0f}", f"{replay:.2%}", loss,
            f"{low} to {high}", f"{run_low} to {run_high}"]  # fmt: skip


def _write(path: Path, rows: list[Row]) -> None:
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(path)
