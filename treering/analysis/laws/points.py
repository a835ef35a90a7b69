"""The points of a fit: plain columns, checked, in units of their own middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from treering.analysis.laws.form import Array, Form, Index, Points
from treering.config import Invalid

SPARE = 2  # so many points more than parameters, or a fit is refused


def columns(table: Mapping[str, ArrayLike]) -> dict[str, Array]:
    """A table's columns as numbers. Raises Invalid where they differ in length or are not
    finite."""
    found = {name: np.atleast_1d(np.asarray(column, np.float64)) for name, column in table.items()}
    lengths = {name: len(column) for name, column in found.items()}
    if len(set(lengths.values())) > 1:
        raise Invalid(f"columns are of {lengths} points; give each as many")
    for name, column in found.items():
        bad = np.flatnonzero(~np.isfinite(column))
        if bad.size:
            raise Invalid(f"{name} = {column[bad[0]]} at point {bad[0]}: leave out points that are "
                          "not finite, such as those of a run that diverged")  # fmt: skip
    return found


def select(points: Points, kept: Index) -> dict[str, Array]:
    """The points of a mask or of indices."""
    return {name: column[kept] for name, column in points.items()}


def join(tables: Sequence[Points]) -> dict[str, Array]:
    """Points one table after another, of the columns that all have."""
    names = [name for name in tables[0] if all(name in table for table in tables)]
    return {name: np.concatenate([table[name] for table in tables]) for name in names}


def check(form: Form, points: Points, target: str, forced: bool) -> None:
    """Whether the points can carry the form. Raises Invalid with the remedy."""
    missing = [name for name in (*form.columns, target) if name not in points]
    if missing:
        raise Invalid(f"{form.name} reads {', '.join(missing)}, which the points do not have; they "
                      f"have {', '.join(points)}")  # fmt: skip
    if form.logarithmic and points[target].min() <= 0:
        raise Invalid(f"{target} = {points[target].min()}: {form.name} is of positive values")
    for name in form.columns:
        if name in form.scaled and points[name].min() < 0:
            raise Invalid(f"{name} = {points[name].min()}: sizes and budgets are not negative")
        if name != "base" and len(np.unique(points[name])) < 2 and not forced:
            raise Invalid(f"{name} = {points[name][0]:g} at every point, so how {target} depends "
                          "on it is unknown; add runs with another")  # fmt: skip
    n, p = len(points[target]), len(form.parameters)
    if n < p + SPARE and not forced:
        raise Invalid(f"{n} points for the {p} parameters of {form.name}: at least {p + SPARE}; "
                      "add runs or choose a form with fewer")  # fmt: skip


def units(form: Form, points: Points) -> dict[str, float]:
    """What a fit divides columns by: the geometric mean of what is positive in each."""
    found = {}
    for name in form.scaled:
        positive = points[name][points[name] > 0]
        found[name] = float(np.exp(np.log(positive).mean())) if positive.size else 1.0
    return found


def scale(points: Points, units: Mapping[str, float]) -> dict[str, Array]:
    """The points with columns in those units."""
    return {name: column / units.get(name, 1.0) for name, column in points.items()}
