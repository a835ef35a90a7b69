"""Whether 95% intervals of laws cover them: `OMP_NUM_THREADS=1 python bench/coverage.py [KIND...]`.

Sets of data are made by a law with noise of 0.2%, fitted, and resampled; how often does the
interval of a prediction hold the law? Once with independent points, once with half of the noise's
variance shared by each run's checkpoints, and runs resampled. Beside it the worst error of a
prediction: it should stay below 0.5%.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from common import report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from synthetic import NOISE, TRUTHS, noisy, truth

from treering.analysis.laws.bootstrap import bootstrap
from treering.analysis.laws.fitting import Search, fit

BY_RUN = ("dcpt", "forgetting", "replay")  # of several sizes and shares: enough runs


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(TRUTHS))
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--resamples", type=int, default=400)
    return parser.parse_args()


def covered(kind: str, by_run: bool, options: argparse.Namespace) -> tuple[float, float]:
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
    kinds = options.kinds or list(TRUTHS)
    jobs = [(kind, by) for kind in kinds for by in ((False, True) if kind in BY_RUN else (False,))]
    figures: dict[str, object] = {"sets": options.sets, "resamples": options.resamples}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        each = [pool.submit(covered, kind, by, options) for kind, by in jobs]
        for (kind, by), found in zip(jobs, each, strict=True):
            share, error = found.result()
            name = f"{kind} by run" if by else kind
            figures |= {
                f"{name}: covered": round(share, 4),
                f"{name}: worst error": round(error, 5),
            }
            print(f"{name}: {share:.2%}", flush=True)
    report("coverage", figures)


if __name__ == "__main__":
    main()
