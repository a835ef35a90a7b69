"""The command line: verbs and their options. What they do is in `verbs.py`.

Exit codes: 0 done, or stopped by SIGTERM, SIGUSR1 or SIGHUP with all saved; 1 failed; 2 bad input
(nothing was written); 130 interrupted by Ctrl-C (all is saved; by a second one, what was before).
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from treering import planner, verbs, workshop
from treering.config import Invalid
from treering.interruption import Diverged, Preempted


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code; one line of explanation goes to stderr."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments, argparse.Namespace(arguments=arguments))
    warnings.showwarning = _warn
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return int(options.verb(options))
    except Invalid as error:
        print(f"{_us()}: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"{_us()}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{_us()}: {error}; what was saved before stands: mend it and run the same command "
              "again", file=sys.stderr)  # fmt: skip
        return 1
    except Preempted:
        print(
            f"{_us()}: stopped by the system; the same command goes on from here", file=sys.stderr
        )
        return 0
    except KeyboardInterrupt:
        print("treering: interrupted; the same command goes on from what is saved", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("treering", description="Continual pre-training.")
    known = parser.add_subparsers(required=True, metavar="VERB")

    prepare = known.add_parser("prepare", help="text to a token store")
    prepare.add_argument("input", nargs="+", help="JSONL, Parquet, .txt, folders, hf://OWNER/NAME")
    prepare.add_argument("--tokenizer", required=True, metavar="FOLDER|ID")
    prepare.add_argument("--out", required=True, metavar="STORE")
    prepare.add_argument("--validation", metavar="SHARE|FILE", help="goes to STORE-validation")
    prepare.add_argument("--field", default="text", help="of JSONL and Parquet (text)")
    prepare.add_argument("--workers", type=int, default=0, help="processes (one for each core)")
    prepare.add_argument("--skip-bad", action="store_true", help="count bad lines, do not stop")
    prepare.add_argument("--bos", action="store_true", help="begin each document with the BOS id")
    long = "only documents of so many tokens"
    prepare.add_argument("--at-least", type=int, default=0, metavar="TOKENS", help=long)
    prepare.set_defaults(verb=verbs.prepare)

    run = known.add_parser("run", help="train a recipe, or go on with it")
    run.add_argument("recipe")
    run.add_argument("--out", metavar="DIR", help="the run's folder")
    run.add_argument("--data", metavar="FOLDER", help="paths of the recipe are relative to it")
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    run.add_argument("--dry-run", action="store_true", help="say what would be done; write nothing")
    run.add_argument("--accept-jump", action="store_true", help="of the rate, as the recipe grew")
    run.add_argument("--devices", type=int, metavar="N", help="as so many processes, by torchrun")
    run.add_argument("--fresh", action="store_true", help="keep an older folder aside, start anew")
    run.set_defaults(verb=verbs.run)

    evaluate = _evaluate_verb(known)

    verify = known.add_parser("verify", help="reads a store or a run again: is it damaged?")
    verify.add_argument("paths", nargs="+", metavar="STORE|RUN")
    verify.set_defaults(verb=verbs.verify)

    export = known.add_parser("export", help="a folder for AutoModelForCausalLM.from_pretrained")
    export.add_argument("run")
    export.add_argument("--out", required=True, metavar="FOLDER")
    export.set_defaults(verb=verbs.export)

    planner.plan_verbs(known)
    _workshop_verbs(known)
    for verb in (evaluate, export):
        beside = "weights beside the trained ones, averages"
        verb.add_argument("--branch", metavar="NAME", help=beside)
        verb.add_argument("--step", type=int, metavar="N", help="an older checkpoint of a run")
    for verb in (run, evaluate, export, *_verdict_verbs(known)):
        verb.add_argument("--cache", metavar="FOLDER", help="of prepared text (~/.cache/treering)")
    return parser


def _evaluate_verb(known: Any) -> argparse.ArgumentParser:
    """evaluate, of corpora and of tasks."""
    evaluate: argparse.ArgumentParser = known.add_parser(
        "evaluate", help="held-out loss of every corpus, or tasks"
    )
    evaluate.add_argument("model", metavar="RUN|FOLDER|ID")
    evaluate.add_argument("--recipe", help="names the corpora; a run's own by default")
    evaluate.add_argument("--data", metavar="FOLDER")
    evaluate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="sets")
    evaluate.add_argument("--json", action="store_true", help="all digits, for programs")
    tasks = "downstream tasks of lm-eval, not held-out loss (treering[eval])"
    evaluate.add_argument("--tasks", metavar="NAME,NAME", help=tasks)
    evaluate.add_argument("--task-folder", metavar="FOLDER", help="their definitions")
    evaluate.add_argument("--task-data", metavar="FOLDER", help="their files are relative to it")
    evaluate.add_argument("--task-limit", type=int, metavar="N", help="documents of each task")
    evaluate.set_defaults(verb=verbs.evaluate)
    return evaluate


def _verdict_verbs(known: Any) -> tuple[argparse.ArgumentParser, ...]:
    """compare, report, watch, demo and study; returns those that prepare text."""
    compare = known.add_parser("compare", help="arms against one another, over seeds")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or ARM=RUN")
    compare.add_argument("--baseline", metavar="ARM", help="differences are to it (the first)")
    compare.add_argument("--metric", choices=("loss", "bits_per_byte"), default="loss")
    compare.add_argument("--format", choices=("screen", "md", "json"), default="screen")
    compare.set_defaults(verb=verbs.compare)

    report = known.add_parser("report", help="the verdict as a page, figures or a table")
    report.add_argument("runs", nargs="+", metavar="RUN", help="run folders, ARM=RUN, or studies")
    report.add_argument("--out", required=True, metavar="FILE")
    report.add_argument("--format", choices=verbs.FORMATS, help="absent: FILE's suffix, or html")
    report.add_argument("--baseline", metavar="ARM", help="differences are to it (the first)")
    report.set_defaults(verb=verbs.report)

    demo = known.add_parser("demo", help="a small study over text that this machine holds")
    demo.add_argument("--out", default="treering-demo", metavar="DIR")
    demo.set_defaults(verb=verbs.demo)

    watch = known.add_parser("watch", help="the report of runs in progress, served here")
    watch.add_argument("runs", nargs="+", metavar="RUN", help="run folders, ARM=RUN, or studies")
    watch.add_argument("--host", default="127.0.0.1", help="an address of this machine")
    watch.add_argument("--port", type=int, default=8000, help="0: any that is free")
    watch.add_argument("--refresh", type=int, default=10, metavar="SECONDS")
    watch.set_defaults(verb=verbs.watch)

    study = known.add_parser("study", help="a grid of runs, and their comparison")
    study.add_argument("study", metavar="STUDY.toml")
    study.add_argument("--out", metavar="DIR", required=True, help="the study's folder")
    study.add_argument("--data", metavar="FOLDER", help="paths of the base are relative to it")
    study.add_argument("--engine", choices=("local", "ray"), default="local")
    study.add_argument("--jobs", type=int, default=1, metavar="N", help="cells at a time (local)")
    study.add_argument("--cpus", type=float, default=1, help="of a cell (ray)")
    study.add_argument("--gpus", type=float, default=0, help="of a cell (ray); 0 hides them")
    study.add_argument("--cell", type=int, metavar="I", help="run this one alone, from 0")
    study.add_argument("--list", action="store_true", help="name the cells; run nothing")
    study.set_defaults(verb=verbs.study)
    return demo, study


def _workshop_verbs(known: Any) -> None:
    """layers, extend-tokenizer and merge: models and tokenizers are made without training."""
    layers = known.add_parser("layers", help="which layers a deeper model had best double")
    layers.add_argument("model", metavar="FOLDER|ID")
    layers.add_argument("--corpus", nargs="+", required=True, metavar="INPUT", help="as of prepare")
    layers.add_argument("--double", type=int, metavar="K", help="layers (half of them)")
    layers.add_argument("--length", type=int, default=512, help="tokens of a window (512)")
    layers.add_argument("--field", default="text", help="of JSONL and Parquet (text)")
    layers.add_argument("--json", action="store_true", help="all digits, for programs")
    layers.set_defaults(verb=workshop.layers)

    extend = known.add_parser("extend-tokenizer", help="a byte-level BPE with more merges")
    extend.add_argument("base", metavar="FOLDER|ID", help="the model's own tokenizer")
    extend.add_argument("--corpus", nargs="+", required=True, metavar="INPUT", help="as of prepare")
    extend.add_argument("--add", type=int, required=True, metavar="N", help="tokens")
    extend.add_argument("--out", required=True, metavar="FOLDER")
    extend.add_argument("--field", default="text", help="of JSONL and Parquet (text)")
    extend.add_argument("--json", action="store_true", help="all digits, for programs")
    extend.set_defaults(verb=workshop.extend_tokenizer)

    merge = known.add_parser("merge", help="weights added, subtracted or averaged")
    several, model = {"nargs": "+", "default": [], "metavar": "MODEL[:W]"}, "FOLDER|ID"
    merge.add_argument("models", nargs="*", metavar="MODEL[:W]", help="the mean of these; or:")
    merge.add_argument("--base", metavar=model, help="to which differences from it are added")
    merge.add_argument("--add", **several, help="W (1) times MODEL - BASE each")
    merge.add_argument("--subtract", **several, help="the same, subtracted")
    merge.add_argument("--slerp", type=float, metavar="T", help="of two models: T of the way")
    merge.add_argument("--like", metavar=model, help="whose config and tokenizer (the first's)")
    merge.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(the widest)")
    merge.add_argument("--out", required=True, metavar="FOLDER")
    merge.set_defaults(verb=workshop.merge)


def _us() -> str:
    """Which of the processes that torchrun started speaks, but for the first."""
    rank = os.environ.get("RANK", "0")
    return "treering" if rank == "0" else f"treering, rank {rank}"


def _warn(message: Warning | str, *where: object, **more: object) -> None:
    print(f"{_us()}: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
