"""The plan: which samples each step sees, for any recipe; a pure function of its state."""

from __future__ import annotations

import time
import tracemalloc
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import LARGE, equal, fresh, planner, planners, replayed, walk

from treering.lengths import lengths
from treering.methods.memories import Balanced, Reservoir
from treering.plan import Planner
from treering.position import restore, save


@given(planners(), st.data())
@settings(max_examples=60, deadline=None)
def test_the_plan_of_a_state_is_the_same_twice(plan: Planner, data: st.DataObject) -> None:
    steps, walked = lengths(plan), walk(plan)
    at = data.draw(st.integers(0, len(walked) - 1))
    state = walked[at - 1].after if at else plan.start()
    assert equal(plan.plan(state, steps), walked[at])
    assert equal(plan.plan(state, steps), plan.plan(state, steps))


@given(planners(), st.data())
@settings(max_examples=60, deadline=None)
def test_a_state_saved_and_restored_continues_identically(
    plan: Planner, data: st.DataObject
) -> None:
    walked = walk(plan)
    at = data.draw(st.integers(0, len(walked) - 1))
    numbers, arrays = save(walked[at].after)
    back = restore(numbers, {name: array.copy() for name, array in arrays.items()})
    resumed = walk(plan, back)
    assert len(resumed) == len(walked) - at - 1
    assert all(equal(a, b) for a, b in zip(resumed, walked[at + 1 :], strict=True))


def test_the_arrays_of_a_state_keep_their_shapes() -> None:
    plan = planner([LARGE], (60, (1,)), share="1/4", memory=Reservoir(20), over="past")
    shapes = {n: (a.shape, a.dtype) for n, a in save(plan.start())[1].items()}
    assert shapes
    for step in walk(plan):
        assert {n: (a.shape, a.dtype) for n, a in save(step.after)[1].items()} == shapes


@given(planners(), st.sampled_from(["total", "fresh", "batch"]), st.sampled_from(["all", "past"]))
@settings(max_examples=25, deadline=None)
def test_share_0_is_sequential_whatever_the_memory(plan: Planner, budget: str, over: str) -> None:
    without = replace(plan, share=Fraction(0))
    other = replace(without, memory=Balanced(), budget=budget, over=over, past=(False,) * 4)
    other = replace(other, past=other.past[: len(plan.sizes)])
    for a, b in zip(walk(without), walk(other), strict=True):
        assert a.refs.pairs() == b.refs.pairs()
        assert not a.replayed.any()
        assert len(a.refs) == plan.rows


@pytest.mark.parametrize("world", [1, 2, 4])
def test_rows_split_over_ranks_are_pairwise_distinct(world: int) -> None:
    plan = planner([LARGE, LARGE], (400, (2, 1)), rows=8, share="1/2", memory=Reservoir(50))
    for step in walk(plan):
        ranks = [step.refs[np.arange(rank, 8, world)].pairs() for rank in range(world)]
        assert {len(rows) for rows in ranks} == {8 // world}
        assert len({pair for rows in ranks for pair in rows}) == 8


def test_a_plan_over_10_to_the_12_tokens_costs_what_a_small_one_costs() -> None:
    def cost(size: int) -> float:
        plan = planner([size] * 2, (size, (1, 0)), (size, (0, 1)), rows=16, share="1/4")
        steps, took = lengths(plan), []
        state = replace(plan.start(), step=steps[0] + 9, phase=1, phase_step=9,
                        positions=(size // 2, 99), started=(size // 2, 0))  # fmt: skip
        for _ in range(20):
            begin = time.perf_counter()
            step = plan.plan(state, steps)
            took.append(time.perf_counter() - begin)
            state = step.after
            assert len(set(step.refs.pairs())) == 16
        return min(took)

    tracemalloc.start()
    cost(10**12 // 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert cost(10**12 // 256) < 3 * cost(10**6 // 256)


@pytest.mark.parametrize("over", ["all", "past"])
@pytest.mark.parametrize("seed", range(10))
def test_a_draw_never_comes_back_short_in_later_epochs(over: str, seed: int) -> None:
    """Corpora smaller than two steps: an epoch's order puts any of them beside the replay."""
    plan = planner([6], (4, (1,)), (80, (1,)), share="1/3", budget="batch", over=over, seed=seed)
    for step in walk(plan):
        assert not set(replayed(step)) & set(fresh(step))


def test_a_decimal_share_is_exact_for_ever() -> None:
    """0.1 of 10 rows is one sample in each step: no float drifts."""
    plan = planner([LARGE, LARGE], (10**4, (1, 0)), rows=10, share="0.1", past=[1])
    assert [int(step.replayed.sum()) for step in walk(plan)] == [1] * 1000
