"""How many steps each phase has, and what the budgets make of its tokens."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from plans import LARGE, fresh, planner, planners, walk

from treering.batch import Batch
from treering.ledger import Ledger
from treering.lengths import lengths
from treering.plan import Planner
from treering.protocols import Metrics


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


def quickly(plan: Planner) -> tuple[int, ...]:
    """Its phases' lengths, in less than a second at the best of three times."""
    took = []
    for _ in range(3):
        begin = time.perf_counter()
        found = lengths(plan)
        took.append(time.perf_counter() - begin)
    assert min(took) < 1
    return found


def test_a_long_phase_is_counted_without_walking_it() -> None:
    tokens = 10**12
    for over, past in (("all", []), ("past", [1]), ("past", [])):
        plan = planner([10**12, 10**6], (tokens, (1, 0)), (tokens, (1, 0)), rows=512, share="1/4",
                       budget="fresh", over=over, past=past)  # fmt: skip
        first, second = quickly(plan)
        assert second == ceil(tokens / 384)
        # Cold, only the first step has nothing to replay; without any past the phase has not.
        cold = ceil((tokens - 128) / 384) if over == "all" else ceil(tokens / 512)
        assert first == (second if past else cold)


@pytest.mark.parametrize(("size", "fresh_rows"), [(3, 512), (127, 512), (128, 384), (400, 384)])
def test_a_small_past_does_not_make_counting_slow(size: int, fresh_rows: int) -> None:
    plan = planner([10**12, size], (10**9, (1, 0)), rows=512, share="1/4", budget="fresh",
                   over="past", past=[1])  # fmt: skip
    assert quickly(plan) == (ceil(10**9 / fresh_rows),)  # 128 must be there to be replayed


def test_the_first_phase_of_a_mixture_is_counted_to_the_sample() -> None:
    """4 rows of three corpora are 2 + 1 + 1; the next phase replays up to 4 of them."""
    plan = planner([LARGE] * 4, (4, (1, 1, 1, 0)), (20, (0, 0, 0, 1)), rows=4, share="7/8",
                   budget="fresh", over="past")  # fmt: skip
    assert lengths(plan) == (1, 39)
    assert sum(len(fresh(step)) for step in walk(plan) if step.phase == 1) == 20
