"""The plan: which samples each step sees, for any recipe."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from treering.batch import Batch, Refs
from treering.ledger import Ledger
from treering.lengths import lengths
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.plan import Plan, Planner, Stage, integer_weights
from treering.position import State, restore, save
from treering.protocols import Memory, MemoryState, Metrics
from treering.rng import key, permute

LARGE = 10**6
Pair = tuple[int, int]


def planner(
    sizes: Sequence[int],
    *stages: tuple[int, tuple[int, ...]],
    rows: int = 4,
    share: Fraction | str = "0",
    budget: str = "total",
    memory: Memory | None = None,
    over: str = "all",
    past: Sequence[int] = (),
    seed: int = 0,
) -> Planner:
    """`stages` are (samples, weights of the corpora)."""
    return Planner(
        seed=seed,
        names=tuple("abcdef"[: len(sizes)]),
        sizes=tuple(sizes),
        past=tuple(i in past for i in range(len(sizes))),
        stages=tuple(Stage(samples, weights) for samples, weights in stages),
        rows=rows,
        share=Fraction(share),
        budget=budget,
        memory=memory or Everything(),
        over=over,
    )


def walk(plan: Planner, state: State | None = None) -> list[Plan]:
    """All steps from a State to the end."""
    steps, state, found = lengths(plan), state or plan.start(), []
    while state.phase < len(steps):
        found.append(plan.plan(state, steps))
        state = found[-1].after
    return found


def fresh(plan: Plan) -> list[Pair]:
    return plan.refs[~plan.replayed].pairs()


def replayed(plan: Plan) -> list[Pair]:
    return plan.refs[plan.replayed].pairs()


def equal(a: Plan, b: Plan) -> bool:
    def states(x: State, y: State) -> bool:
        arrays = all(
            (m[name] == n[name]).all()
            for m, n in ((x.memory, y.memory), (x.drawn, y.drawn))
            for name in m.keys() | n.keys()
        )
        return arrays and replace(x, memory={}, drawn={}) == replace(y, memory={}, drawn={})

    return (
        a.refs.pairs() == b.refs.pairs()
        and (a.replayed == b.replayed).all()
        and (a.step, a.phase, a.ends_phase) == (b.step, b.phase, b.ends_phase)
        and states(a.after, b.after)
    )


@st.composite
def planners(draw: st.DrawFn, *, budget: str | None = None, over: str | None = None) -> Planner:
    """Recipes of one to four corpora, mostly tiny, so that epochs turn and memories run short."""
    n = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.one_of(st.integers(1, 30), st.just(LARGE)), min_size=n, max_size=n))
    weights = st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any).map(tuple)
    stages = draw(st.lists(st.tuples(st.integers(1, 60), weights), min_size=1, max_size=3))
    rows, share = draw(st.integers(1, 8)), draw(st.integers(0, 17).map(lambda k: Fraction(k, 20)))
    spare = draw(st.integers(0, 10))
    largest = rows + ceil(rows * share / (1 - share))  # of a step, as build.py demands of samples
    memories = [Everything(), Balanced(), Reservoir(largest + spare)]
    return planner(
        sizes,
        *stages,
        rows=rows,
        share=share,
        budget=budget or draw(st.sampled_from(["total", "fresh", "batch"])),
        memory=draw(st.sampled_from(memories)),
        over=over or draw(st.sampled_from(["all", "past"])),
        past=draw(st.sets(st.integers(0, n - 1))),
        seed=draw(st.integers(0, 3)),
    )


# ------------------------------------------------------------------ what is replayed


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
    while state.phase < len(steps):
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
    assert round(log(2), 3) == 0.693


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


# ------------------------------------------------------------------ what is fresh


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


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize(
    ("budget", "share", "steps", "fresh_share", "trained"),
    [
        ("total", "1/4", 1.0, 0.75, 1.0),
        ("total", "1/2", 1.0, 0.5, 1.0),
        ("fresh", "1/4", 4 / 3, 1.0, 4 / 3),
        ("fresh", "1/2", 2.0, 1.0, 2.0),
        ("batch", "1/4", 1.0, 1.0, 4 / 3),
        ("batch", "1/2", 1.0, 1.0, 2.0),
    ],
)
def test_the_accounting_table_of_the_paper(
    budget: str, share: str, steps: float, fresh_share: float, trained: float
) -> None:
    """As shares of sequential training's steps and samples, by hand; memory warm."""
    rows, plain = 12, 120
    plan = planner(
        [LARGE, LARGE], (rows * plain, (1, 0)), rows=rows, share=share, budget=budget, past=[1]
    )
    walked, ledger = walk(plan), Ledger()
    for step in walked:
        n = len(step.refs)
        one = np.zeros((n, 2), np.int64)  # samples of one token
        batch = Batch(one, step.refs, step.replayed, step.step, step.phase, step.ends_phase)
        ledger = ledger.step(batch, Metrics(*[None] * 5, training_flops=7.0 * n))  # type: ignore[arg-type]
    assert len(walked) == round(steps * plain)
    assert ledger.fresh_tokens == round(fresh_share * rows * plain)
    assert ledger.tokens == round(trained * rows * plain)
    # FLOPs per fresh token are 1 / (1 - share) times those of sequential training, in every mode.
    cost = ledger.flops / ledger.fresh_tokens / 7.0
    assert cost == pytest.approx(1 / (1 - float(Fraction(share))), rel=1e-9)


def test_the_papers_own_step_counts() -> None:
    """4096 rows, 11921 steps a task: 75 % or 50 % fresh, 15895 or 23842 steps under "fresh"."""
    samples = 4096 * 11_921
    for share, steps in (("1/4", 15_895), ("1/2", 23_842)):
        plan = planner([10**9, 10**9], (samples, (1, 0)), rows=4096, share=share, past=[1])
        assert lengths(plan) == (11_921,)
        assert lengths(replace(plan, budget="fresh")) == (steps,)
        assert lengths(replace(plan, budget="batch")) == (11_921,)
    batch = planner([10**9, 10**9], (4096 * 3, (1, 0)), rows=4096, share="1/4", budget="batch",
                    past=[1])  # fmt: skip
    assert [len(step.refs) for step in walk(batch)] == [4096 + 1365, 4096 + 1365, 4096 + 1366]


@given(planners(budget="fresh"))
@settings(max_examples=60, deadline=None)
def test_a_phase_sees_at_least_its_fresh_samples_and_one_step_fewer_would_not(
    plan: Planner,
) -> None:
    seen = Counter[int]()
    last = dict[int, int]()
    for step in walk(plan):
        seen[step.phase] += len(fresh(step))
        last[step.phase] = len(fresh(step))
    for phase, stage in enumerate(plan.stages):
        assert seen[phase] >= stage.samples
        assert seen[phase] - last[phase] < stage.samples


@given(planners(budget="total"))
@settings(max_examples=25, deadline=None)
def test_a_phase_has_as_many_whole_steps_as_its_tokens_need(plan: Planner) -> None:
    wanted = tuple(ceil(stage.samples / plan.rows) for stage in plan.stages)
    assert lengths(plan) == lengths(replace(plan, budget="batch")) == wanted
    steps = walk(plan)
    assert Counter(step.phase for step in steps) == dict(enumerate(wanted))
    assert [step.step for step in steps] == list(range(len(steps)))
    ends = [step.step + 1 for step in steps if step.ends_phase]
    assert ends == np.cumsum(wanted).tolist()


def test_a_long_phase_is_counted_without_walking_it() -> None:
    tokens = 10**12
    for over, past in (("all", []), ("past", [1]), ("past", [])):
        plan = planner([10**12, 10**6], (tokens, (1, 0)), (tokens, (1, 0)), rows=512, share="1/4",
                       budget="fresh", over=over, past=past)  # fmt: skip
        begin = time.perf_counter()
        first, second = lengths(plan)
        assert time.perf_counter() - begin < 1
        assert second == ceil(tokens / 384)
        # Cold, only the first step has nothing to replay; without any past the phase has not.
        cold = ceil((tokens - 128) / 384) if over == "all" else ceil(tokens / 512)
        assert first == (second if past else cold)


@pytest.mark.parametrize(("size", "fresh_rows"), [(3, 512), (127, 512), (128, 384), (400, 384)])
def test_a_small_past_does_not_make_counting_slow(size: int, fresh_rows: int) -> None:
    plan = planner([10**12, size], (10**9, (1, 0)), rows=512, share="1/4", budget="fresh",
                   over="past", past=[1])  # fmt: skip
    begin = time.perf_counter()
    assert lengths(plan) == (ceil(10**9 / fresh_rows),)  # 128 must be there to be replayed
    assert time.perf_counter() - begin < 1


def test_the_first_phase_of_a_mixture_is_counted_to_the_sample() -> None:
    """4 rows of three corpora are 2 + 1 + 1; the next phase replays up to 4 of them."""
    plan = planner([LARGE] * 4, (4, (1, 1, 1, 0)), (20, (0, 0, 0, 1)), rows=4, share="7/8",
                   budget="fresh", over="past")  # fmt: skip
    assert lengths(plan) == (1, 39)
    assert sum(len(fresh(step)) for step in walk(plan) if step.phase == 1) == 20


# ------------------------------------------------------------------ purity


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
