"""Refs name samples, a Batch holds them.

A sample is `length + 1` neighbouring tokens of a corpus: `length` predictions. Its name is the
pair (source, index): the corpus's number in the recipe, and the sample's number in its store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Refs:
    """Names of n samples, no tokens: source int64[n], index int64[n]."""

    source: NDArray[np.int64]
    index: NDArray[np.int64]

    def __post_init__(self) -> None:
        assert self.source.shape == self.index.shape and self.source.ndim == 1

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice | NDArray[np.int64] | NDArray[np.bool_]) -> Refs:
        return Refs(self.source[rows], self.index[rows])

    def pairs(self) -> list[tuple[int, int]]:
        """The names as (source, index), for sets and messages."""
        return list(zip(self.source.tolist(), self.index.tolist(), strict=True))


def refs(pairs: list[tuple[int, int]]) -> Refs:
    """Refs from (source, index) pairs."""
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return Refs(both[:, 0].copy(), both[:, 1].copy())


def join(*parts: Refs) -> Refs:
    """The parts one after another."""
    return Refs(
        np.concatenate([part.source for part in parts]),
        np.concatenate([part.index for part in parts]),
    )


@dataclass(frozen=True)
class Recorded:
    """What was once predicted of n samples, or of those that are `there` bool[n]: `ids` of the
    likeliest tokens, int32[n, length, top], and the `logs` of their chances, float16 of that shape.
    """

    ids: NDArray[np.int32]
    logs: NDArray[np.float16]
    there: NDArray[np.bool_]

    def __getitem__(self, rows: slice | NDArray[np.bool_]) -> Recorded:
        return Recorded(self.ids[rows], self.logs[rows], self.there[rows])


@dataclass(frozen=True)
class Batch:
    """The samples of one step.

    tokens int64[n, length + 1]; replayed bool[n]: drawn from the memory rather than fresh.
    `step` counts from 0 through the whole run, `phase` is the phase's number; `begins_phase` and
    `ends_phase` mark its first and last step. `recorded`: what was predicted of the rows when they
    were first seen, where a run keeps that.
    """

    tokens: NDArray[np.int64]
    refs: Refs
    replayed: NDArray[np.bool_]
    step: int
    phase: int
    ends_phase: bool
    begins_phase: bool = False
    recorded: Recorded | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            self.tokens[rows],
            self.refs[rows],
            self.replayed[rows],
            self.step,
            self.phase,
            self.ends_phase and rows.indices(len(self))[1] == len(self),
            self.begins_phase and rows.indices(len(self))[0] == 0,
            self.recorded and self.recorded[rows],
        )

    def only(self, rows: NDArray[np.bool_]) -> Batch:
        """Some of its rows, as a step that stands where this one does."""
        tokens, refs, replayed = self.tokens[rows], self.refs[rows], self.replayed[rows]
        recorded = self.recorded and self.recorded[rows]
        return replace(self, tokens=tokens, refs=refs, replayed=replayed, recorded=recorded)

    @property
    def predicted(self) -> int:
        """Tokens that this batch predicts: its rows times the sample length."""
        rows, length = self.tokens.shape
        return int(rows * (length - 1))

    @property
    def replayed_tokens(self) -> int:
        """Those of them that are replayed."""
        return int(self.replayed.sum() * (self.tokens.shape[1] - 1))
