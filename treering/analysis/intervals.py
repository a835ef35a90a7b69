"""Means over seeds with their intervals, and differences paired by seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

ALL_RESAMPLES = 7  # up to so many seeds every resample is taken, beyond them 20,000 at random


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `t` and `bootstrap` are 95% intervals, None for fewer than two seeds."""

    mean: float
    n: int
    t: tuple[float, float] | None
    bootstrap: tuple[float, float] | None
    values: dict[int, float]


def estimate(values: Mapping[int, float]) -> Estimate:
    """The mean of values by seed; those that are not finite are left out."""
    known = {seed: value for seed, value in sorted(values.items()) if np.isfinite(value)}
    sample, n = np.array(list(known.values())), len(known)
    mean = float(sample.mean()) if n else float("nan")
    if n < 2:
        return Estimate(mean, n, None, None, known)
    half = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / np.sqrt(n))
    low, high = np.percentile(_resamples(n) @ sample / n, [2.5, 97.5])
    return Estimate(mean, n, (mean - half, mean + half), (float(low), float(high)), known)


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """The paired difference to a baseline over the seeds of both, and what it shows: "lower",
    "higher", "not shown", or "one seed" (or none), from which nothing can be concluded."""
    paired = estimate({s: v - baseline[s] for s, v in values.items() if s in baseline})
    if paired.t is None:
        verdict = "one seed" if paired.n else "none"
    else:
        low, high = paired.t
        verdict = "lower" if high < 0 else "higher" if low > 0 else "not shown"
    lower = sum(value < 0 for value in paired.values.values())
    return {**asdict(paired), "lower": lower, "verdict": verdict}


def _resamples(n: int) -> NDArray[np.int64]:
    """How often each of n values is in a resample of n: int64[resamples, n]."""
    if n <= ALL_RESAMPLES:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        drawn = np.random.default_rng(0).integers(0, n, (20_000, n))
    counts: NDArray[np.int64] = (drawn[:, :, None] == np.arange(n)).sum(1)
    return counts
