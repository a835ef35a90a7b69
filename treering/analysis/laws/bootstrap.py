"""Intervals of predictions and decisions: a law fitted again to resamples of its runs.

Percentiles of a resample of few runs are too narrow. They are expanded to those of Student's t with
as many degrees of freedom (Hesterberg, The American Statistician 69, 2015): of 30 runs the 2.5%
percentile becomes the 1.9%, of 6 nearly the least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtrit

from treering.analysis.laws.descent import descend
from treering.analysis.laws.fitting import Fit
from treering.analysis.laws.form import Array
from treering.analysis.laws.points import scale
from treering.config import Invalid

HELD = 4_000_000  # numbers of a batch's gradients in memory


@dataclass(frozen=True)
class Resampled:
    """A fit and its parameters on resamples of so many runs, [b, p]."""

    fit: Fit
    parameters: Array
    runs: int

    def predict(self, points: Mapping[str, ArrayLike]) -> Array:
        """The law of every resample at n points, [b, n]."""
        table = {name: np.asarray(column, np.float64) for name, column in points.items()}
        return self.fit.form.predict(self.parameters, scale(table, self.fit.units))

    def interval(
        self, points: Mapping[str, ArrayLike], *, level: float = 0.95, measured: bool = False
    ) -> tuple[Array, Array]:
        """The percentile interval of the law at points, [n] and [n]; with `measured` of what a new
        run would show there: the fit's own residuals are added."""
        found = self.predict(points)
        if measured:
            draw, kept = np.random.default_rng(0), -self.fit.residuals  # measured over predicted
            kept = kept * np.sqrt(len(kept) / max(len(kept) - self.parameters.shape[1], 1))
            noise = draw.choice(kept, found.shape)
            found = found * np.exp(noise) if self.fit.form.logarithmic else found + noise
        low, high = np.percentile(found, expanded(self.runs, level), axis=0)
        return low, high

    def spread(self, *, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Percentile intervals of the parameters: wide where they are weakly identified."""
        low, high = np.percentile(self.parameters, expanded(self.runs, level), axis=0)
        return {
            n: (float(a), float(b)) for n, a, b in zip(self.fit.form.names, low, high, strict=True)
        }


def bootstrap(
    fit: Fit, resamples: int = 2000, *, by: str | None = None, seed: int = 0, sweeps: int = 40
) -> Resampled:
    """The law fitted to resamples, each from the full fit on.

    by: the column whose values name the runs; runs are drawn, never a run's single points, which
    are not independent. Without it every point is a run. Raises Invalid for fewer than 3 runs.
    """
    points, problem = fit.points, fit.problem
    names = points[by] if by else np.arange(len(fit.weights), dtype=np.float64)
    runs, of = np.unique(names, return_inverse=True)
    if len(runs) < 3:
        raise Invalid(f"{by or 'points'}: {len(runs)} runs have no interval; at least 3")
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(runs), np.full(len(runs), 1 / len(runs)), resamples)
    goal, start = problem.goal(points[fit.target]), problem.inward(fit.parameters)
    batch = max(1, HELD // (len(goal) * len(start)))
    found = [
        descend(problem, np.tile(start, (len(some), 1)), fit.weights * some[:, of], goal,
                sweeps=sweeps, near=1e-5)[0]
        for some in np.split(counts, range(batch, resamples, batch))
    ]  # fmt: skip
    return Resampled(fit, problem.outward(np.concatenate(found)), len(runs))


def expanded(runs: int, level: float = 0.95) -> tuple[float, float]:
    """The percentiles of resamples of some runs between which an interval of that level lies."""
    wide = np.sqrt(runs / (runs - 1)) * stdtrit(runs - 1, 0.5 + level / 2)
    return float(100 * ndtr(-wide)), float(100 * ndtr(wide))
