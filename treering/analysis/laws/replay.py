"""Replay laws: loss on old corpora by replay share, model size and new tokens.

`share` is the share of the tokens that are of the old corpora. N: size, D: tokens since the new
corpus came, replayed ones too.
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
    saturating,
    shifted,
    stretched,
)

E, FLOOR = coefficient("E"), Parameter("epsilon", 1e-6, 2.0, starts=(1e-4, 1e-3, 0.01, 0.1))
GAMMA = exponent("gamma", 0.01, 5.0, (0.05, 0.15, 0.4, 1.0))
WIDTH = Parameter("a0", 1e-6, 10.0, starts=(1e-3, 0.02, 0.2))
STRETCH = exponent("q", 0.05, 3.0, (0.2, 0.5, 1.0))
RATE = Parameter("B", 1e-2, 1e7, starts=(3.0, 100.0, 3000.0))
SIZE = exponent("alpha")

FLOORED = Form(
    "replay-power",
    "E + C/(a + epsilon)^gamma: a steep drop from 0 and a slow tail",
    ("share",),
    (E, coefficient("C"), FLOOR, GAMMA),
    (("E", constant), ("C", product(shifted("share", "epsilon", "gamma")))),
)

STRETCHED = Form(
    "replay-stretched",
    "base + K exp(-(a/a0)^q), base measured",
    ("share", "base"),
    (coefficient("K"), WIDTH, STRETCH),
    (("", column("base")), ("K", product(stretched("share", "a0", "q")))),
)


def _plain(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """exp(-a/a0)."""
    g = np.exp(-points["share"] / values["a0"])
    return g, {"a0": g * points["share"] / values["a0"] ** 2}


PLAIN = Form(
    "replay-exponential",
    "c + k exp(-a/a0): the competitor that cannot follow the drop",
    ("share",),
    (coefficient("c"), coefficient("k"), Parameter("a0", 1e-6, 100.0, starts=(0.01, 0.1, 1.0))),
    (
        ("c", constant),
        ("k", _plain),
    ),
)


# With N and D fixed the injection law is base + K/(1 + B a)^alpha.
INJECTION = Form(
    "bethune",
    "L0 + A D^beta / ((1 + B a) N)^alpha, L0 measured: Bethune et al., arXiv 2502.06042",
    ("N", "D", "share", "base"),
    (coefficient("A"), exponent("beta"), RATE, SIZE),
    (
        ("", column("base")),
        (
            "A",
            product(power("D", "beta", +1), saturating("share", "B", "alpha"), power("N", "alpha")),
        ),
    ),
    scaled=("N", "D"),
)

INJECTION_AT_SIZE = Form(
    "bethune-at-size",
    "L0 + K/(1 + B a)^alpha, L0 measured: the injection law at one size and budget",
    ("share", "base"),
    (coefficient("K"), RATE, exponent("alpha", 0.01, 3.0)),
    (("", column("base")), ("K", product(saturating("share", "B", "alpha")))),
)

GRID = Form(
    "replay",
    "E + A/N^alpha + F D^sigma / (N^nu (1 + B a)^gamma): loss by size, share and new tokens",
    ("N", "D", "share"),
    (
        *(E, coefficient("A"), SIZE, coefficient("F"), exponent("sigma", 0.01, 2.0, (0.1, 0.4))),
        *(exponent("nu", 0.01, 3.0, (0.1, 0.4)), RATE, GAMMA),
    ),
    (
        ("E", constant),
        ("A", product(power("N", "alpha"))),
        (
            "F",
            product(power("D", "sigma", +1), power("N", "nu"), saturating("share", "B", "gamma")),
        ),
    ),
    scaled=("N", "D"),
)


def _rehearsed(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """(D0 + a D)^-beta: old tokens, D0 of them from before and a D replayed."""
    total = values["D0"] + points["share"] * points["D"]
    x = -np.log(total)
    return values["beta"] * x, {"beta": x, "D0": -values["beta"] / total}


# Old loss rises with D where a = 0, and falls at a large share: what is rehearsed is still learned.
FORGETTING = Form(
    "forgetting",
    "E + A/N^alpha + B/(D0 + a D)^beta + F D^sigma N^nu exp(-(a/a0)^q): old loss by what old "
    "tokens still teach, and by what new ones undo",
    ("N", "D", "share"),
    (
        *(E, coefficient("A"), SIZE, coefficient("B")),
        *(Parameter("D0", 1e-3, 1e3, starts=(0.1, 1.0, 10.0)), exponent("beta")),
        *(coefficient("F"), exponent("sigma", 0.01, 2.0, (0.1, 0.4))),
        *(Parameter("nu", -2.0, 2.0, log=False, starts=(-0.2, 0.2)), WIDTH, STRETCH),
    ),
    (
        ("E", constant),
        ("A", product(power("N", "alpha"))),
        ("B", product(_rehearsed)),
        (
            "F",
            product(power("D", "sigma", +1), power("N", "nu", +1), stretched("share", "a0", "q")),
        ),
    ),
    scaled=("N", "D"),
)

JOINT = Form(
    "effective-size",
    "A / ((1 + B a) N)^alpha: replay as more parameters, one law for all sizes and shares; "
    "retained or learned loss of arXiv 2508.01908's grid",
    ("N", "share"),
    (coefficient("A"), RATE, SIZE),
    (("A", product(saturating("share", "B", "alpha"), power("N", "alpha"))),),
    scaled=("N",),
)

JOINT_OFFSET = Form(
    "effective-size with an asymptote",
    "E + A / ((1 + B a) N)^alpha",
    ("N", "share"),
    (E, *JOINT.parameters),
    (("E", constant), *JOINT.terms),
    scaled=("N",),
)


def _multiplied(values: Values, points: Points) -> tuple[Array, dict[str, Array]]:
    """(m a + epsilon)^-gamma, m for the points of the other rule alone."""
    rule, share = points["rule"], points["share"]
    effective = share * np.where(rule > 0, values["m"], 1.0)
    total = effective + values["epsilon"]
    x = -np.log(total)
    slope = -values["gamma"] / total
    by_m = slope * np.where(rule > 0, share, 0.0)
    return values["gamma"] * x, {"gamma": x, "epsilon": slope, "m": by_m}


MULTIPLIER = Form(
    "replay-multiplier",
    "L(a, rule) = L(m a, uniform), L the power with a floor: what a rule of selection is worth. "
    "The column rule is 1 where the rule chose, else 0",
    ("share", "rule"),
    (*FLOORED.parameters, Parameter("m", 0.01, 100.0, starts=(0.5, 1.0, 2.0))),
    (("E", constant), ("C", product(_multiplied))),
)
