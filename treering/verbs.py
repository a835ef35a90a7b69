"""What each verb of the command line does with its options. Returns its exit code.

Torch is imported only where a verb trains or scores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as RichTable

from treering import config
from treering.config import Invalid, Recipe

FORMATS = ("html", "png", "svg", "csv", "md")  # of a report

if TYPE_CHECKING:
    from treering.engines.process import Job


def prepare(options: argparse.Namespace) -> int:
    from treering import prepare as preparation
    from treering import tokenizer

    words = tokenizer.load(options.tokenizer)
    wanted = preparation.Options(
        validation=_share(options.validation),
        field=options.field,
        workers=options.workers,
        skip_bad=options.skip_bad,
        bos=options.bos,
        at_least=options.at_least,
    )
    for store in preparation.prepare(options.input, words, options.out, wanted):
        print(store)
    return 0


def _share(text: str | None) -> float | str | None:
    """A number is a share, anything else a file."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def run(options: argparse.Namespace) -> int:
    recipe = config.load(options.recipe, data=options.data, sets=tuple(options.sets))
    console = Console()
    if options.dry_run:
        from treering.estimate import show as estimate

        estimate(recipe, options.cache, options.devices, console)
        return 0
    if options.out is None:
        raise Invalid("--out is missing: name the run's folder")
    started = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    if options.devices is not None and started not in (None, str(options.devices)):
        raise Invalid(f"--devices {options.devices}: torchrun has started {started} processes")
    if options.devices is not None and started is None:
        from treering.launch import launch
        from treering.mesh import fit

        fit(recipe.mesh, options.devices)
        grace = recipe.checkpoint.grace
        return launch(options.devices, options.arguments, Path(options.out), grace=grace)
    from treering import training
    from treering.report.table import show

    summary = training.run(
        recipe,
        options.out,
        fresh=options.fresh,
        accept_jump=options.accept_jump,
        cache_folder=options.cache,
    )
    if os.environ.get("RANK", "0") == "0":
        show(summary, console)
        print(f"the model is in {Path(options.out) / 'model'}")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from treering.cache import cache_folder
    from treering.outcome import Which, recipe_of, scores

    recipe = recipe_of(options.model, options.recipe, options.data, tuple(options.sets))
    if options.tasks is not None:
        return _tasks(options, recipe)
    for name in ("task_folder", "task_data", "task_limit"):
        if getattr(options, name) is not None:
            given = f"--{name.replace('_', '-')} {getattr(options, name)}"
            raise Invalid(f"{given}: is of tasks; name them with --tasks")
    which = Which(options.branch, options.step)
    found = scores(options.model, recipe, cache_folder(options.cache), which)
    if options.json:
        print(json.dumps({name: dataclasses.asdict(score) for name, score in found.items()}))
        return 0
    table = RichTable("corpus", "loss (nats/token)", "bits/byte", "tokens")
    for name, score in found.items():
        bits = "unknown" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
        table.add_row(name, f"{score.loss:.4f}", bits, f"{score.tokens:,}")
    Console().print(table)
    return 0


def _tasks(options: argparse.Namespace, recipe: Recipe | None) -> int:
    from treering.cache import cache_folder
    from treering.outcome import Which, task_scores

    asked = {
        "tasks": tuple(name.strip() for name in options.tasks.split(",")),
        "task_folder": options.task_folder,
        "task_data": options.task_data,
        "task_limit": options.task_limit,
    }
    given = {key: value for key, value in asked.items() if value is not None}
    cache = cache_folder(options.cache)
    which = Which(options.branch, options.step)
    found = task_scores(options.model, recipe, given, cache, which)
    if options.json:
        print(json.dumps([dataclasses.asdict(score) for score in found]))
        return 0
    table = RichTable("task", "metric", "value", "standard error", "documents")
    for score in found:
        stderr = "unknown" if score.stderr is None else f"{score.stderr:.4f}"
        table.add_row(score.task, score.metric, f"{score.value:.4f}", stderr, f"{score.n:,}")
    Console().print(table)
    return 0


def verify(options: argparse.Namespace) -> int:
    from treering.verify import verify as findings

    damaged = 0
    for path in options.paths:
        for found in findings(path):
            damaged += found.damage is not None
            said = f"DAMAGED  {found.path}: {found.damage}" if found.damage else (
                f"sound    {found.path}" + (f": {found.note}" if found.note else "")
            )  # fmt: skip
            print(said, flush=True)
    return 1 if damaged else 0


def compare(options: argparse.Namespace) -> int:
    from treering.analysis.compare import compare as compared
    from treering.analysis.runs import gather
    from treering.report import comparison

    table = compared(gather(options.runs), baseline=options.baseline, metric=options.metric)
    if options.format == "json":
        print(json.dumps(table, indent=1, ensure_ascii=False))
    elif options.format == "md":
        print(comparison.markdown(table))
    else:
        comparison.show(table, Console())
    return 0


def report(options: argparse.Namespace) -> int:
    from treering.analysis.runs import gather
    from treering.report import write
    from treering.report.page import compared

    out, arms = Path(options.out), gather(options.runs)
    named = next((form for form in FORMATS if out.suffix == f".{form}"), None)
    if options.format and named and options.format != named:
        raise Invalid(f"--format {options.format}: {out.name} would not be what its name says")
    table = compared(arms, options.baseline)
    write.report(arms, out, options.format or named or "html", table=table)
    print(out)
    return 0


def demo(options: argparse.Namespace) -> int:
    from treering.demo.show import demo as show

    return show(Path(options.out), Console(), cache=options.cache)


def watch(options: argparse.Namespace) -> int:
    from treering.report.watch import server

    with server(options.runs, host=options.host, port=options.port, refresh=options.refresh) as at:
        print(f"http://{options.host}:{at.server_address[1]}/  (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            at.serve_forever()
    return 0


def study(options: argparse.Namespace) -> int:
    from treering import conduct
    from treering import study as studies
    from treering.engines import local, ray
    from treering.report import comparison

    cells = studies.load(options.study, options.data)
    out, console = Path(options.out), Console()
    if options.list:
        for i, cell in enumerate(cells):
            print(f"{i:4}  {cell.name}")
        return 0
    if options.jobs < 1:
        raise Invalid(f"--jobs {options.jobs}: must be at least 1")
    threads = max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else 0
    if options.engine == "ray":
        ray.check(options.cpus, options.gpus)
        threads = max(1, int(options.cpus))

    def engine(
        jobs: list[Job], watch: Callable[[list[str]], None]
    ) -> Generator[tuple[Job, int], None, None]:
        if options.engine == "ray":
            return ray.run(jobs, cpus=options.cpus, gpus=options.gpus, watch=watch)
        return local.run(jobs, options.jobs, watch)

    if options.cell is not None and not 0 <= options.cell < len(cells):
        raise Invalid(f"--cell {options.cell}: there are cells 0 to {len(cells) - 1}")
    only = None if options.cell is None else cells[options.cell]
    failed = conduct.perform(
        cells, out, engine, console, only=only, cache=options.cache, threads=threads
    )
    if options.cell is None and len(failed) < len(cells):
        comparison.show(conduct.conclude(cells, out), console)
        print(f"cells.csv, comparison.json, comparison.md and report.html are in {out}")
    if failed:
        print(f"treering: failed: {', '.join(failed)}; mend and run again", file=sys.stderr)
    return 1 if failed else 0


def export(options: argparse.Namespace) -> int:
    from treering import outcome
    from treering.cache import cache_folder

    out, which = Path(options.out), outcome.Which(options.branch, options.step)
    step = outcome.export(options.run, out, cache_folder(options.cache), which)
    of = f"{options.run}, {which.branch}" if which.branch else options.run
    print(f"{out}: the model of {of} after step {step}")
    return 0
