"""Memories: what they hold, and that every sample in them is drawn as often as any other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering.batch import Refs, join
from treering.config import Invalid
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.protocols import Memory, MemoryState
from treering.rng import key

Chance = Callable[[np.ndarray, int], float]
SEEN = np.array([30, 3, 0, 7])  # corpora of different fill
ALL = [(source, place) for source, n in enumerate(SEEN) for place in range(n)]


def places(source: int, start: int, count: int) -> Refs:
    return Refs(np.full(count, source), np.arange(start, start + count))


def filled(memory: Memory, seed: int = 0, step: int = 4) -> MemoryState:
    """The state after SEEN was offered, corpus after corpus, `step` samples at a time."""
    seen = np.zeros_like(SEEN)
    state = memory.empty(seen, key(seed, "memory"))
    for source, n in enumerate(SEEN):
        for start in range(0, n, step):
            new = places(source, start, min(step, n - start))
            state = memory.offer(state, seen, new, key(seed, "offer", source, start))
            seen = seen + np.bincount(new.source, minlength=len(seen))
    assert (seen == SEEN).all()
    return state


def counted(drawn: list[Refs]) -> np.ndarray:
    where = {pair: i for i, pair in enumerate(ALL)}
    return np.bincount([where[p] for one in drawn for p in one.pairs()], minlength=len(ALL))


@pytest.mark.parametrize("memory", [Everything(), Balanced(), Reservoir(16), Reservoir(100)])
@given(
    seen=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    count=st.integers(0, 60),
    at=st.integers(0, 2**64 - 1),
)
@settings(max_examples=40)
def test_a_draw_is_distinct_samples_that_were_seen(
    memory: Memory, seen: list[int], count: int, at: int
) -> None:
    counts = np.array(seen)
    held = memory.held(sum(seen))
    if held == 0:
        return
    drawn = memory.draw(memory.empty(counts, at), counts, count, at)
    assert len(drawn) == len(set(drawn.pairs())) == min(count, held)
    assert all(0 <= place < counts[source] for source, place in drawn.pairs())
    assert drawn.source.dtype == drawn.index.dtype == np.int64


@pytest.mark.parametrize("memory", [Everything(), Balanced(), Reservoir(16)])
def test_a_draw_depends_on_its_key_alone(memory: Memory) -> None:
    state = filled(memory)
    first = memory.draw(state, SEEN, 8, 5).pairs()
    assert memory.draw(state, SEEN, 8, 5).pairs() == first
    assert memory.draw(state, SEEN, 8, 6).pairs() != first


@pytest.mark.parametrize("count", [1, 7])
def test_everything_is_drawn_uniformly_across_corpora_of_different_fill(
    count: int, chance_of: Chance
) -> None:
    drawn = [Everything().draw({}, SEEN, count, key(t, "replay")) for t in range(2500)]
    assert chance_of(counted(drawn), len(drawn)) > 1e-4


def test_any_prefix_of_a_draw_is_as_fair(chance_of: Chance) -> None:
    everything = [Everything().draw({}, SEEN, 20, key(t, "replay"))[:3] for t in range(1500)]
    assert chance_of(counted(everything), len(everything)) > 1e-4
    full = filled(Reservoir(40))
    reservoir = [Reservoir(40).draw(full, SEEN, 20, key(t, "replay"))[:3] for t in range(1500)]
    assert chance_of(counted(reservoir), len(reservoir)) > 1e-4


def test_the_contents_of_a_reservoir_are_uniform_over_all_offered(chance_of: Chance) -> None:
    memory = Reservoir(10)
    states = [filled(memory, seed) for seed in range(1500)]
    contents = [Refs(state["source"], state["place"]) for state in states]
    assert all(len(set(one.pairs())) == 10 for one in contents)
    assert chance_of(counted(contents), len(contents)) > 1e-4


@pytest.mark.parametrize("step", [1, 7, 30])
def test_a_reservoir_is_uniform_however_samples_are_grouped(step: int, chance_of: Chance) -> None:
    memory, trials = Reservoir(6), 400 if step == 1 else 1500
    states = [filled(memory, seed, step) for seed in range(trials)]
    contents = [Refs(state["source"], state["place"]) for state in states]
    assert chance_of(counted(contents), trials) > 1e-4


def test_the_draws_of_a_reservoir_are_uniform_over_its_contents(chance_of: Chance) -> None:
    memory = Reservoir(13)
    state = filled(memory)
    contents = Refs(state["source"], state["place"]).pairs()
    counts = np.zeros(13)
    for trial in range(3000):
        for pair in memory.draw(state, SEEN, 4, key(trial, "replay")).pairs():
            counts[contents.index(pair)] += 1
    assert chance_of(counts, 3000) > 1e-4


def test_a_reservoir_that_begins_with_a_past_is_uniform_over_past_and_new(
    chance_of: Chance,
) -> None:
    memory, past = Reservoir(8), np.array([30, 0, 0, 0])
    contents = []
    for seed in range(1500):
        state = memory.empty(past, key(seed, "memory"))
        new = join(places(1, 0, 3), places(3, 0, 7))
        state = memory.offer(state, past, new, key(seed, "offer"))
        contents.append(Refs(state["source"], state["place"]))
    assert chance_of(counted(contents), len(contents)) > 1e-4


def test_a_sample_is_accepted_with_probability_samples_over_age() -> None:
    memory, trials = Reservoir(5), 3000
    for age in (6, 7):  # of the sample offered, itself included
        seen = np.array([age - 1])
        state = memory.empty(seen, 0)
        kept = sum(
            (memory.offer(state, seen, places(0, age - 1, 1), key(t, "offer", age))["place"])
            .tolist()
            .count(age - 1)
            for t in range(trials)
        )
        spread = np.sqrt(trials * 5 / age * (1 - 5 / age))
        assert abs(kept - trials * 5 / age) < 4 * spread
        assert abs(kept - trials * 5 / (age + 1)) > 4 * spread  # the released code's slip


def test_a_reservoir_below_its_capacity_holds_everything() -> None:
    state = filled(Reservoir(100))
    held = Refs(state["source"][:40], state["place"][:40])
    assert sorted(held.pairs()) == ALL


def test_offering_to_a_reservoir_leaves_the_earlier_state_alone() -> None:
    memory, seen = Reservoir(4), np.array([4])
    state = memory.empty(seen, 0)
    before = {name: array.copy() for name, array in state.items()}
    later = memory.offer(state, seen, places(0, 4, 40), 1)
    assert all((state[name] == before[name]).all() for name in before)
    assert not all((later[name] == before[name]).all() for name in before)
    assert {n: (a.shape, a.dtype) for n, a in later.items()} == {
        n: (a.shape, a.dtype) for n, a in state.items()
    }


def test_a_balanced_draw_gives_each_corpus_the_same_number() -> None:
    seen = np.array([40, 0, 4, 9])
    drawn = Balanced().draw({}, seen, 9, 0)
    assert np.bincount(drawn.source, minlength=4).tolist() == [3, 0, 3, 3]


def test_a_balanced_draw_passes_over_a_corpus_that_has_nothing_left() -> None:
    seen = np.array([40, 1, 2])
    drawn = Balanced().draw({}, seen, 9, 0)
    assert np.bincount(drawn.source).tolist() == [6, 1, 2]
    assert len(set(drawn.pairs())) == 9


def test_a_balanced_draw_is_uniform_within_a_corpus(chance_of: Chance) -> None:
    seen, counts = np.array([30, 12]), np.zeros(30)
    for trial in range(2000):
        drawn = Balanced().draw({}, seen, 8, key(trial, "replay"))
        counts[drawn.index[drawn.source == 0]] += 1
    assert chance_of(counts, 2000) > 1e-4


@pytest.mark.parametrize("count", [1, 5])
def test_the_odd_samples_of_a_balanced_draw_are_uniform_across_corpora(
    count: int, chance_of: Chance
) -> None:
    seen, counts = np.array([30, 5, 300]), np.zeros(3)
    for trial in range(2000):
        drawn = Balanced().draw({}, seen, count, key(trial, "replay"))
        counts += np.bincount(drawn.source, minlength=3) - count // 3
    assert chance_of(counts, 2000) > 1e-4


def test_everything_and_balanced_need_no_state_at_any_size() -> None:
    seen = np.array([10**12, 3])
    for memory in (Everything(), Balanced()):
        assert memory.empty(seen, 0) == {}
        drawn = memory.draw({}, seen, 4, 7)
        assert len(set(drawn.pairs())) == 4


def test_a_reservoir_without_room_is_refused() -> None:
    with pytest.raises(Invalid, match="replay.memory.samples = 0: must be at least 1"):
        replace(Reservoir(), samples=0)
