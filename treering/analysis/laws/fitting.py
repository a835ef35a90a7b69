"""One fitter for every form.

    points --check, scale--> starts --L-BFGS-B each--> the best --Gauss-Newton--> Fit

A start is a point of the grid of what is in shapes, with the coefficients solved for (non-negative
least squares), so that a power's flat valleys are looked across rather than along. Parameters are
weakly identified: a law's predictions and decisions are its content, and have the intervals.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize, nnls

from treering.analysis.laws.descent import Problem, descend
from treering.analysis.laws.form import Array, Form, Index, Points
from treering.analysis.laws.points import check, columns, scale, select, units
from treering.config import Invalid

DELTA = 1e-3  # where Huber's loss turns linear, in log loss
NEAR = 1.01  # times the range of sizes and budgets is not beyond it
GRID = 400  # combinations of starts that are tried
SOLVED = 200  # points by which they are compared


@dataclass(frozen=True)
class Fit:
    """A form's numbers. parameters: in the units of their columns, see `Form.scaled`. box: the
    range of each column that was fitted; beyond it a prediction is an extrapolation."""

    form: Form
    parameters: Array
    points: Points
    target: str
    units: Mapping[str, float]
    delta: float
    weights: Array
    cost: float

    def predict(self, points: Mapping[str, ArrayLike]) -> Array:
        """The law at n points, [n]."""
        table = {name: np.asarray(column, np.float64) for name, column in points.items()}
        return self.form.predict(self.parameters, scale(table, self.units))

    @cached_property
    def residuals(self) -> Array:
        """log(predicted / measured) of each point; the plain difference where the form is not of
        logarithms."""
        predicted, measured = self.predict(self.points), self.points[self.target]
        return np.log(predicted / measured) if self.form.logarithmic else predicted - measured

    @property
    def values(self) -> dict[str, float]:
        """The parameters by name."""
        return dict(zip(self.form.names, map(float, self.parameters), strict=True))

    @property
    def at_bounds(self) -> list[str]:
        """Parameters that the search would have taken further: report them, never the number
        alone."""
        problem = self.problem
        u, span = problem.inward(self.parameters), 1e-6 * (problem.high - problem.low)
        stuck = (u <= problem.low + span) | (u >= problem.high - span)
        return [name for name, at in zip(self.form.names, stuck, strict=True) if at]

    @property
    def problem(self) -> Problem:
        """The minimisation that this is the answer of."""
        return _problem(self.form, self.points, self.target, self.units, self.delta)

    @property
    def quality(self) -> dict[str, float]:
        """rms: of the residuals. huber: their mean Huber loss over delta. r2 and worst: of the
        loss, worst the largest absolute error."""
        size, measured = np.abs(self.residuals), self.points[self.target]
        error = self.predict(self.points) - measured
        around = measured - measured.mean()
        huber = np.where(size <= self.delta, size**2 / 2 / self.delta, size - self.delta / 2)
        return {
            "rms": float(np.sqrt((size**2).mean())),
            "huber": float(huber.mean()),
            "r2": float(1 - (error**2).sum() / max((around**2).sum(), 1e-300)),
            "worst": float(np.abs(error).max()),
        }

    def beyond(self, points: Mapping[str, ArrayLike]) -> dict[str, float]:
        """How far points are outside the range fitted, by column: as a factor for sizes and
        budgets, as a distance for shares; 1 or 0 within it are left out."""
        found: dict[str, float] = {}
        for name in self.form.columns:
            asked, known = np.asarray(points[name], np.float64), self.points[name]
            if name in self.form.scaled and known.min() > 0:
                far = max(asked.max() / known.max(), known.min() / asked.min())
                found |= {name: float(far)} if far > NEAR else {}
            else:
                far = max(asked.max() - known.max(), known.min() - asked.min())
                found |= {name: float(far)} if far > 1e-9 else {}
        return found


@dataclass(frozen=True)
class Search:
    """How a minimum is looked for: Huber's `delta` in residuals, how many starts of the grid are
    followed, the seed of what is drawn."""

    delta: float = DELTA
    starts: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.delta < np.inf:
            raise Invalid(f"delta = {self.delta}: must be positive; {DELTA} is usual for log loss")


USUAL = Search()


def fit(
    form: Form,
    points: Mapping[str, ArrayLike],
    *,
    target: str = "loss",
    weights: ArrayLike | None = None,
    warmup: float = 0.0,
    search: Search = USUAL,
    forced: bool = False,
) -> Fit:
    """The form fitted to points: columns of equal length.

    weights: of the points. warmup: points of fewer tokens (column D, else T or x) are left out.
    forced: fit although the points are too few or all alike. Raises Invalid for points that are not
    finite, too few, or do not vary.
    """
    table = columns(points)
    if weights is not None:
        table["weight"] = columns({"weight": weights})["weight"]
    if warmup:
        clock = next((name for name in ("D", "T", "x") if name in table), None)
        if clock is None:
            raise Invalid(f"warmup = {warmup}: the points have no column D of tokens to hold to it")
        table = select(table, table[clock] >= warmup)
    check(form, table, target, forced)
    weight = table.pop("weight", np.ones(len(table[target])))
    of = units(form, table)
    problem = _problem(form, table, target, of, search.delta)
    goal = problem.goal(table[target])
    begun = _starts(problem, table[target], weight, search.seed)
    u, cost = descend(problem, begun, weight, goal, sweeps=15)
    best = u[np.argsort(cost, kind="stable")[: search.starts]]
    best = np.stack([_quasi_newton(problem, start, weight, goal) for start in best])
    u, cost = descend(problem, best, weight, goal, sweeps=200, near=1e-9)
    freed = np.stack([_freed(problem, each, table[target], weight) for each in u])
    again, lower = descend(problem, freed, weight, goal, sweeps=200, near=1e-9)
    u, cost = np.where((lower < cost)[:, None], again, u), np.minimum(lower, cost)
    chosen = int(np.argmin(cost))
    parameters = problem.outward(u[chosen])
    return Fit(form, parameters, table, target, of, search.delta, weight, float(cost[chosen]))


def _problem(
    form: Form, points: Points, target: str, units: Mapping[str, float], delta: float
) -> Problem:
    spread = 1.0 if form.logarithmic else max(float(np.std(points[target])), 1e-300)
    return Problem(form, scale(points, units), delta, spread)


def _quasi_newton(problem: Problem, u: Array, weights: Array, goal: Array) -> Array:
    """L-BFGS-B from a start."""
    points = float(weights.sum())

    def cost(at: Array) -> tuple[float, Array]:
        value, gradient, _ = problem.system(at[None], weights[None], goal[None])
        return float(value[0]) / points, gradient[0] / points

    bounds = list(zip(problem.low, problem.high, strict=True))
    options = {"maxiter": 300, "maxfun": 400, "ftol": 1e-12, "gtol": 1e-9}
    found = minimize(cost, u, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.clip(np.asarray(found.x, np.float64), problem.low, problem.high)


def _freed(problem: Problem, u: Array, target: Array, weights: Array) -> Array:
    """A fit with its coefficients solved for once more: one that fell to nearly 0 has no slope by
    its logarithm any longer, and would stay there."""
    form, values = problem.form, problem.outward(u)
    linear = {name for name, _ in form.terms}
    at = {n: float(v) for n, v in zip(form.names, values, strict=True) if n not in linear}
    relative = np.sqrt(weights) / (target if form.logarithmic else problem.spread)
    solved, _ = _solved(form, problem.points, target, relative, at)
    return problem.inward(solved)


def _starts(problem: Problem, target: Array, weights: Array, seed: int) -> Array:
    """Where searches begin, [k, p]: the form's own guesses, or the best of its grid."""
    form, draw = problem.form, np.random.default_rng(seed)
    if form.guess is not None:
        return problem.inward(form.guess(problem.points, target))
    searched = [p for p in form.parameters if p.starts]
    grid = list(itertools.product(*(p.starts for p in searched)))
    if len(grid) > GRID:
        grid = [grid[i] for i in sorted(draw.choice(len(grid), GRID, replace=False))]
    few: Index = np.sort(draw.permutation(len(target))[:SOLVED]).astype(np.int64)
    points, y, w = select(problem.points, few), target[few], np.sqrt(weights[few])
    relative = w / y if form.logarithmic else w / problem.spread
    names = [parameter.name for parameter in searched]
    every = [dict(zip(names, at, strict=True)) for at in grid]
    solved = [_solved(form, points, y, relative, at) for at in every]
    order = np.argsort([error for _, error in solved], kind="stable")[:32]
    return problem.inward(np.array([solved[i][0] for i in order]))


def _solved(
    form: Form, points: Points, y: Array, relative: Array, at: Mapping[str, float]
) -> tuple[Array, float]:
    """The parameters with coefficients that fit best by least squares, and how well they do."""
    values = {name: np.array([value]) for name, value in at.items()}
    features = [np.broadcast_to(shape(values, points)[0], y.shape) for _, shape in form.terms]
    fixed = [g for (name, _), g in zip(form.terms, features, strict=True) if not name]
    rest = y - sum(fixed) if fixed else y
    by_name: dict[str, Array] = {}
    for (name, _), g in zip(form.terms, features, strict=True):
        if name:
            by_name[name] = by_name[name] + g if name in by_name else g
    signs = {p.name: p.low < 0 for p in form.parameters}
    matrix = [g * relative for g in by_name.values()]
    mirrored = [-g * relative for name, g in by_name.items() if signs[name]]
    stacked = np.nan_to_num(np.stack(matrix + mirrored, 1), posinf=1e150, neginf=-1e150)
    size = np.sqrt((stacked**2).mean(0)) + 1e-300
    found, error = nnls(stacked / size, rest * relative, maxiter=50 * stacked.shape[1])
    found = found / size
    solved = dict(at)
    backwards = iter(found[len(by_name) :])
    for name, value, width in zip(by_name, found, size, strict=False):
        worth = value - next(backwards) if signs[name] else max(value, 0.01 / len(by_name) / width)
        solved[name] = float(worth)
    return np.array([solved[name] for name in form.names]), float(error)
