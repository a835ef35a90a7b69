"""The critical mixture ratio (CMR) as a decision: Gu, Yang et al., arXiv 2407.17467.

Of runs at several domain shares, each with a law (b) of what its domain loss falls by over training
T and a law (c) of what its general loss rises by, CMR is the largest share whose general loss, at
the end, is within a tolerance, and which has its turning point T0 (d) by then: from there on a
further rise of the general loss is worth less than what the domain loss still falls by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from treering.analysis.laws.bootstrap import Resampled
from treering.analysis.laws.fitting import Fit
from treering.analysis.laws.form import Array

GRID, HALVINGS = 2001, 60


def cmr(
    shares: Array, longest: float, *, weight: float, tolerance: float = 0.05
) -> Callable[..., Array]:
    """What decides on the share, for `answer`; its laws are (b) of each share, then (c) of each.

    shares: rising. longest: T at the end. weight: lambda. tolerance: nats. Between the largest
    share that is good and the next, if that turns too, the rise is interpolated; NaN if none is.
    """

    def decide(*laws: Fit | Resampled) -> Array:
        n = len(shares)
        assert len(laws) == 2 * n, "two laws a share"
        rise = np.stack([law.predict({"T": np.array([longest])})[..., 0] for law in laws[n:]], -1)
        turns = np.stack(
            [turning(b, c, weight, longest) for b, c in zip(laws[:n], laws[n:], strict=True)], -1
        )
        return critical(shares, rise, turns, tolerance)

    return decide


def turning(
    domain: Fit | Resampled, general: Fit | Resampled, weight: float, longest: float
) -> Array:
    """T0 of (d), [...]: the last T up to `longest` where the general loss rises by 1/weight of what
    the domain loss falls by; NaN if there is none.

    By bisection in the logarithm, not by the paper's iteration. As the weight grows T0 tends to
    where the general loss is highest.
    """

    def slope(t: Array) -> Array:
        """Of both, times T, [..., n]."""
        return _slope(general, ((0, 1), (2, 3)), t) + _slope(domain, ((0, 1),), t) / weight

    grid = np.log(longest) + np.linspace(np.log(1e-6), 0, GRID)
    signs = np.sign(slope(np.exp(grid)))
    changes = signs[..., :-1] * signs[..., 1:] < 0
    last = GRID - 2 - np.argmax(changes[..., ::-1], -1)
    low, high = grid[last], grid[last + 1]
    begin = np.take_along_axis(signs, last[..., None], -1)[..., 0]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        before = np.sign(slope(np.exp(middle)[..., None])[..., 0]) == begin
        low, high = np.where(before, middle, low), np.where(before, high, middle)
    return np.asarray(np.where(changes.any(-1), np.exp(low), np.nan))


def critical(shares: Array, general: Array, turns: Array, tolerance: float = 0.05) -> Array:
    """CMR, [...], of shares [n], what the general loss rises by, and T0, each [..., n]."""
    good = (general <= tolerance) & np.isfinite(turns)
    at = len(shares) - 1 - np.argmax(good[..., ::-1], -1)
    beyond = np.minimum(at + 1, len(shares) - 1)
    here, there = (np.take_along_axis(general, i[..., None], -1)[..., 0] for i in (at, beyond))
    turns_too = np.isfinite(np.take_along_axis(turns, beyond[..., None], -1)[..., 0])
    steep = np.maximum(there - here, 1e-300)
    part = np.where(turns_too & (there > here), (tolerance - here) / steep, 0.0)
    found = shares[at] + part * (shares[beyond] - shares[at])
    return np.asarray(np.where(good.any(-1), found, np.nan))


def _slope(law: Fit | Resampled, powers: tuple[tuple[int, int], ...], t: Array) -> Array:
    """T times the derivative of a sum of powers a T^s, [..., n] at T [..., n]."""
    fit = law.fit if isinstance(law, Resampled) else law
    x, theta = t / fit.units["T"], np.moveaxis(law.parameters, -1, 0)[..., None]
    return np.asarray(sum(theta[a] * theta[s] * x ** theta[s] for a, s in powers))
