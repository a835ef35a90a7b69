"""A law's form: a sum of terms, each a coefficient times a shape, with its gradient.

    L(x) = sum_k c_k g_k(x; exponents)

Coefficients enter linearly, so they are solved for where a fit begins; what is in a shape is
searched. Parameters may have leading axes: [..., p] gives [..., n], so that thousands of resamples
are predicted at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Index = NDArray[np.bool_] | NDArray[np.int64]
Points = Mapping[str, Array]  # columns of equal length
Values = Mapping[str, Array]  # parameters by name, each [..., 1]
Shape = Callable[[Values, Points], tuple[Array, dict[str, Array]]]  # g, and dg by parameter
Factor = Callable[[Values, Points], tuple[Array, dict[str, Array]]]  # log g, and its gradient
Constraint = Callable[[Values, Points], tuple[Array, dict[str, Array]]]  # holds where <= 0
TINY = 1e-300


@dataclass(frozen=True)
class Parameter:
    """A parameter, positive and searched by its logarithm unless `log` is off. `starts`: where a
    search begins; a coefficient has none, it is solved for."""

    name: str
    low: float = 1e-8
    high: float = 1e4
    log: bool = True
    starts: tuple[float, ...] = ()


@dataclass(frozen=True)
class Form:
    """A law without its numbers.

    terms: coefficient and shape; a coefficient's name may be "" for 1. scaled: columns that a fit
    divides by their geometric means, so that a coefficient is what its term is worth in the middle
    of the data. logarithmic: residuals are those of log L, else those of L over its spread.
    constraint: of the parameters, on the box that the points span. columns: all that it reads.
    guess: starts of its own, [k, p], where a grid of starts would be too large.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    terms: tuple[tuple[str, Shape], ...]
    scaled: tuple[str, ...] = ()
    logarithmic: bool = True
    constraint: Constraint | None = None
    guess: Callable[[Points, Array], Array] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(parameter.name for parameter in self.parameters)

    def values(self, parameters: Array) -> dict[str, Array]:
        """The parameters [..., p] by name, each [..., 1]."""
        return {name: parameters[..., i, None] for i, name in enumerate(self.names)}

    def predict(self, parameters: Array, points: Points) -> Array:
        """The law's value at n points: [..., n]."""
        values = self.values(np.asarray(parameters, np.float64))
        return _sum([_worth(values, c) * shape(values, points)[0] for c, shape in self.terms])

    def gradient(self, parameters: Array, points: Points) -> tuple[Array, Array]:
        """The law's value [..., n] and its gradient by each parameter [..., p, n]."""
        values, place = self.values(parameters), {name: i for i, name in enumerate(self.names)}
        n = len(points[self.columns[0]])
        slopes = np.zeros((*parameters.shape, n))
        parts = []
        for coefficient, shape in self.terms:
            g, by = shape(values, points)
            worth = _worth(values, coefficient)
            parts.append(worth * g)
            if coefficient:
                slopes[..., place[coefficient], :] += g
            for name, slope in by.items():
                slopes[..., place[name], :] += worth * slope
        return np.broadcast_to(_sum(parts), (*parameters.shape[:-1], n)), slopes


def _worth(values: Values, coefficient: str) -> Array:
    return values[coefficient] if coefficient else np.ones(1)


def _sum(parts: Sequence[Array]) -> Array:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def log(x: Array) -> Array:
    """The logarithm, of 0 a number so low that its exponential is 0."""
    return np.log(np.maximum(x, TINY))


# -- shapes --------------------------------------------------------------------------------------


def constant(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """1 at every point."""
    return np.ones(len(next(iter(points.values())))), {}


def column(name: str, sign: float = 1) -> Shape:
    """A column as it is."""
    return lambda values, points: (sign * points[name], {})


def logarithm(name: str) -> Shape:
    """Minus the logarithm of a column."""
    return lambda values, points: (-log(points[name]), {})


def product(*factors: Factor) -> Shape:
    """The product of factors, which are given by their logarithms."""

    def shape(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
        found = [factor(values, points) for factor in factors]
        g = np.exp(_sum([logarithm for logarithm, _ in found]))
        slopes: dict[str, Array] = {}
        for _, by in found:
            for name, slope in by.items():
                slopes[name] = slopes[name] + g * slope if name in slopes else g * slope
        return g, slopes

    return shape


# -- factors -------------------------------------------------------------------------------------


def power(name: str, exponent: str, sign: float = -1) -> Factor:
    """column^(sign * exponent): by default a falling power."""

    def factor(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
        x = sign * log(points[name])
        return values[exponent] * x, {exponent: x}

    return factor


def shifted(name: str, shift: str, exponent: str) -> Factor:
    """(column + shift)^-exponent."""

    def factor(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
        total = points[name] + values[shift]
        x = -np.log(total)
        return values[exponent] * x, {exponent: x, shift: -values[exponent] / total}

    return factor


def saturating(name: str, rate: str, exponent: str) -> Factor:
    """(1 + rate * column)^-exponent."""

    def factor(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
        total = 1 + values[rate] * points[name]
        x = -np.log(total)
        return values[exponent] * x, {exponent: x, rate: -values[exponent] * points[name] / total}

    return factor


def stretched(name: str, width: str, exponent: str) -> Factor:
    """exp(-(column / width)^exponent)."""

    def factor(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
        ratio = log(points[name]) - np.log(values[width])
        x = np.exp(np.minimum(values[exponent] * ratio, 700))
        return -x, {exponent: -x * ratio, width: x * values[exponent] / values[width]}

    return factor


def exponential(name: str, rate: str, sign: float = -1) -> Factor:
    """exp(sign * rate * column)."""
    return lambda values, points: (
        sign * values[rate] * points[name],
        {rate: sign * points[name]},
    )


# -- parameters ----------------------------------------------------------------------------------


def coefficient(name: str, low: float = 1e-6, high: float = 1e4) -> Parameter:
    """What is not negative and enters linearly."""
    return Parameter(name, low, high)


def signed(name: str, bound: float = 1e4) -> Parameter:
    """What enters linearly with either sign."""
    return Parameter(name, -bound, bound, log=False)


def exponent(
    name: str, low: float = 0.01, high: float = 3.0, starts: Sequence[float] = (0.1, 0.3, 0.8)
) -> Parameter:
    """A positive exponent, bounded: at 0 a power degenerates to a logarithm."""
    return Parameter(name, low, high, starts=tuple(starts))


def bounded(form: Form, name: str, low: float, high: float) -> Form:
    """The form with other bounds of one parameter."""
    assert name in form.names
    narrowed = tuple(
        replace(p, low=low, high=high, starts=tuple(s for s in p.starts if low <= s <= high)
                or ((low * high) ** 0.5,) * bool(p.starts)) if p.name == name else p
        for p in form.parameters
    )  # fmt: skip
    return replace(form, parameters=narrowed)
