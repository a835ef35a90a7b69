"""All samples offered so far, each corpus with an equal share of the draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treering.batch import Refs
from treering.protocols import MemoryState
from treering.rng import generator, key, permute


@dataclass(frozen=True)
class Balanced:
    """Equal share per corpus seen, uniform within a corpus, so that small or early corpora are
    not drowned by large ones.

    A draw goes round the corpora, in a new random order each round; a corpus that has nothing
    left is passed over. Like `Everything` it needs no state.
    """

    def held(self, seen: int) -> int:
        return seen

    def empty(self, seen: NDArray[np.int64], at: int) -> MemoryState:
        return {}

    def offer(
        self, state: MemoryState, seen: NDArray[np.int64], fresh: Refs, at: int
    ) -> MemoryState:
        return state

    def draw(self, state: MemoryState, seen: NDArray[np.int64], count: int, at: int) -> Refs:
        sources = np.flatnonzero(seen)
        turns = np.minimum(seen[sources], count)
        source = np.repeat(sources, turns)
        turn = np.arange(len(source)) - np.repeat(np.cumsum(turns) - turns, turns)
        luck = generator(at, "round").random(len(turn))
        chosen = np.lexsort((luck, turn))[:count]
        source, turn = source[chosen], turn[chosen]
        keys = np.array([key(at, each) for each in source.tolist()], np.uint64)
        return Refs(source, permute(turn, seen[source], keys))
