"""All samples offered so far, each corpus with an equal share of the draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treering.batch import Refs, join, refs
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
        parts, rounds = [refs([])], [np.zeros(0, np.int64)]
        for source in np.flatnonzero(seen):
            n = int(seen[source])
            turn = np.arange(min(count, n))
            parts.append(Refs(np.full_like(turn, source), permute(turn, n, key(at, int(source)))))
            rounds.append(turn)
        drawn, turns = join(*parts), np.concatenate(rounds)
        luck = generator(at, "round").random(len(turns))
        return drawn[np.lexsort((luck, turns))[:count]]
