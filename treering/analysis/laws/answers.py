"""What laws are for: the share, the size and the budget to choose, with intervals.

A decision is a function of laws, each a `Fit` or anything that predicts points; of resampled laws
it gives one answer for each resample, so an interval of it is that of the decision, not of
parameters. `share` is that of the old corpora in the old loss's law, and that of the new corpus in
the new loss's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from treering.analysis.laws.bootstrap import Resampled, expanded
from treering.analysis.laws.form import Array
from treering.config import Invalid

STEP = 1e-4  # of a logarithm, in a derivative
FLOPS = 6.0  # of a parameter and a token


class Law(Protocol):
    """What predicts: [n] of a fit, [b, n] of resamples."""

    def predict(self, points: Mapping[str, ArrayLike]) -> Array: ...


@dataclass(frozen=True)
class Answer:
    """A decision with its interval. outside: the share of resamples whose decision is not inside of
    what was asked over; they are left out of the interval."""

    value: float
    low: float
    high: float
    outside: float


def answer(decide: Callable[..., Array], *laws: Resampled, level: float = 0.95) -> Answer:
    """The decision of the fits, with the interval of the resamples'. Several laws are paired
    resample by resample: draw them with one seed from the same runs."""
    counts = {len(law.parameters) for law in laws}
    if len(counts) > 1:
        raise Invalid(f"laws have {sorted(counts)} resamples; draw as many of each")
    best, found = float(decide(*(law.fit for law in laws))), decide(*laws)
    good = found[np.isfinite(found)]
    outside = 1 - len(good) / len(found)
    if not good.size:
        return Answer(best, float("nan"), float("nan"), outside)
    low, high = np.percentile(good, expanded(min(law.runs for law in laws), level))
    return Answer(best, float(low), float(high), outside)


@dataclass(frozen=True)
class Within:
    """Several laws as one that is at most 1 where each is within its limit: the largest loss over
    its limit. `limits`: of each law one for every point that is asked for."""

    laws: Sequence[Law]
    limits: Sequence[Array]

    def predict(self, points: Mapping[str, ArrayLike]) -> Array:
        parts = zip(self.laws, self.limits, strict=True)
        return np.asarray(np.max([law.predict(points) / limit for law, limit in parts], axis=0))


def shares(least: float = 0.0, most: float = 1.0, n: int = 2001) -> Array:
    """Shares to choose from: even, and finer towards 0 and 1, where loss is steep."""
    fine = np.geomspace(1e-6, 0.05, n // 4)
    every = np.unique(np.concatenate([np.linspace(0, 1, n // 2), fine, 1 - fine]))
    return np.asarray(every[(every >= least) & (every <= most)])


def tolerable(old: Law, at: Mapping[str, float], limit: float, among: Array) -> Array:
    """The least replay share that keeps old loss within a limit (nats): D-CPT's usage 1, whose
    domain share is 1 minus it; CMR, which asks more, is in `critical.py`. NaN where no share does.
    at: the other columns."""
    return _from_where(old.predict(_table(at, share=among)) - limit, among)


def fixed_data(new: Law, at: Mapping[str, float], tokens: float, among: Array) -> Array:
    """The share of the new corpus that is best for its own loss where it has so many tokens:
    D = tokens / share (D-CPT's usage 2). NaN where the best is at the edge of `among`."""
    loss = new.predict(_table(at, share=among, D=tokens / among))
    return _lowest(loss, among)


@dataclass(frozen=True)
class Budget:
    """C = 6 N D over all tokens: of D a part `replay` is old, and 1 - replay new, so each new token
    costs 6 N / (1 - replay). fresh: the laws' D counts new tokens alone, not all."""

    flops: float
    sizes: Array
    replays: Array
    fresh: bool = False

    def table(self) -> tuple[Array, Array, Array]:
        """N, replay and D of every choice, flat."""
        size, replay = (x.ravel() for x in np.meshgrid(self.sizes, self.replays, indexing="ij"))
        tokens = self.flops / (FLOPS * size)
        return size, replay, tokens * (1 - replay) if self.fresh else tokens

    def best(self, new: Law, old: Law, limit: float) -> tuple[Array, Array, Array]:
        """N, replay and new loss where the new loss is least among choices that keep old loss
        within the limit (D-CPT's usage 3); NaN where none does."""
        size, replay, tokens = self.table()
        learned = new.predict({"N": size, "D": tokens, "share": 1 - replay})
        kept = old.predict({"N": size, "D": tokens, "share": replay})
        judged = np.where(kept <= limit, learned, np.inf)
        at = np.argmin(judged, -1)
        least = _take(judged, at)
        none = ~np.isfinite(least)
        return (
            np.where(none, np.nan, size[at]),
            np.where(none, np.nan, replay[at]),
            np.where(none, np.nan, least),
        )


def exchange(law: Law, size: float, replay: float, tokens: float, *, fresh: bool = False) -> Array:
    """d log L / d log FLOPs along size and along replay, [..., 2], at so many new tokens.

    FLOPs are 6 N tokens / (1 - replay), so a larger share at as many new tokens costs more. The
    lower of the two numbers is the better use of the next FLOP. The law's `share` is the replay
    share.
    """
    steps = np.array([-STEP, STEP])
    cost = 1 / (1 - replay)
    replays = 1 - (1 - replay) * np.exp(-steps)
    if replays[0] < 0:
        raise Invalid(f"replay = {replay:g}: a rate along it needs a share above {STEP}")
    along_size = _log_slope(law, size * np.exp(steps), np.full(2, replay), tokens, cost, fresh)
    along_share = _log_slope(law, np.full(2, size), replays, tokens, 1 / (1 - replays), fresh)
    return np.stack([along_size, along_share], -1)


def _log_slope(
    law: Law, size: Array, replay: Array, tokens: float, cost: ArrayLike, fresh: bool
) -> Array:
    seen = np.full(2, tokens) if fresh else tokens * np.broadcast_to(cost, 2)
    loss = np.log(law.predict({"N": size, "D": seen, "share": replay}))
    return np.asarray((loss[..., 1] - loss[..., 0]) / (2 * STEP))


def pays(with_replay: Law, without: Law, budgets: Array, column: str = "x") -> Array:
    """The least of the budgets from which on replay is the better use of them, each law a law of
    the budget alone; NaN where it is not at the largest, the least budget where it always is."""
    gain = without.predict({column: budgets}) - with_replay.predict({column: budgets})
    return _onset(gain, budgets)


def pays_at(law: Law, replay: float, tokens: float, sizes: Array, *, fresh: bool = False) -> Array:
    """The least budget in FLOPs from which on a replay share pays: a model of N parameters with it
    is better than one of N/(1 - replay) without, as both cost 6 N tokens / (1 - replay) for as many
    new tokens. sizes: N of the model that replays. NaN where it does not pay at the largest."""
    cost = 1 / (1 - replay)
    seen = tokens if fresh else tokens * cost
    n = len(sizes)
    replayed = {"N": sizes, "D": np.full(n, seen), "share": np.full(n, replay)}
    larger = {"N": sizes * cost, "D": np.full(n, tokens), "share": np.zeros(n)}
    return _onset(law.predict(larger) - law.predict(replayed), FLOPS * sizes * tokens * cost)


def _onset(gain: Array, budgets: Array) -> Array:
    """From which budget on a gain is positive, interpolated in the logarithm."""
    return np.asarray(np.exp(_from_where(-gain, np.log(budgets))))


def _from_where(excess: Array, x: Array) -> Array:
    """From which x on an excess is never positive, [...] of [..., n], interpolated linearly; NaN
    where it is at the last."""
    bad, end = excess > 0, len(x) - 1
    last = np.where(bad.any(-1), end - np.argmax(bad[..., ::-1], -1), -1)
    before, after = np.maximum(last, 0), np.minimum(last + 1, end)
    above, fall = _take(excess, before), _take(excess, before) - _take(excess, after)
    part = np.where(last >= 0, above, 0.0) / np.where(fall > 0, fall, 1.0)
    found = x[before] + part * (x[after] - x[before])
    return np.asarray(np.where(last == end, np.nan, found))


def _lowest(loss: Array, among: Array) -> Array:
    """Where loss is least, by a parabola through the three lowest; NaN at an edge."""
    at = np.argmin(loss, -1)
    inside = (at > 0) & (at < len(among) - 1)
    middle = np.clip(at, 1, len(among) - 2)
    x0, x1, x2 = among[middle - 1], among[middle], among[middle + 1]
    y0, y1, y2 = (_take(loss, middle + step) for step in (-1, 0, 1))
    top = (x1 - x0) ** 2 * (y1 - y2) - (x1 - x2) ** 2 * (y1 - y0)
    under = (x1 - x0) * (y1 - y2) - (x1 - x2) * (y1 - y0)
    with np.errstate(divide="ignore", invalid="ignore"):
        least = np.where(np.abs(under) > 0, x1 - top / (2 * under), x1)
    return np.asarray(np.where(inside, least, np.nan))


def _take(rows: Array, at: Array) -> Array:
    return np.asarray(np.take_along_axis(rows, np.asarray(at, np.int64)[..., None], -1)[..., 0])


def _table(at: Mapping[str, float], **columns: Array) -> dict[str, Array]:
    n = len(next(iter(columns.values())))
    return {name: np.full(n, value) for name, value in at.items()} | columns
