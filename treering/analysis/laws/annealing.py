"""Annealing-area laws: loss along a run by the areas of its learning-rate schedule.

S1 is the sum of the rates so far, S2 how much of it decayed, with memory:
S2(s) = sum_{i<=s} sum_{k<=i} (rate_{k-1} - rate_k) memory^(i-k). Tissue et al., arXiv 2408.11029.
"""

from __future__ import annotations

import numpy as np

from treering.analysis.laws.form import (
    Array,
    Form,
    Parameter,
    Points,
    Values,
    coefficient,
    column,
    constant,
    exponent,
    power,
    product,
)


def areas(rates: Array, memory: float = 0.99) -> tuple[Array, Array]:
    """S1 and S2 after each step of a run whose rates are given. Warm-up counts as decay below 0:
    leave its steps out of the points."""
    momentum, total, second = 0.0, 0.0, np.zeros(len(rates))
    for i, rate in enumerate(rates):
        momentum = memory * momentum + ((rates[i - 1] - rate) if i else 0.0)
        total += momentum
        second[i] = total
    return np.cumsum(rates), second


ANNEALING = Form(
    "annealing",
    "E + A/S1^alpha - C S2: Tissue et al., arXiv 2408.11029",
    ("S1", "S2"),
    (coefficient("E"), coefficient("A"), exponent("alpha"), coefficient("C")),
    (("E", constant), ("A", product(power("S1", "alpha"))), ("C", column("S2", -1))),
    scaled=("S1", "S2"),
)


def _shift(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """1 - (1 + G S1)^-delta, S1 of the continued run alone."""
    x = np.log1p(values["G"] * points["S1_new"])
    kept = np.exp(-values["delta"] * x)
    slope = values["delta"] * kept * points["S1_new"] / (1 + values["G"] * points["S1_new"])
    return 1 - kept, {"delta": x * kept, "G": slope}


CONTINUED = Form(
    "annealing-continued",
    "E + A/S1^alpha - C S2_old - C' S2_new + K (1 - (1 + G S1_new)^-delta): Wang et al., arXiv "
    "2505.07796. S1 is of both runs; K is 0 to first order where nothing shifts",
    ("S1", "S1_new", "S2_old", "S2_new"),
    (
        *ANNEALING.parameters,
        coefficient("C_new"),
        coefficient("K"),
        Parameter("G", 1e-4, 1e6, starts=(0.3, 3.0, 30.0)),
        exponent("delta", 0.01, 3.0, (0.1, 0.4, 1.0)),
    ),
    (
        ("E", constant),
        ("A", product(power("S1", "alpha"))),
        ("C", column("S2_old", -1)),
        ("C_new", column("S2_new", -1)),
        ("K", _shift),
    ),
    scaled=("S1", "S1_new", "S2_old", "S2_new"),
)
