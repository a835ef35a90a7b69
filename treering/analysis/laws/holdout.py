"""Which law to believe: forms by their error on points that they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from treering.analysis.laws.fitting import USUAL, Fit, Search, fit
from treering.analysis.laws.form import Array, Form, Points
from treering.analysis.laws.points import columns, select
from treering.config import Invalid

Mask = NDArray[np.bool_]
HALF = 0.5 * 1.05  # of the most tokens: branches are of whole steps, so half a run is a little more


@dataclass(frozen=True)
class Judged:
    """A form on points, with its root-mean-square log error on what was held out of fits, by split;
    `error` is the mean over splits, by which forms are chosen."""

    fit: Fit
    held: dict[str, float]

    @property
    def error(self) -> float:
        return float(np.mean(list(self.held.values()))) if self.held else float("nan")


def splits(points: Points) -> dict[str, Mask]:
    """What is held out, by name: the largest size; the last half of the tokens, so that a fit is
    asked for twice of what it saw; an interior share; the largest share; the last seed. Only what
    leaves three values, of sizes two and of seeds one, to be fitted."""
    found: dict[str, Mask] = {}
    if _values(points, "N") > 2:
        found["largest N"] = points["N"] == points["N"].max()
    tokens = next((name for name in ("D", "T") if name in points), None)
    if tokens and (points[tokens] > HALF * points[tokens].max()).mean() < 0.7:
        late: Mask = points[tokens] > HALF * points[tokens].max()
        if _values(select(points, ~late), tokens) >= 3:
            found["twice the tokens"] = late
    if _values(points, "share") > 3:
        shares = np.unique(points["share"])
        found["a share between"] = points["share"] == shares[len(shares) // 2]
        found["the largest share"] = points["share"] == shares[-1]
    if _values(points, "seed") > 1:
        found["a seed"] = points["seed"] == points["seed"].max()
    return found


def judge(
    form: Form,
    points: Mapping[str, ArrayLike],
    held: Mapping[str, Mask] | None = None,
    *,
    target: str = "loss",
    search: Search = USUAL,
    forced: bool = False,
) -> Judged:
    """The form fitted to all points, and for each split without it."""
    table = columns(points)
    errors = {}
    for name, mask in (splits(table) if held is None else held).items():
        seen = fit(form, select(table, ~mask), target=target, search=search, forced=forced)
        errors[name] = error(seen, select(table, mask))
    return Judged(fit(form, table, target=target, search=search, forced=forced), errors)


def choose(
    forms: Sequence[Form],
    points: Mapping[str, ArrayLike],
    held: Mapping[str, Mask] | None = None,
    *,
    target: str = "loss",
    search: Search = USUAL,
    forced: bool = False,
) -> list[Judged]:
    """The forms by their held-out error, the best first; never by how well they fit. Raises Invalid
    where nothing can be held out."""
    held = splits(columns(points)) if held is None else held
    if not held:
        raise Invalid("the points have too few sizes, tokens, shares and seeds to hold any out: "
                      "nothing can be said for one form against another")  # fmt: skip
    judged = [
        judge(form, points, held, target=target, search=search, forced=forced) for form in forms
    ]
    return sorted(judged, key=lambda found: found.error)


def each(
    form: Form, points: Mapping[str, ArrayLike], *, target: str = "loss"
) -> NDArray[np.float64]:
    """Every point predicted from all the others: predicted / measured - 1, [n]."""
    table = columns(points)
    index = np.arange(len(table[target]))
    found = [
        fit(form, select(table, index != i), target=target, forced=True).predict(
            select(table, index == i)
        )[0]
        for i in index
    ]
    return np.array(found) / table[target] - 1


def error(law: Fit, points: Points) -> float:
    """Root-mean-square of log(predicted / measured), of the difference for forms not of logs."""
    predicted: Array = law.predict(points)
    measured = points[law.target]
    if law.form.logarithmic:
        off = np.log(np.maximum(predicted, 1e-9) / measured)
    else:
        off = predicted - measured
    return float(np.sqrt((off**2).mean()))


def _values(points: Points, name: str) -> int:
    return len(np.unique(points[name])) if name in points else 0
