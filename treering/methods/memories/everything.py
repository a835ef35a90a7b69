"""All samples offered so far: the paper's infinite buffer, without a buffer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from treering.batch import Refs
from treering.protocols import MemoryState
from treering.rng import permute


@dataclass(frozen=True)
class Everything:
    """Uniform over everything seen, in O(1) memory at any size (arXiv 2508.01908, Algorithm 1).

    The stores keep what was trained on, and a corpus is seen in the order of its places; so the
    memory's contents are the counts seen so far, and a draw is arithmetic on them.
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
        ends = np.cumsum(seen)
        total = int(ends[-1])
        ranks = permute(np.arange(min(count, total)), total, at)
        source = np.searchsorted(ends, ranks, side="right").astype(np.int64)
        return Refs(source, ranks - (ends - seen)[source])
