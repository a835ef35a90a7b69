"""Conduct a study: run its cells by an engine, and sum up those that are finished.

The folder holds `recipes/NAME.toml` (resolved), `study.json` (each cell's group and baseline, by
which other verbs compare what `runs` holds), `runs/NAME/`, `logs/NAME.log`, `cells.csv` (a line
for each finished cell and branch), and at the end `comparison.json`, `.md` and `report.html`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from treering import config, folder, records
from treering.analysis import cells
from treering.analysis.compare import compare
from treering.analysis.runs import branched
from treering.atomic import replacing
from treering.config import Invalid, Recipe, Table
from treering.engines.process import Job
from treering.interruption import preempted
from treering.report import card, comparison, write
from treering.schema import differences, read, values
from treering.study import Cell, naming
from treering.tables import FREE

Engine = Callable[[list[Job], Callable[[list[str]], None]], Generator[tuple[Job, int], None, None]]


def lay_out(found: Sequence[Cell], out: Path) -> None:
    """The study's folder with `study.json` and each cell's resolved recipe. Raises Invalid where it
    holds something else."""
    if out.exists() and not out.is_dir():
        raise Invalid(f"--out {out}: is a file; name a folder")
    if out.exists() and any(out.iterdir()) and not (out / "recipes").is_dir():
        raise Invalid(f"--out {out}: holds files but no study; name another folder")
    for part in ("recipes", "runs", "logs"):
        (out / part).mkdir(parents=True, exist_ok=True)
    for cell in found:
        _write(out / "recipes" / f"{cell.name}.toml", config.to_toml(cell.recipe))
    keys = ("name", "group", "baseline")
    cells = [{key: value for key in keys if (value := getattr(cell, key))} for cell in found]
    _write(out / "study.json", json.dumps(cells, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Whole or not at all, and not again: a cell may be reading it."""
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def run_of(cell: Cell, out: Path) -> Path:
    """The cell's run folder."""
    return out / "runs" / cell.name


def is_finished(cell: Cell, out: Path) -> bool:
    """Whether the cell's run came to its end, with the recipe that the study has now."""
    run = run_of(cell, out)
    if not run.exists() or not folder.finished(run):
        return False
    try:
        made = read(Recipe, config.toml(run / "recipe.toml"), "")  # its files may have moved
    except Invalid:
        return False  # what another version wrote: the run itself will tell
    found = differences(_without_paths(made), _without_paths(cell.recipe))
    return all(key.startswith(FREE) for key in found)


def _without_paths(recipe: Recipe) -> Table:
    """The recipe's values; its files may have been moved."""
    evaluate = replace(recipe.evaluate, task_folder=None, task_data=None)
    bare: Table = card.without_folders(values(replace(recipe, evaluate=evaluate)))
    return bare


def _tabulate(found: Sequence[Cell], out: Path) -> list[tuple[Cell, list[records.Record]]]:
    """Write `cells.csv`; the finished cells with their records."""
    finished = [(cell, records.read(run_of(cell, out))) for cell in found if is_finished(cell, out)]
    lines = [line for cell, run in finished for line in cells.lines(cell.group, cell.axes, run)]
    if lines:
        cells.write(out / "cells.csv", lines)
    return finished


def conclude(found: Sequence[Cell], out: Path) -> dict[str, Any]:
    """Write `cells.csv`, `comparison.json`, `.md` and `report.html` of the finished cells; the
    table of the comparison. Raises Invalid where none is finished."""
    finished = _tabulate(found, out)
    if not finished:
        raise Invalid(f"{out}: no cell is finished; see {out / 'logs'}")
    groups: dict[str, dict[int, list[records.Record]]] = {}
    for cell, run in finished:
        groups.setdefault(cell.group, {})[cell.recipe.seed] = run
    to = {cell.group: cell.baseline for cell in found}
    arms = [arm for name, runs in groups.items() for arm in branched(name, runs, to[name])]
    table = compare(arms)
    done = {cell.name for cell, _ in finished}
    left = [cell.name for cell in found if cell.name not in done]
    table["notes"] += [f"{name}: not finished, left out" for name in left]
    _write(out / "comparison.json", json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    _write(out / "comparison.md", comparison.markdown(table))
    write.report(arms, out / "report.html", table=table if len(arms) > 1 else None)
    return table


def perform(
    found: Sequence[Cell],
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

    Each finished cell goes into `cells.csv` at once. Raises Invalid before anything is written
    where a cell's methods are no valid ones, and KeyboardInterrupt after Ctrl-C (after
    SIGTERM the Preempted among them), when the cells that ran have saved themselves.
    """
    asked = found if only is None else [only]
    left = {cell.name: cell for cell in asked if not is_finished(cell, out)}
    _check(list(left.values()))
    lay_out(found, out)
    done = len(asked) - len(left)
    console.print(f"{len(asked)} cells, {done} of them finished", highlight=False)
    jobs = [_job(cell, out, cache, threads) for cell in left.values()]
    failed: list[str] = []
    began, ended = time.monotonic(), 0
    with preempted(), console.status("") as line:

        def watch(running: list[str]) -> None:
            words = f"{done + ended} of {len(asked)} cells; {', '.join(running)}"
            if ended:
                minutes = (time.monotonic() - began) / ended * (len(left) - ended) / 60
                words += f"; about {minutes:,.0f} minutes left"
            line.update(Text(words, no_wrap=True, overflow="ellipsis"))

        with closing(engine(jobs, watch)) as exits:
            for job, code in exits:
                ended += 1
                good = code == 0 and is_finished(left[job.name], out)
                if good:
                    _tabulate(found, out)
                else:
                    failed.append(job.name)
                said = "finished" if good else f"failed with exit code {code}, {_why(job)}"
                console.print(f"{job.name}: {said}", highlight=False, markup=False, soft_wrap=True)
    return failed


def _check(found: Sequence[Cell]) -> None:
    """Make every cell's methods once, before hours are spent on the cells before it."""
    if not found:
        return
    from treering import build, shelf  # which take seconds

    for cell in found:
        with naming(cell.name):
            shelf.check(cell.recipe)
    extras = {repr((cell.recipe.evaluate, cell.recipe.track)): cell for cell in found}
    for cell in extras.values():  # finding tasks takes seconds: once for all that ask for the same
        with naming(cell.name):
            build.check_extras(cell.recipe)


def _why(job: Job) -> str:
    """The last line of a cell's log, and where more is."""
    log = Path(job.log)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
    words = [line.strip() for line in lines if line.strip()]
    return f"see {job.log}" + (f": {words[-1]}" if words else "")


def _job(cell: Cell, out: Path, cache: str | None, threads: int) -> Job:
    out = out.absolute()
    recipe, log = out / "recipes" / f"{cell.name}.toml", out / "logs" / f"{cell.name}.log"
    kept = None if cache is None else str(Path(cache).absolute())
    return Job(cell.name, str(recipe), str(run_of(cell, out)), str(log), kept, threads)
