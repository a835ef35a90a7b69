"""A straight line through few points, with Student's intervals: exact for normal errors, and wide.

Four points leave a line two degrees of freedom, so its slope is known to 4.3 standard errors; a law
of three parameters would have one. No bootstrap of four points says more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from treering.analysis.laws.form import Array
from treering.config import Invalid


@dataclass(frozen=True)
class Line:
    """y = level - slope log(x / unit) by least squares, with standard errors and their freedom."""

    unit: float
    level: float
    slope: float
    covariance: Array
    freedom: int

    def at(self, x: ArrayLike) -> tuple[Array, Array]:
        """The line at x, and half the width of its 95% interval there."""
        row = _rows(np.asarray(x, np.float64) / self.unit)
        variance = np.einsum("...i,ij,...j->...", row, self.covariance, row)
        half = stdtrit(self.freedom, 0.975) * np.sqrt(variance)
        return row @ np.array([self.level, self.slope]), np.asarray(half)

    @property
    def halves(self) -> tuple[float, float]:
        """Half the widths of the 95% intervals of level and slope."""
        level, slope = stdtrit(self.freedom, 0.975) * np.sqrt(np.diag(self.covariance))
        return float(level), float(slope)


def line(x: ArrayLike, y: ArrayLike, unit: float = 1.0) -> Line:
    """The line through points (x, y). Raises Invalid for fewer than three."""
    rows, measured = _rows(np.asarray(x, np.float64) / unit), np.asarray(y, np.float64)
    freedom = len(measured) - 2
    if freedom < 1:
        raise Invalid(f"{len(measured)} points: a line with an interval needs at least 3")
    inverse = np.linalg.inv(rows.T @ rows)
    found = inverse @ rows.T @ measured
    variance = float(((measured - rows @ found) ** 2).sum()) / freedom
    level, slope = map(float, found)
    return Line(unit, level, slope, np.asarray(variance * inverse, np.float64), freedom)


def _rows(x: Array) -> Array:
    return np.stack([np.ones_like(x), -np.log(x)], -1)
