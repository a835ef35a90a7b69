"""Laws of size, tokens and compute: powers with and without an asymptote, and the straight line."""

from __future__ import annotations

import numpy as np

from treering.analysis.laws.form import (
    Array,
    Form,
    coefficient,
    constant,
    exponent,
    logarithm,
    power,
    product,
    signed,
)

CHINCHILLA = Form(
    "chinchilla",
    "E + A/N^alpha + B/D^beta: Hoffmann et al., arXiv 2203.15556",
    ("N", "D"),
    (
        coefficient("E"),
        coefficient("A"),
        exponent("alpha"),
        coefficient("B"),
        exponent("beta"),
    ),
    (
        ("E", constant),
        ("A", product(power("N", "alpha"))),
        ("B", product(power("D", "beta"))),
    ),
    scaled=("N", "D"),
)


def asymptotic(x: str) -> Form:
    """A power of one column with an asymptote, `E + A/x^b`."""
    return Form(
        f"power of {x}",
        f"E + A/{x}^b",
        (x,),
        (coefficient("E"), coefficient("A"), exponent("b", 0.001)),
        (("E", constant), ("A", product(power(x, "b")))),
        scaled=(x,),
    )


def straight(x: str) -> Form:
    """A power of one column without an asymptote, `A/x^b`: a straight line on logarithmic axes."""
    return Form(
        f"straight power of {x}",
        f"A/{x}^b: arXiv 2508.01908 has x = 6N/(1 - share)",
        (x,),
        (coefficient("A"), exponent("b", 0.001)),
        (("A", product(power(x, "b"))),),
        scaled=(x,),
    )


def log_linear(x: str) -> Form:
    """A straight line in the logarithm, `L - m log x`: the competitor with a parameter fewer, which
    a fit of `E + A/x^b` with b near 0 is in disguise. It extrapolates through zero."""
    return Form(
        f"log-linear in {x}",
        f"L - m log {x}: what the figures of arXiv 2508.01908 draw",
        (x,),
        (signed("L"), signed("m")),
        (("L", constant), ("m", logarithm(x))),
        scaled=(x,),
    )


def keep_rate(compute: Array | float) -> Array:
    """The best share of tokens that a quality filter keeps, in percent, by training FLOPs:
    4e-5 C^0.25, at most 100 (arXiv 2507.12466). More compute: filter less."""
    return np.asarray(np.minimum(4e-5 * np.asarray(compute, np.float64) ** 0.25, 100.0))


KEPT = Form(
    "keep rate",
    "F C^e, in percent of the tokens kept: arXiv 2507.12466",
    ("C",),
    (coefficient("F"), exponent("e", 0.001, 2.0, (0.25,))),
    (("F", product(power("C", "e", +1))),),
    scaled=("C",),
)


def compute_multiplier(loss: float, law: tuple[float, float], other: tuple[float, float]) -> float:
    """How many times the compute that one data set needs another needs to reach a loss, the laws of
    both being `A / C^b`, given as (A, b). Of a data set against itself it is 1."""
    (a, b), (c, d) = law, other
    return float((c / loss) ** (1 / d) / (a / loss) ** (1 / b))
