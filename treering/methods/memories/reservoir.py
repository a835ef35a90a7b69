"""A bounded memory that is uniform over all samples offered so far."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treering.batch import Refs
from treering.config import Invalid
from treering.protocols import MemoryState
from treering.rng import generator, permute


@dataclass(frozen=True)
class Reservoir:
    """Vitter's algorithm R over sample names: `samples` of them, 16 bytes each.

    The t-th sample offered (t from 0) goes to a slot drawn from [0, t]; slots beyond the capacity
    are dropped. State: source int64[samples], place int64[samples], the first `held` of them used.
    """

    samples: int = 10_000

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise Invalid(f"replay.memory.samples = {self.samples}: must be at least 1")

    def held(self, seen: int) -> int:
        return min(seen, self.samples)

    def empty(self, seen: NDArray[np.int64], at: int) -> MemoryState:
        state = {
            "source": np.zeros(self.samples, np.int64),
            "place": np.zeros(self.samples, np.int64),
        }
        total = int(seen.sum())
        if total:
            ends = np.cumsum(seen)
            ranks = permute(np.arange(self.held(total)), total, at)
            source = np.searchsorted(ends, ranks, side="right")
            state["source"][: len(ranks)] = source
            state["place"][: len(ranks)] = ranks - (ends - seen)[source]
        return state

    def offer(
        self, state: MemoryState, seen: NDArray[np.int64], fresh: Refs, at: int
    ) -> MemoryState:
        age = int(seen.sum()) + np.arange(len(fresh))
        slot = np.where(age < self.samples, age, generator(at).integers(0, age + 1))
        kept = slot < self.samples
        if not kept.any():
            return state
        source, place = state["source"].copy(), state["place"].copy()
        # Of several samples for one slot the last one stays, as if they had come one by one.
        source[slot[kept]], place[slot[kept]] = fresh.source[kept], fresh.index[kept]
        return {"source": source, "place": place}

    def draw(self, state: MemoryState, seen: NDArray[np.int64], count: int, at: int) -> Refs:
        held = self.held(int(seen.sum()))
        slots = permute(np.arange(min(count, held)), held, at)
        return Refs(state["source"][slots], state["place"][slots])
