"""How a rate falls: from 1 at x = 0 to `floor` at x = 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from treering.config import Invalid
from treering.schema import near

Decay = Callable[[float, float], float]


def linear(x: float, floor: float) -> float:
    """1 - x between 1 and the floor."""
    return floor + (1 - floor) * (1 - x)


def cosine(x: float, floor: float) -> float:
    """Half a cosine."""
    return floor + (1 - floor) * ((1 + math.cos(math.pi * x)) / 2)


def sqrt(x: float, floor: float) -> float:
    """1 - sqrt(x): steep at first (arXiv 2511.18903)."""
    return floor + (1 - floor) * (1 - math.sqrt(x))


def exponential(x: float, floor: float) -> float:
    """By the same factor at each step (arXiv 2403.08763, equation of the annealing phase)."""
    return float(floor**x)


def rsqrt(x: float, floor: float, steepness: float = 10.0) -> float:
    """As 1 / sqrt(1 + steepness * x), stretched so that it ends at the floor (arXiv 2403.08763)."""
    end = 1 / math.sqrt(1 + steepness) - 1
    return 1 + (floor - 1) * ((1 / math.sqrt(1 + steepness * x) - 1) / end)


KINDS: dict[str, Decay] = {
    "linear": linear,
    "cosine": cosine,
    "1-sqrt": sqrt,
    "exponential": exponential,
    "rsqrt": rsqrt,
}


def falling(name: str, floor: float, where: str) -> Decay:
    """The decay of that name. Raises Invalid, with the keys under `where`, for an unknown name and
    for an exponential decay to 0, which would be a jump."""
    if name not in KINDS:
        raise Invalid(f"{where}.shape = {name!r}{near(name, list(KINDS))}")
    if not 0 <= floor <= 1:
        raise Invalid(f"{where}.floor = {floor}: a share of the rate, in [0, 1]")
    if name == "exponential" and floor == 0:
        raise Invalid(f"{where}.floor = 0: an exponential decay never gets there; give 0.01, say")
    return KINDS[name]
