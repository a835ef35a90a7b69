"""Data-mixing laws: loss on one corpus by the shares of all, at a fixed size and budget.

Shares are columns "p0", "p1", ...; they sum to 1, so that of an exponential law only contrasts of
the rates are identified: the last share's rate is 0.
"""

from __future__ import annotations

import numpy as np

from treering.analysis.laws.form import (
    Array,
    Form,
    Parameter,
    Points,
    Shape,
    coefficient,
    column,
    constant,
    exponent,
    exponential,
    power,
    product,
    signed,
)

MIXING = "Ye et al., arXiv 2403.16952"


def shares(mixtures: Array) -> dict[str, Array]:
    """The columns of mixtures [n, k], renormalised: published ones are rounded."""
    rows = mixtures / mixtures.sum(1, keepdims=True)
    return {f"p{j}": rows[:, j] for j in range(rows.shape[1])}


def linear(corpora: int) -> Form:
    """Linear in the shares: RegMix's simplest regression, arXiv 2407.01492. Without an intercept,
    as the shares sum to 1."""
    names = [f"p{j}" for j in range(corpora)]
    return Form(
        "mixing-linear",
        "sum_j w_j p_j: linear regression of RegMix, arXiv 2407.01492",
        tuple(names),
        tuple(signed(f"w{j}") for j in range(corpora)),
        tuple((f"w{j}", column(name)) for j, name in enumerate(names)),
    )


def exponential_mixing(corpora: int, components: int = 1) -> Form:
    """c + sum_h k_h exp(sum_j t_hj p_j). Several components: the implicit domains of a validation
    set whose corpora are not those of training, their weights absorbed by c and k."""
    rates = [[f"t{h}.{j}" for j in range(corpora - 1)] for h in range(components)]
    parameters = [coefficient("c")]
    terms: list[tuple[str, Shape]] = [("c", constant)]
    for h, names in enumerate(rates):
        parameters.append(coefficient(f"k{h}", 1e-8))
        parameters += [Parameter(name, -60.0, 60.0, log=False) for name in names]
        factors = [exponential(f"p{j}", name, +1) for j, name in enumerate(names)]
        terms.append((f"k{h}", product(*factors)))

    def guess(points: Points, loss: Array) -> Array:
        return _guess(points, loss, corpora, components)

    return Form(
        "mixing-exponential" if components == 1 else f"mixing-exponential of {components}",
        f"c + sum_h k_h exp(sum_j t_hj p_j): {MIXING}",
        tuple(f"p{j}" for j in range(corpora)),
        tuple(parameters),
        tuple(terms),
        guess=guess,
    )


def _guess(points: Points, loss: Array, corpora: int, components: int) -> Array:
    """Given c, log(L - c) is linear in the shares: a start for each of some c. Of several
    components each has a share of k, and rates apart by a spread that is drawn."""
    x = np.stack([np.ones_like(loss), *(points[f"p{j}"] for j in range(corpora - 1))], 1)
    draw, found = np.random.default_rng(0), []
    span = loss.max() - loss.min() + 1e-9
    for below in (0.02, 0.1, 0.3, 1.0, 3.0):
        c = max(loss.min() - below * span, 1e-3)
        solved = np.linalg.lstsq(x, np.log(np.maximum(loss - c, 1e-3 * span)), rcond=None)[0]
        for _ in range(1 if components == 1 else 6):
            start = [c]
            for _ in range(components):
                spread = 0.0 if components == 1 else draw.normal(0, 1.0, corpora - 1)
                start += [np.exp(solved[0]) / components, *(solved[1:] + spread)]
            found.append(start)
    return np.array(found)


BIMIX = Form(
    "bimix",
    "A/r^a (B/s^b + C), multiplied out as A is absorbed: the form is unconfirmed; arXiv 2405.14908",
    ("share", "D"),
    (coefficient("B"), exponent("a"), exponent("b"), coefficient("C")),
    (
        ("B", product(power("share", "a"), power("D", "b"))),
        ("C", product(power("share", "a"))),
    ),
    scaled=("D",),
)
