"""Whether 95% intervals of laws cover them: `python bench/coverage.py [KIND...]`, about 20 minutes.

Sets of data are made by a law with noise of 0.2%, fitted, and resampled; how often does the
interval of a prediction hold the law? Once with independent points, once with half of the noise's
variance shared by each run's checkpoints, and runs resampled. Beside it the worst error of a
prediction: it should stay below 0.5%.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from common import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from synthetic import NOISE, TRUTHS, noisy, truth

from treering.analysis.laws.bootstrap import bootstrap
from treering.analysis.laws.fitting import Search, fit

KINDS = ("power", "chinchilla", "dcpt", "replay", "replay-share", "cmr-ratio",
         "mixing-exponential")  # fmt: skip
BY_RUN = ("dcpt", "replay")  # of several sizes and shares: enough runs


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(TRUTHS))
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    return parser.parse_args()


def covered(kind: str, options: argparse.Namespace, *, by_run: bool) -> tuple[float, float]:
    """The share of predictions whose interval holds the law, and the worst error of a median
    set."""
    form, points, law = truth(kind)
    run = None
    if by_run:
        keys = np.stack([points[name] for name in form.columns if name != "D"], 1)
        run = np.unique(keys, axis=0, return_inverse=True)[1].ravel()
    hits, worst = [], []
    for seed in range(options.sets):
        table = points | {"loss": noisy(form, law, seed)}
        if run is not None:
            draw, part = np.random.default_rng(10_000 + seed), NOISE / np.sqrt(2)
            luck = draw.normal(0, part, run.max() + 1)[run]
            table = points | {"loss": noisy(form, law, seed, part) * np.exp(luck), "run": run}
        found = fit(form, table, search=Search(starts=2))
        by = "run" if by_run else None
        low, high = bootstrap(found, options.resamples, by=by, seed=seed).interval(points)
        hits.append((low <= law) & (law <= high))
        size = law if form.logarithmic else law.std()
        worst.append(float(np.abs((found.predict(points) - law) / size).max()))
    return float(np.mean(hits)), float(np.median(worst))


def main() -> None:
    options = asked()
    figures: dict[str, object] = {"sets": options.sets, "resamples": options.resamples}
    for kind in options.kinds or KINDS:
        share, error = covered(kind, options, by_run=False)
        figures |= {f"{kind}: covered": round(share, 4), f"{kind}: worst error": round(error, 5)}
        if kind in BY_RUN:
            share, error = covered(kind, options, by_run=True)
            figures |= {f"{kind} by run: covered": round(share, 4)}
            figures |= {f"{kind} by run: worst error": round(error, 5)}
    report("coverage", figures)


if __name__ == "__main__":
    main()
