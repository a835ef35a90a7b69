"""A law fitted to 1,000 points with 2,000 resamples: `python bench/laws.py`.

The points are those of D-CPT's L3, nine parameters, with noise of 0.2%: 50 runs of 20 checkpoints,
resampled by run, and the same points resampled one by one.
"""

from __future__ import annotations

import time

import numpy as np
from common import report

from treering.analysis.laws.bootstrap import bootstrap
from treering.analysis.laws.dcpt import L3
from treering.analysis.laws.fitting import fit
from treering.analysis.laws.form import Array
from treering.analysis.laws.points import scale, units

TRUTH = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8])
RESAMPLES = 2000


def points() -> dict[str, Array]:
    """1,000 points of 5 sizes, 10 shares and 20 checkpoints."""
    sizes, tokens = np.geomspace(4e5, 6.4e6, 5), np.geomspace(1e6, 4e7, 20)
    shares = np.array([0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9, 1])
    grid = np.meshgrid(sizes, shares, tokens, indexing="ij")
    table = dict(zip(("N", "share", "D"), (axis.ravel() for axis in grid), strict=True))
    law = L3.predict(TRUTH, scale(table, units(L3, table)))
    noise = np.random.default_rng(0).normal(0, 0.002, len(law))
    return table | {"run": np.repeat(np.arange(50.0), 20), "law": law, "loss": law * np.exp(noise)}


def main() -> None:
    table = points()
    began = time.perf_counter()
    law = fit(L3, table)
    fitted = time.perf_counter() - began
    figures: dict[str, float] = {
        "points": len(table["loss"]),
        "parameters": len(TRUTH),
        "resamples": RESAMPLES,
    }
    figures |= {"fit, s": round(fitted, 2)}
    for by in ("run", None):
        began = time.perf_counter()
        found = bootstrap(law, RESAMPLES, by=by)
        took = time.perf_counter() - began
        low, high = found.interval(table)
        name = by or "point"
        figures[f"resampled by {name}, s"] = round(took, 2)
        figures[f"fit and resamples by {name}, s"] = round(fitted + took, 2)
        figures[f"law within its interval, by {name}"] = float(
            ((low <= table["law"]) & (table["law"] <= high)).mean()
        )
    error = np.abs(law.predict(table) / table["law"] - 1).max()
    report("laws", figures | {"worst error of a prediction": float(error)})


if __name__ == "__main__":
    main()
