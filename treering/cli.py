"""The verbs: prepare, run, evaluate, export. Torch is imported only where a verb trains or scores.

Exit codes: 0 done, 1 failed, 2 bad input (nothing was written), 130 interrupted (all is saved).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.table import Table as RichTable

from treering import config
from treering.config import Invalid

if TYPE_CHECKING:
    from treering.engines.process import Job


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; one line of explanation goes to stderr."""
    options = _parser().parse_args(arguments)
    warnings.showwarning = _warn
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return int(options.verb(options))
    except Invalid as error:
        print(f"treering: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"treering: {error}; what was saved before stands: mend it and run the same command "
              "again", file=sys.stderr)  # fmt: skip
        return 1
    except KeyboardInterrupt:
        print("treering: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("treering", description="Continual pre-training.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    prepare = verbs.add_parser("prepare", help="text to a token store")
    prepare.add_argument("input", nargs="+", help="JSONL, Parquet, .txt, folders, hf://OWNER/NAME")
    prepare.add_argument("--tokenizer", required=True, metavar="FOLDER|ID")
    prepare.add_argument("--out", required=True, metavar="STORE")
    prepare.add_argument("--validation", metavar="SHARE|FILE", help="goes to STORE-validation")
    prepare.add_argument("--field", default="text", help="of JSONL and Parquet (text)")
    prepare.add_argument("--workers", type=int, default=0, help="processes (one for each core)")
    prepare.add_argument("--skip-bad", action="store_true", help="count bad lines, do not stop")
    prepare.add_argument("--bos", action="store_true", help="begin each document with the BOS id")
    prepare.set_defaults(verb=_prepare)

    run = verbs.add_parser("run", help="train a recipe, or go on with it")
    run.add_argument("recipe")
    run.add_argument("--out", metavar="DIR", help="the run's folder")
    run.add_argument("--data", metavar="FOLDER", help="paths of the recipe are relative to it")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    run.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    run.add_argument("--fresh", action="store_true", help="keep an older folder aside, start anew")
    run.set_defaults(verb=_run)

    evaluate = verbs.add_parser("evaluate", help="held-out loss of every corpus")
    evaluate.add_argument("model", metavar="RUN|FOLDER|ID")
    evaluate.add_argument("--recipe", help="names the corpora; a run's own by default")
    evaluate.add_argument("--data", metavar="FOLDER")
    evaluate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    evaluate.add_argument("--json", action="store_true", help="all digits, for programs")
    evaluate.set_defaults(verb=_evaluate)

    export = verbs.add_parser("export", help="a folder for AutoModelForCausalLM.from_pretrained")
    export.add_argument("run")
    export.add_argument("--out", required=True, metavar="FOLDER")
    export.set_defaults(verb=_export)

    study = _verdict_verbs(verbs)
    for verb in (run, evaluate, export, study):
        verb.add_argument("--cache", metavar="FOLDER", help="of prepared text (~/.cache/treering)")
    return parser


def _verdict_verbs(verbs: Any) -> argparse.ArgumentParser:
    """compare and study; returns the latter."""
    compare = verbs.add_parser("compare", help="arms against one another, over seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or ARM=RUN")
    compare.add_argument("--baseline", metavar="ARM", help="differences are to it (the first)")
    compare.add_argument("--metric", choices=("loss", "bits_per_byte"), default="loss")
    compare.add_argument("--format", choices=("screen", "md", "json"), default="screen")
    compare.set_defaults(verb=_compare)

    study = verbs.add_parser("study", help="a grid of runs, and their comparison")
    study.add_argument("study", metavar="STUDY.toml")
    study.add_argument("--out", metavar="DIR", required=True, help="the study's folder")
    study.add_argument("--data", metavar="FOLDER", help="paths of the base are relative to it")
    study.add_argument("--engine", choices=("local", "ray"), default="local")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (local)")
    study.add_argument("--cpus", type=float, default=1, help="of a cell (ray)")
    study.add_argument("--gpus", type=float, default=0, help="of a cell (ray)")
    study.add_argument("--cell", type=int, metavar="I", help="run this one alone, from 0")
    study.add_argument("--list", action="store_true", help="name the cells; run nothing")
    study.set_defaults(verb=_study)
    return cast(argparse.ArgumentParser, study)


def _prepare(options: argparse.Namespace) -> int:
    from treering import tokenizer
    from treering.prepare import Options, prepare

    words = tokenizer.load(options.tokenizer)
    wanted = Options(
        validation=_share(options.validation),
        field=options.field,
        workers=options.workers,
        skip_bad=options.skip_bad,
        bos=options.bos,
    )
    for store in prepare(options.input, words, options.out, wanted):
        print(store)
    return 0


def _share(text: str | None) -> float | str | None:
    """A number is a share, anything else a file."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text


def _run(options: argparse.Namespace) -> int:
    recipe = config.load(options.recipe, data=options.data, sets=tuple(options.sets))
    console = Console()
    if options.dry_run:
        from treering.estimate import show as estimate

        estimate(recipe, options.cache, console)
        return 0
    if options.out is None:
        raise Invalid("--out is missing: name the run's folder")
    from treering.report.table import show
    from treering.training import run

    summary = run(recipe, options.out, fresh=options.fresh, cache_folder=options.cache)
    show(summary, console)
    print(f"the model is in {Path(options.out) / 'model'}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from treering.cache import cache_folder
    from treering.outcome import scores

    recipe = None
    if options.recipe is not None:
        recipe = config.load(options.recipe, data=options.data, sets=tuple(options.sets))
    found = scores(options.model, recipe, cache_folder(options.cache))
    if options.json:
        print(json.dumps({name: dataclasses.asdict(score) for name, score in found.items()}))
        return 0
    table = RichTable("corpus", "loss (nats/token)", "bits/byte", "tokens")
    for name, score in found.items():
        bits = "unknown" if score.bits_per_byte is None else f"{score.bits_per_byte:.4f}"
        table.add_row(name, f"{score.loss:.4f}", bits, f"{score.tokens:,}")
    Console().print(table)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from treering.analysis.compare import arms, compare
    from treering.records import read
    from treering.report import comparison

    runs = []
    for given in options.runs:
        name, equals, path = given.partition("=")
        at = Path(path if equals else given)
        if not (at / "records.jsonl").exists():
            raise Invalid(f"{given}: is no run folder (it has no records.jsonl)")
        runs.append((name if equals else at.absolute().name, read(at)))
    table = compare(arms(runs), baseline=options.baseline, metric=options.metric)
    if options.format == "json":
        print(json.dumps(table, indent=1, ensure_ascii=False))
    elif options.format == "md":
        print(comparison.markdown(table))
    else:
        comparison.show(table, Console())
    return 0


def _study(options: argparse.Namespace) -> int:
    from treering import study
    from treering.engines import local, ray
    from treering.report import comparison

    asked, cells = study.load(options.study, options.data)
    out, console = Path(options.out), Console()
    if options.list:
        for i, cell in enumerate(cells):
            print(f"{i:4}  {cell.name}")
        return 0
    if options.jobs < 1:
        raise Invalid(f"--jobs {options.jobs}: must be at least 1")
    threads = max(1, (os.cpu_count() or 1) // options.jobs) if options.jobs > 1 else 0

    def engine(jobs: list[Job], watch: Callable[[list[str]], None]) -> Iterator[tuple[Job, int]]:
        if options.engine == "ray":
            return ray.run(jobs, cpus=options.cpus, gpus=options.gpus, watch=watch)
        return local.run(jobs, options.jobs, watch)

    if options.cell is not None and not 0 <= options.cell < len(cells):
        raise Invalid(f"--cell {options.cell}: there are cells 0 to {len(cells) - 1}")
    only = None if options.cell is None else cells[options.cell]
    failed = study.perform(
        cells, out, engine, console, only=only, cache=options.cache, threads=threads
    )
    if options.cell is None:
        comparison.show(study.conclude(asked, cells, out), console)
        print(f"cells.csv, comparison.json and comparison.md are in {out}")
    if failed:
        print(f"treering: failed: {', '.join(failed)}; mend and run again", file=sys.stderr)
    return 1 if failed else 0


def _export(options: argparse.Namespace) -> int:
    from treering.cache import cache_folder
    from treering.outcome import export

    step = export(options.run, Path(options.out), cache_folder(options.cache))
    print(f"{options.out}: the model of {options.run} after step {step}")
    return 0


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    print(f"treering: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
