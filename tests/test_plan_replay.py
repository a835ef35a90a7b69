"""What the plan replays, and how much of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import floor, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import LARGE, Pair, fresh, planner, planners, replayed, walk

from treering.lengths import lengths
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.plan import Planner
from treering.protocols import Memory


@given(planners())
@settings(max_examples=60, deadline=None)
def test_a_steps_fresh_samples_are_never_in_its_replay_and_draws_are_distinct(
    plan: Planner,
) -> None:
    for step in walk(plan):
        drawn = replayed(step)
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn) & set(fresh(step))


@given(planners())
@settings(max_examples=35, deadline=None)
def test_nothing_is_replayed_that_was_not_in_the_stream_before(plan: Planner) -> None:
    met: set[Pair] = set()
    for step in walk(plan):
        assert all(pair in met or plan.past[pair[0]] for pair in replayed(step))
        met.update(fresh(step))


@given(planners(over="past"))
@settings(max_examples=35, deadline=None)
def test_over_past_draws_nothing_that_only_the_current_phase_has_met(plan: Planner) -> None:
    met: set[Pair] = set()
    before: set[Pair] = set()
    for step in walk(plan):
        assert all(pair in before or plan.past[pair[0]] for pair in replayed(step))
        met.update(fresh(step))
        if step.ends_phase:
            before = set(met)


def test_over_past_draws_exactly_the_past() -> None:
    plan = planner(
        [LARGE, 12, LARGE], (40, (1, 0, 0)), (3200, (0, 0, 1)), share="1/4", over="past", past=[1]
    )
    steps = walk(plan)
    trained = {pair for s in steps if s.phase == 0 for pair in fresh(s)}
    # In phase 0 the past is corpus 1 alone; in phase 1 it is all of phase 0 too.
    assert {p for s in steps if s.phase == 0 for p in replayed(s)} <= {(1, i) for i in range(12)}
    drawn = {pair for s in steps if s.phase == 1 for pair in replayed(s)}
    assert drawn == trained | {(1, i) for i in range(12)}


def test_what_is_learned_of_a_phase_is_what_it_saw_of_its_corpora() -> None:
    """For a Fisher matrix, say: of phase 1 its own corpora, of what was before the run the past."""
    plan = planner(
        [LARGE, 12, LARGE, 12], (40, (3, 0, 1, 0)), (80, (0, 0, 1, 1)), over="past", past=[1]
    )
    steps = walk(plan)
    ends = [step.after for step in steps if step.ends_phase]
    memory = Everything()
    for phase, state in enumerate(ends):
        found = set(plan.learned(state, phase, memory, 10**4, 1).pairs())
        met = {pair for step in steps if step.phase <= phase for pair in fresh(step)}
        named = {i for i, weight in enumerate(plan.stages[phase].weights) if weight}
        assert found == {pair for pair in met if pair[0] in named} and found
    before = plan.learned(plan.start(), None, memory, 10**4, 1)
    assert sorted(before.pairs()) == [(1, i) for i in range(12)]
    few = plan.learned(ends[0], 0, memory, 5, 1)
    assert len(set(few.pairs())) == 5
    assert few.pairs() != plan.learned(ends[0], 0, memory, 5, 2).pairs()


def test_over_all_draws_from_the_current_phase_too() -> None:
    plan = planner([LARGE], (200, (1,)), share="1/2")
    assert sum(len(replayed(step)) for step in walk(plan)) > 0
    assert not any(replayed(step) for step in walk(replace(plan, over="past")))


def test_past_corpora_count_as_seen_from_the_start() -> None:
    plan = planner([LARGE, 50], (800, (1, 0)), share="1/2", over="past", past=[1])
    steps = walk(plan)
    assert [int(step.replayed.sum()) for step in steps] == [2] * 200
    assert {pair for step in steps for pair in replayed(step)} == {(1, i) for i in range(50)}


def test_a_past_corpus_that_is_trained_on_again_is_not_offered_again() -> None:
    plan = planner([20], (60, (1,)), memory=Reservoir(8), share="1/4", past=[0])
    begun = plan.start()
    for step in walk(plan):
        assert (step.after.memory["place"] == begun.memory["place"]).all()


@given(planners())
@settings(max_examples=35, deadline=None)
def test_a_step_replays_its_share_or_is_all_fresh_while_the_memory_is_too_small(
    plan: Planner,
) -> None:
    state, steps = plan.start(), lengths(plan)
    x = plan.replays
    while (state := plan.entered(state, steps)).phase < len(steps):
        step, t = plan.plan(state, steps), state.phase_step
        wanted = floor((t + 1) * x) - floor(t * x)
        seen = plan.seen(state.positions if plan.over == "all" else state.started)
        held, got = plan.memory.held(int(seen.sum())), int(step.replayed.sum())
        assert got in (0, wanted)
        if held < wanted:
            assert got == 0
        if held >= wanted + plan.rows:
            assert got == wanted
        assert len(step.refs) == plan.rows + (got if plan.budget == "batch" else 0)
        assert not step.replayed[: len(step.refs) - got].any()  # fresh ones first
        state = step.after


def test_the_first_step_of_all_has_nothing_to_replay() -> None:
    first, second = walk(planner([LARGE], (8, (1,)), share="1/2"))[:2]
    assert (len(fresh(first)), len(replayed(first))) == (4, 0)
    assert (len(fresh(second)), len(replayed(second))) == (2, 2)


@given(
    share=st.fractions(0, Fraction(19, 20), max_denominator=1000),
    rows=st.integers(1, 12),
    budget=st.sampled_from(["total", "fresh", "batch"]),
    window=st.tuples(st.integers(0, 60), st.integers(1, 60)),
)
@settings(max_examples=35, deadline=None)
def test_the_achieved_share_is_off_by_less_than_one_sample_over_any_window(
    share: Fraction, rows: int, budget: str, window: tuple[int, int]
) -> None:
    plan = planner([LARGE, 1000], (4000, (1, 0)), rows=rows, share=share, budget=budget, past=[1])
    steps, state, got = lengths(plan), plan.start(), []
    for _ in range(min(sum(window), steps[0])):
        step = plan.plan(state, steps)
        got.append((int(step.replayed.sum()), len(step.refs)))
        state = step.after
    part = got[window[0] : sum(window)]
    replays, total = sum(r for r, _ in part), sum(n for _, n in part)
    if budget == "batch":  # the wanted number per step; the total varies with it
        assert abs(replays - len(part) * rows * share / (1 - share)) < 1
    else:
        assert abs(replays - share * total) < 1


def test_the_replay_of_old_tasks_converges_to_its_expectation() -> None:
    """In task t of equal lengths the integral of (t - 1) / (t - 1 + s) over its course, s from 0 to
    1: (t - 1) ln(t / (t - 1))."""
    length = 2400
    plan = planner(
        [LARGE] * 3, *((length, tuple(int(i == p) for i in range(3))) for p in range(3)),
        rows=8, share="1/2",
    )  # fmt: skip
    steps = walk(plan)
    for task in (2, 3):
        drawn = [p for s in steps if s.phase == task - 1 for p in replayed(s)]
        old = sum(source != task - 1 for source, _ in drawn) / len(drawn)
        expected = (task - 1) * log(task / (task - 1))
        assert abs(old - expected) < 4 * (expected * (1 - expected) / len(drawn)) ** 0.5


@pytest.mark.parametrize("memory", [Everything(), Balanced(), Reservoir(64)])
def test_replay_through_the_plan_is_uniform_over_what_was_seen(memory: Memory) -> None:
    """The stores' samples, not only the places: over three past corpora, many steps."""
    plan = planner([LARGE, 10, 20, 30], (3000, (1, 0, 0, 0)), share="1/2", past=[1, 2, 3],
                   over="past", memory=memory)  # fmt: skip
    counts = Counter(pair for step in walk(plan) for pair in replayed(step))
    by_corpus = {c: sum(n for (s, _), n in counts.items() if s == c) for c in (1, 2, 3)}
    total = sum(counts.values())
    if isinstance(memory, Everything):
        wanted = {c: total * c / 6 for c in by_corpus}
        assert len(counts) == 60
    elif isinstance(memory, Balanced):
        wanted = dict.fromkeys(by_corpus, total / 3)
        assert len(counts) == 60
    else:
        wanted = {c: total * c / 6 for c in by_corpus}  # 64 slots hold all 60
    assert all(abs(by_corpus[c] - wanted[c]) < 4 * wanted[c] ** 0.5 for c in by_corpus)
