"""A study: arms x axes over a base recipe, each cell an ordinary run folder.

    STUDY.toml -load-> Study -cells-> Cell(name, arm, seed, recipe) -engine-> DIR/runs/NAME

    base = "base.toml"                 # a recipe, relative to the study
    baseline = "sequential"            # the arm to which differences are taken
    [grid]                             # every combination is a cell
    seed = [0, 1, 2]
    [common]                           # laid over the base for every arm
    [arms.sequential]                  # laid over the base: tables are merged, but a table that
    [arms.mer-25]                      # names a kind takes the place of the base's
    replay.share = 0.25
    update = { kind = "reptile", every = 50, rate = 0.5 }
    grid.update.rate = [0.3, 0.5]      # axes of this arm alone

The folder holds `recipes/NAME.toml` (resolved), `runs/NAME/`, `logs/NAME.log`, `cells.csv` (a line
for each finished cell and branch), and at the end `comparison.json`, `.md` and `report.html`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from treering import config, folder, records
from treering.analysis import cells
from treering.analysis.compare import Arm, branched, compare
from treering.config import Invalid, Recipe, Table
from treering.engines.process import Job
from treering.report import card, comparison
from treering.schema import read


@dataclass(frozen=True)
class Study:
    """The study's file: see the module's text."""

    base: str
    arms: dict[str, Table]
    grid: Table = field(default_factory=dict)
    common: Table = field(default_factory=dict)
    baseline: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a study. `group` is the arm with the values of all axes but the seed."""

    name: str
    group: str
    axes: dict[str, Any]
    recipe: Recipe


def load(path: str | Path, data: str | Path | None = None) -> tuple[Study, list[Cell]]:
    """The study in a TOML file and its cells, arm by arm. Raises Invalid, naming the cell, where
    one has no valid recipe, before anything is written."""
    path = Path(path)
    study = read(Study, config.toml(path), "")
    if not study.arms:
        raise Invalid("arms = {}: name at least one, as [arms.NAME]")
    if study.baseline is not None and study.baseline not in study.arms:
        raise Invalid(f"baseline = {study.baseline!r}: no such arm; known: {', '.join(study.arms)}")
    base = path.parent / study.base
    table = merged(config.toml(base), study.common)
    where = Path(data) if data is not None else base.parent
    found = [
        _cell(arm, over, axes, table, where)
        for arm, over in study.arms.items()
        for axes in _combinations(merged(over.get("grid", {}), study.grid))
    ]
    names = [cell.name for cell in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise Invalid(f"cell {twice[0]}: two cells have this name; rename an arm")
    return study, found


def _cell(arm: str, over: Table, axes: dict[str, Any], base: Table, where: Path) -> Cell:
    table = merged(base, {key: value for key, value in over.items() if key != "grid"})
    for key, value in axes.items():
        table = merged(table, _nested(key, value))
    marks = {key: f"-{key.split('.')[-1]}{_mark(value)}" for key, value in axes.items()}
    group = arm + "".join(mark for key, mark in marks.items() if key != "seed")
    name = group + marks.get("seed", "")
    if "/" in name or name.startswith("."):
        raise Invalid(f"cell {name}: cannot be a folder's name; rename the arm")
    try:
        return Cell(name, group, axes, config.resolve(table, where))
    except Invalid as error:
        raise Invalid(f"cell {name}: {error}") from error


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """One table laid over another. Tables within are merged, unless the upper one names a kind."""
    result = dict(table)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict) and "kind" not in value
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _combinations(grid: Table) -> Iterator[dict[str, Any]]:
    """Every combination of the axes: a grid's leaves, each a list of values."""
    axes = dict(_leaves(grid, ""))
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise Invalid(f"grid.{key} = {values!r}: must be a list of values")
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _leaves(table: Table, prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(key: str, value: Any) -> Table:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _mark(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(letter if letter.isalnum() or letter in "._" else "-" for letter in text)


def lay_out(found: list[Cell], out: Path) -> None:
    """The study's folder with each cell's resolved recipe. Raises Invalid where the folder holds
    something else."""
    if out.exists() and any(out.iterdir()) and not (out / "recipes").is_dir():
        raise Invalid(f"--out {out}: holds files but no study; name another folder")
    for part in ("recipes", "runs", "logs"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for cell in found:
        (out / "recipes" / f"{cell.name}.toml").write_text(config.to_toml(cell.recipe), "utf-8")


def run_of(cell: Cell, out: Path) -> Path:
    """The cell's run folder."""
    return out / "runs" / cell.name


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether the cell's run came to its end, with the recipe that the study has now."""
    run = run_of(cell, out)
    if not run.exists() or not folder.finished(run):
        return False
    made = config.load(run / "recipe.toml")
    return card.without_folders(made) == card.without_folders(cell.recipe)


def _tabulate(found: list[Cell], out: Path) -> list[tuple[Cell, list[records.Record]]]:
    """Write `cells.csv`; the finished cells with their records."""
    finished = [(cell, records.read(run_of(cell, out))) for cell in found if is_finished(cell, out)]
    lines = [line for cell, run in finished for line in cells.lines(cell.group, cell.axes, run)]
    cells.write(out / "cells.csv", lines)
    return finished


def conclude(study: Study, found: list[Cell], out: Path) -> dict[str, Any]:
    """Write `cells.csv`, `comparison.json` and `comparison.md` of the finished cells; the table of
    the comparison. Raises Invalid where none is finished."""
    finished = _tabulate(found, out)
    if not finished:
        raise Invalid(f"{out}: no cell is finished; see {out / 'logs'}")
    groups: dict[str, dict[int, list[records.Record]]] = {}
    for cell, run in finished:
        groups.setdefault(cell.group, {})[cell.recipe.seed] = run
    arms: list[Arm] = [arm for name, runs in groups.items() for arm in branched(name, runs)]
    wanted = (study.baseline or "", f"{study.baseline}-")
    named = (arm.name for arm in arms if arm.name == wanted[0] or arm.name.startswith(wanted[1]))
    table = compare(arms, baseline=next(named, None))
    (out / "comparison.json").write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    (out / "comparison.md").write_text(comparison.markdown(table), encoding="utf-8")
    return table


Engine = Callable[[list[Job], Callable[[list[str]], None]], Iterator[tuple[Job, int]]]


def perform(
    found: list[Cell],
    out: Path,
    engine: Engine,
    console: Console,
    *,
    only: Cell | None = None,
    cache: str | None = None,
    threads: int = 0,
) -> list[str]:
    """Run the cells that are not finished, or the one that is asked for; the names of those that
    failed.

    Each finished cell goes into `cells.csv` at once. Raises KeyboardInterrupt after Ctrl-C, when
    the cells that ran have saved themselves.
    """
    lay_out(found, out)
    asked = found if only is None else [only]
    left = {cell.name: cell for cell in asked if not is_finished(cell, out)}
    done = len(asked) - len(left)
    console.print(f"{len(asked)} cells, {done} of them finished", highlight=False)
    jobs = [_job(cell, out, cache, threads) for cell in left.values()]
    failed: list[str] = []
    began, ended = time.monotonic(), 0
    with console.status("") as line:

        def watch(running: list[str]) -> None:
            words = f"{done + ended} of {len(asked)} cells; {', '.join(running)}"
            if ended:
                minutes = (time.monotonic() - began) / ended * (len(left) - ended) / 60
                words += f"; about {minutes:,.0f} minutes left"
            line.update(Text(words, no_wrap=True, overflow="ellipsis"))

        for job, code in engine(jobs, watch):
            ended += 1
            good = code == 0 and is_finished(left[job.name], out)
            if good:
                _tabulate(found, out)
            else:
                failed.append(job.name)
            said = "finished" if good else f"failed with exit code {code}, see {job.log}"
            console.print(f"{job.name}: {said}", highlight=False, markup=False, soft_wrap=True)
    return failed


def _job(cell: Cell, out: Path, cache: str | None, threads: int) -> Job:
    out = out.absolute()
    recipe, log = out / "recipes" / f"{cell.name}.toml", out / "logs" / f"{cell.name}.log"
    return Job(cell.name, str(recipe), str(run_of(cell, out)), str(log), cache, threads)
