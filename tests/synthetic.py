"""Points that a law made: for every kind of form a grid, parameters, and noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from treering.analysis.laws import KINDS
from treering.analysis.laws.form import Array, Form
from treering.analysis.laws.mixing import exponential_mixing, linear, shares
from treering.analysis.laws.points import scale, units

NOISE = 0.002
SIZES, TOKENS = np.geomspace(4e5, 3.2e6, 4), np.geomspace(1e6, 4e7, 8)
SHARES = np.array([0, 0.02, 0.05, 0.15, 0.4, 1.0])
FINE = np.array([0, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0])


def grid(**axes: Sequence[float] | Array) -> dict[str, Array]:
    """Every combination of the axes' values."""
    found = np.meshgrid(*(np.asarray(axis, np.float64) for axis in axes.values()), indexing="ij")
    return {name: axis.ravel() for name, axis in zip(axes, found, strict=True)}


def _areas() -> dict[str, Array]:
    """Areas of schedules that anneal from 0 to 60% of their length."""
    found = grid(S1=np.geomspace(1, 30, 8), annealed=[0, 0.2, 0.4, 0.6])
    return {"S1": found["S1"], "S2": found["annealed"] * np.sqrt(found["S1"])}


def _continued() -> dict[str, Array]:
    found = grid(S1_new=np.geomspace(0.05, 20, 10), before=[5.0, 15.0], annealed=[0, 0.3, 0.6])
    new = found["annealed"] * np.sqrt(found["S1_new"])
    return {"S1": found["before"] + found["S1_new"], "S1_new": found["S1_new"],
            "S2_old": found["before"] ** 0.5, "S2_new": new}  # fmt: skip


def _mixtures(corpora: int, n: int) -> dict[str, Array]:
    return shares(np.random.default_rng(1).dirichlet(np.ones(corpora), n))


def _domains() -> dict[str, Array]:
    """Six domains, each with its loss before and how fast it fell."""
    table = grid(N=SIZES[:3], D=TOKENS[::2], share=SHARES[1:], domain=range(6))
    which = table.pop("domain").astype(int)
    k1, k2 = np.array([1.2, 1.8, 2.4, 3.1, 2.0, 2.7]), np.array([0.3, 0.1, 0.6, 0.2, 0.5, 0.35])
    return table | {"k1": k1[which], "k2": k2[which]}


OF_DCPT = grid(N=SIZES[:3], D=TOKENS, share=SHARES)
OF_X = grid(x=np.geomspace(1, 100, 14))
OF_SHARE = grid(share=FINE)
OLD = grid(share=FINE, base=[2.17])
INJECTED = grid(N=SIZES, D=TOKENS[::2], share=SHARES[:5], base=[2.2])

# Points and parameters: in the units of `Form.scaled`, the middle of the points.
TRUTHS: dict[str, tuple[dict[str, Array], list[float]]] = {
    "chinchilla": (grid(N=SIZES, D=TOKENS), [1.5, 0.8, 0.35, 0.6, 0.3]),
    "power": (OF_X, [1.5, 1.2, 0.35]),
    "straight-power": (OF_X, [2.5, 0.2]),
    "log-linear": (OF_X, [2.4, 0.3]),
    "keep-rate": (grid(C=np.geomspace(1e18, 1e23, 10)), [8.0, 0.25]),
    "cmr-ratio": (grid(R=[0.125, 0.25, 1 / 3, 0.5, 0.65, 0.75, 0.9, 1]), [-0.4, 0.3, 1.9]),
    "cmr-domain": (grid(T=np.geomspace(1, 40, 14)), [0.5, -0.4, -0.9]),
    "cmr-general": (grid(T=np.geomspace(1, 40, 40)), [-0.2, 1.0, 0.5, 0.4, -0.1]),
    "cmr-budget": (grid(T=np.geomspace(5, 250, 14)), [0.7, 0.2, -0.3]),
    "dcpt-l1": (OF_DCPT, [1.2, 0.8, 0.35, 0.3, 0.3, 1.0, 0.1, 0.8]),
    "dcpt-l2": (OF_DCPT, [1.2, 0.8, 0.35, 0.3, 0.3, 0.6, 0.1, 0.8, 0.1]),
    "dcpt": (OF_DCPT, [1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8]),
    "dcpt-l4": (OF_DCPT, [1.2, 0.8, 0.35, 0.3, 0.3, 1.0, -0.5, 4.0]),
    "dcpt-l5": (OF_DCPT, [1.2, 0.8, 0.35, 0.6, 0.3, 0.05]),
    "dcpt-cross": (_domains(), [1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8, 0.5, 1.0, 1.0]),
    "replay": (grid(N=SIZES, D=TOKENS[::2], share=SHARES), [1.2, 0.8, 0.3, 0.5, 0.3, 0.2, 80, 0.4]),
    "forgetting": (grid(N=SIZES, D=TOKENS, share=SHARES[:5]),
                   [1.6, 0.7, 0.3, 0.9, 1.5, 0.3, 2.0, 0.25, 0.1, 0.01, 0.4]),
    "replay-share": (OF_SHARE, [1.5, 0.6, 0.003, 0.2]),
    "replay-stretched": (OLD, [1.4, 0.025, 0.35]),
    "replay-exponential": (OF_SHARE, [2.3, 1.2, 0.05]),
    "replay-multiplier": (grid(share=FINE, rule=[0, 1]), [1.5, 0.6, 0.003, 0.2, 2.5]),
    "injection": (INJECTED, [0.6, 0.4, 300.0, 0.3]),
    "injection-at-size": (OLD, [1.4, 300.0, 0.45]),
    "effective-size": (grid(N=SIZES, share=SHARES), [2.5, 6.0, 0.15]),
    "effective-size-asymptote": (grid(N=SIZES, share=SHARES), [1.2, 1.5, 6.0, 0.3]),
    "bimix": (grid(share=FINE[2:], D=TOKENS), [0.8, 0.12, 0.3, 1.9]),
    "annealing": (_areas(), [1.8, 0.9, 0.4, 0.1]),
    "annealing-continued": (_continued(), [1.5, 0.9, 0.4, 0.1, 0.08, 0.6, 2.0, 0.5]),
    "mixing-linear": (_mixtures(4, 24), [2.9, 3.4, 3.1, 4.0]),
    "mixing-exponential": (_mixtures(4, 40), [2.2, 0.9, -2.0, 0.4, -0.5]),
    "mixing-implicit": (_mixtures(3, 60), [2.0, 0.5, -3.0, 0.5, 0.6, 0.5, -2.5]),
}  # fmt: skip


def form_of(kind: str) -> Form:
    """The form of a kind, those of mixtures included."""
    made = {
        "mixing-linear": linear(4),
        "mixing-exponential": exponential_mixing(4),
        "mixing-implicit": exponential_mixing(3, 2),
    }
    return made[kind] if kind in made else KINDS[kind]


def truth(kind: str) -> tuple[Form, dict[str, Array], Array]:
    """A kind's form, its points, and the law there."""
    form, (points, parameters) = form_of(kind), TRUTHS[kind]
    law = form.predict(np.array(parameters, np.float64), scale(points, units(form, points)))
    return form, points, law


def noisy(form: Form, law: Array, seed: int, noise: float = NOISE) -> Array:
    """The law with noise, relative to its value, or to its spread where residuals are plain."""
    drawn = np.random.default_rng(seed).normal(0, noise, len(law))
    return law * np.exp(drawn) if form.logarithmic else law + drawn * law.std()
