"""Where the plan stands between two steps, and how that is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.protocols import MemoryState


@dataclass(frozen=True)
class State:
    """Where the plan stands between two steps.

    positions: fresh samples taken of each corpus in the whole run; started: the positions when
    the phase began. `memory` holds what was offered so far, `drawn` what may be drawn. After a
    phase's last step it is still in that phase.
    """

    step: int
    phase: int
    phase_step: int
    positions: tuple[int, ...]
    started: tuple[int, ...]
    memory: MemoryState
    drawn: MemoryState


def save(state: State) -> tuple[Mapping[str, Any], Mapping[str, NDArray[np.int64]]]:
    """A State as plain numbers and named arrays."""
    numbers = {name: getattr(state, name) for name in ("step", "phase", "phase_step")}
    numbers |= {"positions": list(state.positions), "started": list(state.started)}
    both = {"memory": state.memory, "drawn": state.drawn}
    return numbers, {f"{a}.{b}": array for a, arrays in both.items() for b, array in arrays.items()}


def restore(numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[np.int64]]) -> State:
    """The State that `save` took apart."""

    def named(part: str) -> MemoryState:
        return {n.split(".")[1]: a for n, a in arrays.items() if n.startswith(part + ".")}

    return State(
        numbers["step"],
        numbers["phase"],
        numbers["phase_step"],
        tuple(numbers["positions"]),
        tuple(numbers["started"]),
        named("memory"),
        named("drawn"),
    )


def widened(state: State, start: State) -> State:
    """The State with the positions of corpora that came later, after the others."""
    return replace(
        state,
        positions=state.positions + start.positions[len(state.positions) :],
        started=state.started + start.started[len(state.started) :],
    )
