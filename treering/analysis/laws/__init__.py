"""Laws of continual pre-training: forms, one fitter, intervals, hold-outs and what they answer.

    form -> points -> fitting (descent) -> bootstrap -> answers
                          \\-> holdout: which form to believe

A form is a value in `KINDS` or made by a function for given columns; `docs/laws.md` tells where
each comes from and what it may be trusted with.
"""

from __future__ import annotations

from treering.analysis.laws import annealing, cmr, dcpt, mixing, power, replay
from treering.analysis.laws.form import Form

KINDS: dict[str, Form] = {
    "chinchilla": power.CHINCHILLA,
    "power": power.asymptotic("x"),
    "straight-power": power.straight("x"),
    "log-linear": power.log_linear("x"),
    "keep-rate": power.KEPT,
    "cmr-ratio": cmr.RATIO,
    "cmr-domain": cmr.DOMAIN,
    "cmr-general": cmr.GENERAL,
    "cmr-budget": cmr.BUDGET,
    "dcpt-l1": dcpt.L1,
    "dcpt-l2": dcpt.L2,
    "dcpt": dcpt.L3,
    "dcpt-l4": dcpt.L4,
    "dcpt-l5": dcpt.L5,
    "dcpt-cross": dcpt.CROSS,
    "replay": replay.GRID,
    "forgetting": replay.FORGETTING,
    "replay-share": replay.FLOORED,
    "replay-stretched": replay.STRETCHED,
    "replay-exponential": replay.PLAIN,
    "replay-multiplier": replay.MULTIPLIER,
    "injection": replay.INJECTION,
    "injection-at-size": replay.INJECTION_AT_SIZE,
    "effective-size": replay.JOINT,
    "effective-size-asymptote": replay.JOINT_OFFSET,
    "bimix": mixing.BIMIX,
    "annealing": annealing.ANNEALING,
    "annealing-continued": annealing.CONTINUED,
}
