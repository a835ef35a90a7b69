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
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from treering import config
from treering.config import Invalid


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

    for verb in (run, evaluate, export):
        verb.add_argument("--cache", metavar="FOLDER", help="of prepared text (~/.cache/treering)")
    return parser


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
