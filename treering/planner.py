"""The command line of `treering plan`. What it does is in `verbs_p*.py`."""

from __future__ import annotations

import argparse
from typing import Any

from treering import verbs_pilots


def _plan(options: argparse.Namespace) -> int:
    from treering import verbs_plan, verbs_predict  # and with them scipy, which takes a second

    verbs = {"fit": verbs_plan.fit, "ask": verbs_plan.ask, "predict": verbs_predict.predict}
    return verbs[options.what](options)


def plan_verbs(known: Any) -> None:
    """Adds plan pilots, fit, predict and ask."""
    about = "laws from pilots: what share, size and budget to choose"
    verbs_of = known.add_parser("plan", help=about).add_subparsers(required=True, metavar="WHAT")
    pilots = verbs_of.add_parser("pilots", help="the study of small runs that a budget is worth")
    pilots.add_argument("recipe", metavar="RECIPE", help="of the run that is planned")
    pilots.add_argument(
        "--budget", type=float, required=True, metavar="FLOPS", help="of all pilots"
    )
    pilots.add_argument("--out", required=True, metavar="STUDY.toml")
    pilots.add_argument("--data", metavar="FOLDER", help="the recipe's files are relative to it")
    pilots.add_argument("--shares", metavar="X,X,X", help="of replay; 0,0.02,0.05,0.15,0.4")
    pilots.set_defaults(verb=verbs_pilots.pilots)
    _of_laws(verbs_of)


def _of_laws(verbs_of: Any) -> None:
    """Adds fit, predict and ask."""
    fit = verbs_of.add_parser("fit", help="a law, its intervals, its error on what was held out")
    by_replay, by_rest = "its loss, by the replay share", "its loss, by what replay leaves"
    which = fit.add_mutually_exclusive_group(required=True)
    which.add_argument("--old", metavar="CORPUS", help=by_replay)
    which.add_argument("--new", metavar="CORPUS", help=by_rest)
    fit.add_argument("--figure", metavar="FILE", help="the law and its points: .png or .svg")
    fit.add_argument("--points", metavar="FILE.csv", help="the points, to be fitted again from it")
    fit.set_defaults(verb=_plan, what="fit")
    ask = verbs_of.add_parser("ask", help="the best size and replay share for a budget")
    ask.add_argument("--budget", type=float, required=True, metavar="FLOPS", help="6 N D")
    ask.add_argument(
        "--keep", action="append", required=True, metavar="CORPUS=1%",
        help="its loss may rise so much; of several all are kept",
    )  # fmt: skip
    ask.add_argument("--learn", required=True, metavar="CORPUS", help="its loss is to be least")
    before = "loss of --keep's corpus before, at every size; of several CORPUS=NATS each"
    ask.add_argument("--before", action="append", metavar="NATS", help=before)
    ask.add_argument("--size", type=float, metavar="N", help="of the model, if it is given")
    ask.add_argument("--page", metavar="FILE.html", help="laws, points, choices, in a browser")
    ask.add_argument("--recipe", help="what is planned; as recommended it is written to --out")
    ask.add_argument("--out", metavar="FILE.toml")
    ask.add_argument("--data", metavar="FOLDER", help="the recipe's files are relative to it")
    ask.set_defaults(verb=_plan, what="ask")
    predict = verbs_of.add_parser("predict", help="losses of a recipe before it is trained")
    predict.add_argument("--recipe", required=True, help="its size and its last phase's tokens")
    predict.add_argument("--old", action="append", default=[], metavar="CORPUS", help=by_replay)
    predict.add_argument("--new", action="append", default=[], metavar="CORPUS", help=by_rest)
    predict.add_argument("--shares", metavar="X,X", help="of replay (the recipe's own)")
    predict.add_argument("--size", type=float, metavar="N", help="of a model that is read")
    predict.add_argument("--data", metavar="FOLDER", help="the recipe's files are relative to it")
    predict.add_argument("--out", metavar="FILE.csv")
    predict.set_defaults(verb=_plan, what="predict")
    for verb in (fit, ask, predict):
        given = "run or study folders, or one CSV of N, D, replay and a column for each corpus"
        verb.add_argument("pilots", nargs="+", metavar="RUN|CSV", help=given)
        verb.add_argument(
            "--law", action="append", default=[], metavar="LAW|CORPUS=LAW",
            help="dcpt, dcpt-l1, dcpt-l5, replay, forgetting; "
            "without, that which is nearest to what was held out",
        )  # fmt: skip
        verb.add_argument("--resamples", type=int, default=1000, metavar="N")
