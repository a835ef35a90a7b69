"""Which samples come next: State -> Plan(refs, replayed, State after).

Planning is integer arithmetic on the recipe and a small State, without I/O and without torch. It
is pure: the State after a step is a value that travels with the step's batch, and a checkpoint
saves that of the last *trained* batch, however far the reader ran ahead.

The fresh samples of a corpus are taken in a keyed random order, each once per epoch; its position
runs on through the whole run. The replay share is exact by error diffusion: step t of a phase
replays floor((t + 1) x) - floor(t x) samples, x = share * samples per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from heapq import heapify, heappop, heappush
from math import floor, lcm

import numpy as np
from numpy.typing import NDArray

from treering.batch import Refs, join, refs
from treering.position import State
from treering.protocols import Memory
from treering.rng import key, permute


@dataclass(frozen=True)
class Stage:
    """A phase as the planner needs it: predicted tokens in samples, integer weights by corpus."""

    samples: int
    weights: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The samples of one step, fresh ones first, and the State after it."""

    refs: Refs
    replayed: NDArray[np.bool_]
    step: int
    phase: int
    begins_phase: bool
    ends_phase: bool
    after: State


@dataclass(frozen=True)
class Planner:
    """The rule that decides which samples each step of a run sees; the same on every rank.

    sizes: samples of each corpus in its store; past: corpora seen before the run began; rows:
    samples per step, without replay where `budget` is "batch"; over: replay from "all" that was
    offered so far or only from what was before the current phase ("past").
    """

    seed: int
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    past: tuple[bool, ...]
    stages: tuple[Stage, ...]
    rows: int
    share: Fraction
    budget: str
    memory: Memory
    over: str

    @property
    def replays(self) -> Fraction:
        """Samples to replay per step, on average."""
        return self.rows * self.share / (1 - self.share if self.budget == "batch" else 1)

    def start(self) -> State:
        """The state before the first step."""
        none = (0,) * len(self.names)
        memory = self.memory.empty(self.seen(none), key(self.seed, "memory"))
        return State(0, 0, 0, none, none, memory, memory)

    def seen(self, positions: Sequence[int]) -> NDArray[np.int64]:
        """Distinct samples of each corpus that were offered by these positions."""
        each = zip(positions, self.sizes, self.past, strict=True)
        return np.array([n if past else min(p, n) for p, n, past in each], np.int64)

    def plan(self, state: State, steps: Sequence[int]) -> Plan:
        """The next step. `steps` are the phases' lengths, of `lengths.lengths`."""
        state = self.entered(state, steps)
        fresh, count, replay = self.split(state)
        drawable = self.seen(state.positions if self.over == "all" else state.started)
        parts = [self._sample(fresh, self._epochs(state, count))]
        if replay:
            at = key(self.seed, "replay", state.step)
            drawn = self.memory.draw(state.drawn, drawable, replay + len(fresh), at)
            drawn = self._sample(drawn, np.zeros(len(drawn), np.int64))
            own = set(parts[0].pairs())
            other = np.array([pair not in own for pair in drawn.pairs()], bool)
            parts.append(drawn[other][:replay])
            assert len(parts[1]) == replay, "the memory gave less than it holds"
        chosen = join(*parts)
        begins, ends = state.phase_step == 0, state.phase_step + 1 == steps[state.phase]
        after = self._after(state, fresh, count)
        replayed = np.arange(len(chosen)) >= len(fresh)
        return Plan(chosen, replayed, state.step, state.phase, begins, ends, after)

    def entered(self, state: State, steps: Sequence[int]) -> State:
        """The state as the next step finds it: after a phase's last step, in the next phase. Until
        then it is that phase's own, so that what is trained beside it may go on in the phase."""
        if state.phase == len(steps) or state.phase_step < steps[state.phase]:
            return state
        entered = replace(state, phase=state.phase + 1, phase_step=0)
        return replace(entered, started=state.positions, drawn=state.memory)

    def earlier(self, state: State, memory: Memory, count: int, at: int) -> Refs:
        """`count` samples drawn from what was offered before the current phase, for a look that
        changes nothing; fewer where there are not so many."""
        seen = self.seen(state.started)
        drawn = memory.draw({}, seen, count, at) if seen.any() else refs([])
        return self._sample(drawn, np.zeros(len(drawn), np.int64))

    def learned(self, state: State, phase: int | None, memory: Memory, count: int, at: int) -> Refs:
        """`count` samples drawn from what was seen of a phase's corpora, or of those seen before
        the run (None); fewer where there are not so many."""
        weights = self.past if phase is None else self.stages[phase].weights
        seen = self.seen(state.positions) * (np.array(weights) > 0)
        drawn = memory.draw({}, seen, count, at) if seen.any() else refs([])
        return self._sample(drawn, np.zeros(len(drawn), np.int64))

    def split(self, state: State) -> tuple[Refs, list[int], int]:
        """The step's fresh places, their number by corpus, and how many samples it replays."""
        x, t = self.replays, state.phase_step
        replay = floor((t + 1) * x) - floor(t * x)
        for wanted in (replay, 0):
            count = self.allot(state, self.rows - (0 if self.budget == "batch" else wanted))
            fresh = self._places(state, count)
            if self._holds(state, fresh, count, wanted):
                return fresh, count, wanted
        raise AssertionError("a step without replay is always possible")

    def _holds(self, state: State, fresh: Refs, count: list[int], replay: int) -> bool:
        """Whether `replay` distinct samples can be drawn beside these fresh ones. Those of a later
        epoch count as drawable if their corpus was seen at all: its order there is another."""
        if not replay:
            return True
        seen = self.seen(state.positions if self.over == "all" else state.started)
        again = (self._epochs(state, count) > 0) | (fresh.index < seen[fresh.source])
        met = np.minimum(np.bincount(fresh.source[again], minlength=len(seen)), seen)
        return self.memory.held(int(seen.sum())) >= replay + int(met.sum())

    def allot(self, state: State, fresh: int) -> list[int]:
        """Fresh samples by corpus. Each corpus's j-th sample of the phase has a window of slots,
        [j / w, (j + 1) / w); the earliest end among the open windows goes first, which keeps every
        corpus less than one sample from its share (Baruah et al. 1996, proportionate fairness)."""
        weights = self.stages[state.phase].weights
        total = sum(weights)
        each = zip(state.positions, state.started, strict=True)
        given = [position - started for position, started in each]
        count = [0] * len(weights)
        if total in weights:  # one corpus alone
            count[weights.index(total)] = fresh
            return count
        closed = [(given[i] * total // w, i) for i, w in enumerate(weights) if w]
        heapify(closed)  # by when the windows open; the open ones by when they end
        windows: list[tuple[int, int]] = []
        for slot in range(sum(given), sum(given) + fresh):
            while closed and closed[0][0] <= slot:
                _, i = heappop(closed)
                heappush(windows, (-(-(given[i] + 1) * total // weights[i]), i))
            _, i = heappop(windows)
            given[i] += 1
            count[i] += 1
            heappush(closed, (given[i] * total // weights[i], i))
        return count

    def _places(self, state: State, count: list[int]) -> Refs:
        """The next `count` places of each corpus, in its current epochs."""
        source, position, size = self._next(state, count)
        return Refs(source, position % size)

    def _epochs(self, state: State, count: list[int]) -> NDArray[np.int64]:
        _, position, size = self._next(state, count)
        return position // size

    def _next(self, state: State, count: list[int]) -> tuple[NDArray[np.int64], ...]:
        """Of each fresh sample its corpus, its position there, and the corpus's size."""
        source = np.repeat(np.arange(len(count)), count)
        skipped = np.array(state.positions) - np.cumsum([0, *count[:-1]])
        return source, skipped[source] + np.arange(len(source)), np.maximum(1, self.sizes)[source]

    def _sample(self, places: Refs, epochs: NDArray[np.int64]) -> Refs:
        """Places in an epoch's order -> samples in the stores."""
        at = np.empty(len(places), np.uint64)
        for source, epoch in set(zip(places.source.tolist(), epochs.tolist(), strict=True)):
            rows = (places.source == source) & (epochs == epoch)
            at[rows] = key(self.seed, "order", self.names[source], epoch)
        sizes = np.array(self.sizes)[places.source]
        return Refs(places.source, permute(places.index, sizes, at))

    def _after(self, state: State, fresh: Refs, count: list[int]) -> State:
        positions = tuple(p + c for p, c in zip(state.positions, count, strict=True))
        seen = self.seen(state.positions)
        new = fresh[self._epochs(state, count) == 0]
        new = new[~np.array(self.past)[new.source]]
        at = key(self.seed, "offer", state.step)
        memory = self.memory.offer(state.memory, seen, new, at) if len(new) else state.memory
        return replace(
            state,
            step=state.step + 1,
            phase_step=state.phase_step + 1,
            positions=positions,
            memory=memory,
            drawn=memory if self.over == "all" else state.drawn,
        )


def integer_weights(shares: Sequence[Fraction]) -> tuple[int, ...]:
    """The smallest integers in the proportions of the shares."""
    scale = lcm(*(share.denominator for share in shares))
    return tuple(int(share * scale) for share in shares)
