"""What the plan has fresh: every sample once an epoch, in shares of its mixture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plans import LARGE, Pair, fresh, planner, planners, walk

from treering.batch import Refs
from treering.methods.memories import Everything, Reservoir
from treering.plan import Planner, integer_weights
from treering.protocols import MemoryState
from treering.rng import key, permute


@given(planners())
@settings(max_examples=35, deadline=None)
def test_every_fresh_sample_is_trained_exactly_once_per_epoch(plan: Planner) -> None:
    taken = [pair for step in walk(plan) for pair in fresh(step)]
    for source, size in enumerate(plan.sizes):
        order = [index for s, index in taken if s == source]
        for start in range(0, len(order), size):
            epoch = order[start : start + size]
            assert len(set(epoch)) == len(epoch)
            assert all(0 <= index < size for index in epoch)


@dataclass(frozen=True)
class Spy:
    """Everything, and a note of what it was offered."""

    offered: list[Pair] = field(default_factory=list)
    ages: list[int] = field(default_factory=list)

    def held(self, seen: int) -> int:
        return seen

    def empty(self, seen: NDArray[np.int64], at: int) -> MemoryState:
        return {}

    def offer(self, state: MemoryState, seen: NDArray[np.int64], new: Refs, at: int) -> MemoryState:
        self.offered.extend(new.pairs())
        self.ages.append(int(seen.sum()))
        return state

    def draw(self, state: MemoryState, seen: NDArray[np.int64], count: int, at: int) -> Refs:
        return Everything().draw(state, seen, count, at)


@given(planners())
@settings(max_examples=60, deadline=None)
def test_every_fresh_sample_is_offered_exactly_once_to_the_memory(plan: Planner) -> None:
    spy = Spy()
    steps = walk(replace(plan, memory=spy))
    distinct = {pair for step in steps for pair in fresh(step) if not plan.past[pair[0]]}
    assert len(spy.offered) == len(set(spy.offered)) == len(distinct)
    for source, size in enumerate(plan.sizes):  # the places [0, seen), in their order
        places = [place for s, place in spy.offered if s == source]
        assert places == list(range(min(size, len(places))))
    begun = int(plan.seen([0] * len(plan.sizes)).sum())
    if spy.ages:
        assert spy.ages[0] == begun
        assert spy.ages == sorted(spy.ages)


@given(planners())
@settings(max_examples=60, deadline=None)
def test_no_sample_is_in_the_memory_that_was_never_in_the_stream(plan: Planner) -> None:
    memory = Reservoir(plan.rows + ceil(plan.replays) + 3)
    plan = replace(plan, memory=memory)
    for step in walk(plan):
        state = step.after
        seen = plan.seen(state.positions)
        held = memory.held(int(seen.sum()))
        pairs = Refs(state.memory["source"][:held], state.memory["place"][:held]).pairs()
        assert len(set(pairs)) == held
        assert all(place < seen[source] for source, place in pairs)


def test_a_corpus_named_again_goes_on_where_it_stopped() -> None:
    plan = planner([100, 100], (30, (1, 0)), (20, (0, 1)), (40, (1, 0)), rows=5, seed=3)
    steps = walk(plan)
    order = permute(np.arange(100), 100, key(3, "order", "a", 0)).tolist()
    parts = [[i for s in steps if s.phase == p for _, i in fresh(s)] for p in (0, 2)]
    assert parts == [order[:30], order[30:70]]


def test_the_next_epoch_has_another_order() -> None:
    plan = planner([50], (100, (1,)), rows=5)
    taken = [index for step in walk(plan) for _, index in fresh(step)]
    assert sorted(taken[:50]) == sorted(taken[50:]) == list(range(50))
    assert sum(a == b for a, b in zip(taken[:50], taken[50:], strict=True)) < 6


def test_the_order_of_a_corpus_does_not_depend_on_other_corpora() -> None:
    alone = planner([100], (40, (1,)))
    beside = replace(
        planner([7, 100], (40, (0, 1)), past=[0]), names=("z", "a")
    )  # another number, the same name
    assert [i for s in walk(alone) for _, i in fresh(s)] == [
        i for s in walk(beside) for _, i in fresh(s)
    ]
    other = replace(alone, seed=1)
    assert [i for s in walk(alone) for _, i in fresh(s)] != [
        i for s in walk(other) for _, i in fresh(s)
    ]


@given(
    weights=st.lists(st.integers(1, 30), min_size=2, max_size=5),
    rows=st.integers(1, 9),
    share=st.sampled_from(["0", "1/4", "1/2"]),
)
@settings(max_examples=60, deadline=None)
def test_mixture_shares_are_within_one_sample_of_their_weights_at_every_step(
    weights: list[int], rows: int, share: str
) -> None:
    plan = planner([LARGE] * len(weights), (200, tuple(weights)), rows=rows, share=share)
    given_, total = Counter[int](), 0
    for step in walk(plan):
        given_.update(source for source, _ in fresh(step))
        total += len(fresh(step))
        for source, weight in enumerate(weights):
            assert abs(given_[source] - Fraction(total * weight, sum(weights))) < 1


def test_mixture_weights_begin_anew_with_each_phase() -> None:
    plan = planner([LARGE, LARGE], (6, (5, 1)), (6, (1, 5)), rows=6)
    first, second = walk(plan)
    assert Counter(source for source, _ in fresh(first)) == {0: 5, 1: 1}
    assert Counter(source for source, _ in fresh(second)) == {0: 1, 1: 5}


def test_weights_of_a_recipe_become_the_smallest_integers() -> None:
    assert integer_weights([Fraction("0.5"), Fraction("0.25"), Fraction(0)]) == (2, 1, 0)
    assert integer_weights([Fraction("0.1"), Fraction("0.2")]) == (1, 2)
