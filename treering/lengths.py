"""How many steps each phase has: as many as its tokens need."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

import numpy as np

from treering.plan import Planner
from treering.position import State


def lengths(planner: Planner) -> tuple[int, ...]:
    """Steps of each phase: as many as its tokens need, counting trained ones under "total",
    fresh ones under "fresh" and "batch"."""
    if planner.budget != "fresh":
        return tuple(ceil(Fraction(stage.samples, planner.rows)) for stage in planner.stages)
    found: list[int] = []
    state = planner.start()
    for phase, stage in enumerate(planner.stages):
        state = replace(state, phase=phase, phase_step=0, started=state.positions)
        steps, fresh = _fresh_steps(planner, state, stage.samples)
        found.append(steps)
        state = replace(state, positions=_advanced(planner, state, fresh))
    return tuple(found)


def _fresh_steps(planner: Planner, state: State, samples: int) -> tuple[int, int]:
    """Steps until `samples` fresh ones were seen, and how many were. Steps are counted one by
    one while the memory is too small to replay for certain, the rest by division."""
    t = fresh = 0
    x, begun = planner.replays, state.positions
    named = np.array(planner.stages[state.phase].weights) > 0
    while fresh < samples:
        seen = planner.seen(state.positions if planner.over == "all" else begun)
        held = planner.memory.held(int(seen.sum()))
        if held >= ceil(x) + min(planner.rows, int(seen[named].sum())):  # every step replays now
            rest = max(0, floor((samples - fresh - 1) / (planner.rows - x)))
            while fresh + _gain(planner, t, rest) < samples:
                rest += 1
            return t + rest, fresh + _gain(planner, t, rest)
        if held < max(1, floor(x)) and planner.over == "past":  # none ever does
            rest = ceil(Fraction(samples - fresh, planner.rows))
            return t + rest, fresh + rest * planner.rows
        _, count, _ = planner.split(replace(state, phase_step=t))
        t, fresh = t + 1, fresh + sum(count)
        positions = tuple(p + c for p, c in zip(state.positions, count, strict=True))
        state = replace(state, positions=positions)
    return t, fresh


def _gain(planner: Planner, t: int, steps: int) -> int:
    """Fresh samples of `steps` steps from the phase's step t on, if each of them replays."""
    return steps * planner.rows - floor((t + steps) * planner.replays) + floor(t * planner.replays)


def _advanced(planner: Planner, state: State, fresh: int) -> tuple[int, ...]:
    """The positions after `fresh` samples of a phase that begins here; its allotment repeats
    itself after as many samples as its weights add up to."""
    weights = planner.stages[state.phase].weights
    rounds, rest = divmod(fresh, sum(weights))
    each = zip(state.positions, weights, planner.allot(state, rest), strict=True)
    return tuple(p + rounds * w + count for p, w, count in each)
