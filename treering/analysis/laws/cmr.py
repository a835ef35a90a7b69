"""The critical mixture ratio: Gu, Yang et al., arXiv 2407.17467, EMNLP 2024.

    (a) L(R)      = a R^s + b                     loss by domain share R, at a fixed budget
    (b) dL_dom(T) = a1 T^s1 + b1                  change of domain loss by steps
    (c) dL_gen(T) = a2 T^s2 + a3 T^s3 + b2        change of general loss: it rises, then falls
    (d) T0        where d(dL_gen)/d(dL_dom) = -1/lambda
    (e) R(T)      = a4 T^s4 + b3                  the critical ratio by budget, T in 0.2B tokens

A law holds for one model size; `critical.py` decides by (b) to (d). Searches start away from
exponents of 0, where a power with a free coefficient and a free offset is a logarithm and a descent
is lost.
"""

from __future__ import annotations

import numpy as np

from treering.analysis.laws.form import (
    Array,
    Form,
    Parameter,
    constant,
    power,
    product,
    signed,
)

SOURCE = "Gu, Yang et al., arXiv 2407.17467"
RISING = (-2.0, -1.0, -0.5, -0.2, -0.1, 0.1, 0.2, 0.3, 0.5, 1.0)


def _power(name: str, x: str, a: str, s: str, b: str, *, logarithmic: bool = False) -> Form:
    return Form(
        name,
        f"{a} {x}^{s} + {b}: {SOURCE}",
        (x,),
        (signed(a), Parameter(s, -4.0, 4.0, log=False, starts=RISING), signed(b)),
        ((a, product(power(x, s, +1))), (b, constant)),
        scaled=(x,),
        logarithmic=logarithmic,
    )


RATIO = _power("cmr-ratio", "R", "a", "s", "b", logarithmic=True)
DOMAIN = _power("cmr-domain", "T", "a1", "s1", "b1")
GENERAL = Form(
    "cmr-general",
    f"a2 T^s2 + a3 T^s3 + b2: {SOURCE}",
    ("T",),
    (
        signed("a2"),
        Parameter("s2", -4.0, 4.0, log=False, starts=(-1.0, -0.3, 0.2)),
        signed("a3"),
        Parameter("s3", -4.0, 4.0, log=False, starts=(-0.5, 0.4, 0.7, 1.2)),
        signed("b2"),
    ),
    (
        ("a2", product(power("T", "s2", +1))),
        ("a3", product(power("T", "s3", +1))),
        ("b2", constant),
    ),
    scaled=("T",),
    logarithmic=False,
)
BUDGET = _power("cmr-budget", "T", "a4", "s4", "b3")


def critical_ratio(a4: float, s4: float, b3: float, tokens: Array | float) -> Array:
    """The critical domain share by budget in tokens: (e), whose T counts 0.2 billion tokens."""
    return np.asarray(a4 * (np.asarray(tokens, np.float64) / 2e8) ** s4 + b3)
