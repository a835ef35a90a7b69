"""D-CPT laws: loss by size N, tokens D and the share of the corpus that is scored.

`share` is that of the corpus whose loss it is: the domain's for the domain loss, 1 minus it for the
general loss. The two have fits of their own. Forms L1, L2, L4 and L5 are known from secondary
sources.
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
    constant,
    exponent,
    exponential,
    power,
    product,
    shifted,
)

SOURCE = "Que, Liu et al., arXiv 2406.01375"
COLUMNS = ("N", "D", "share")
MARGIN = 0.02  # in the logarithm: what a penalty may leave of a violation

E, A, ALPHA = coefficient("E"), coefficient("A"), exponent("alpha")
B, BETA, C = coefficient("B"), exponent("beta"), coefficient("C")
ETA = exponent("eta", 1.0, 8.0, (1.0, 2.0))
EPSILON = Parameter("epsilon", 1e-5, 2.0, starts=(0.003, 0.05, 0.4))
GAMMA = exponent("gamma", 0.01, 5.0, (0.1, 0.4, 1.2))
OF_SIZE = ("A", product(power("N", "alpha")))
OF_TOKENS = ("B", product(power("D", "beta")))
OF_SHARE = ("C", product(shifted("share", "epsilon", "gamma")))
INTERACTION = ("B", product(power("share", "eta", +1), power("D", "beta")))


def falls(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """That loss falls with the share everywhere on the points' box, as a sum that must not be
    positive: log of B eta / D_least^beta over C gamma / (1 + epsilon)^(gamma + 1).

    For eta >= 1 this is sufficient: the rising slope is largest at share 1, the falling one least.
    """
    least = np.log(points["D"].min())
    one, gamma = np.log1p(values["epsilon"]), values["gamma"]
    rising = np.log(values["B"]) + np.log(values["eta"]) - values["beta"] * least
    falling = np.log(values["C"]) + np.log(gamma) - (gamma + 1) * one
    return (rising - falling + MARGIN)[..., 0], {
        "B": (1 / values["B"])[..., 0],
        "eta": (1 / values["eta"])[..., 0],
        "beta": np.full_like(gamma[..., 0], -least),
        "C": (-1 / values["C"])[..., 0],
        "gamma": (-1 / gamma + one)[..., 0],
        "epsilon": ((gamma + 1) / (1 + values["epsilon"]))[..., 0],
    }


L1 = Form(
    "dcpt-l1",
    f"E + A/N^alpha + B/D^beta + C/(r + epsilon)^gamma: {SOURCE}; no interaction",
    COLUMNS,
    (E, A, ALPHA, B, BETA, C, EPSILON, GAMMA),
    (("E", constant), OF_SIZE, OF_TOKENS, OF_SHARE),
    scaled=("N", "D"),
)

L2 = Form(
    "dcpt-l2",
    f"E + A/N^alpha + B/D^beta + C/((r + epsilon)^gamma D^eta): {SOURCE}; the form is unconfirmed, "
    "at a fixed share it is not Chinchilla's",
    COLUMNS,
    (E, A, ALPHA, B, BETA, C, EPSILON, GAMMA, exponent("eta", 0.01, 3.0, (0.1, 0.4))),
    (
        ("E", constant),
        OF_SIZE,
        OF_TOKENS,
        ("C", product(shifted("share", "epsilon", "gamma"), power("D", "eta"))),
    ),
    scaled=("N", "D"),
)

L3 = Form(
    "dcpt-l3",
    f"E + A/N^alpha + B r^eta/D^beta + C/(r + epsilon)^gamma: {SOURCE}, the law",
    COLUMNS,
    (E, A, ALPHA, B, BETA, ETA, C, EPSILON, GAMMA),
    (("E", constant), OF_SIZE, INTERACTION, OF_SHARE),
    scaled=("N", "D"),
    constraint=falls,
)

L4 = Form(
    "dcpt-l4",
    f"E + A/N^alpha + B b^r/D^beta + C/c^r: {SOURCE}; the form is unconfirmed",
    COLUMNS,
    (
        *(E, A, ALPHA, B, BETA, C),
        Parameter("log_b", -5.0, 5.0, log=False, starts=(-1.0, 0.5)),
        Parameter("log_c", 0.01, 50.0, starts=(0.3, 2.0, 10.0)),
    ),
    (
        ("E", constant),
        OF_SIZE,
        ("B", product(exponential("share", "log_b", +1), power("D", "beta"))),
        ("C", product(exponential("share", "log_c"))),
    ),
    scaled=("N", "D"),
)


def _worth_of_other(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """(r + (1 - r) s)^-beta: a token of the other corpus is worth s of this one's."""
    r = points["share"]
    total = r + (1 - r) * values["s"]
    x = -np.log(total)
    return values["beta"] * x, {"beta": x, "s": -values["beta"] * (1 - r) / total}


L5 = Form(
    "dcpt-l5",
    f"E + A/N^alpha + B/(r D + (1 - r) s D)^beta: {SOURCE}; the form is unconfirmed",
    COLUMNS,
    (E, A, ALPHA, B, BETA, Parameter("s", 1e-6, 1.0, starts=(0.001, 0.05, 0.5))),
    (("E", constant), OF_SIZE, ("B", product(_worth_of_other, power("D", "beta")))),
    scaled=("N", "D"),
)


def _learnable(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """K^-mu with K = 1/k1 + w k2."""
    total = 1 / points["k1"] + values["w"] * points["k2"]
    x = -np.log(total)
    return values["mu"] * x, {"mu": x, "w": -values["mu"] * points["k2"] / total}


CROSS = Form(
    "dcpt-cross",
    f"L3 + F/K^mu, K = 1/k1 + w k2: {SOURCE}. k1: the domain's loss before, k2: how fast it falls "
    "at first; the weight of 1/k1 is 1, as F absorbs it",
    (*COLUMNS, "k1", "k2"),
    (
        *L3.parameters,
        coefficient("F"),
        exponent("mu", 0.01, 8.0, (0.5, 2.0)),
        Parameter("w", 1e-4, 1e3, starts=(0.3, 3.0)),
    ),
    (*L3.terms, ("F", product(_learnable))),
    scaled=("N", "D"),
    constraint=falls,
)
