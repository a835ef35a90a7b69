"""Means over seeds, their intervals and paired differences, by hand."""

from __future__ import annotations

import itertools
import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_compare import near

from treering.analysis.intervals import difference, estimate

# Two-sided 95% quantiles of Student's t, from the tables that are printed everywhere.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 8: 2.365, 10: 2.262}


def test_three_seeds_by_hand() -> None:
    found = estimate({0: 1.0, 1: 2.0, 2: 3.0})
    half = 4.303 * 1 / math.sqrt(3)
    assert found.mean == 2.0 and found.n == 3 and found.values == {0: 1.0, 1: 2.0, 2: 3.0}
    assert found.t == pytest.approx((2 - half, 2 + half), abs=1e-3)


@pytest.mark.parametrize("n", STUDENT)
def test_the_interval_is_students(n: int) -> None:
    values = [float(i * i) for i in range(n)]
    mean = fmean(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    found = estimate(dict(enumerate(values)))
    assert found.t is not None
    assert (found.t[1] - found.t[0]) / 2 == pytest.approx(STUDENT[n] * spread / math.sqrt(n), 1e-3)
    assert sum(found.t) / 2 == near(mean)


def percentile(ordered: list[float], share: float) -> float:
    """Linear between the two values around it."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=5))
def test_the_bootstrap_of_few_seeds_takes_every_resample(values: list[float]) -> None:
    means = sorted(fmean(some) for some in itertools.product(values, repeat=len(values)))
    found = estimate(dict(enumerate(values)))
    assert found.bootstrap == near(percentile(means, 0.025), percentile(means, 0.975))


def test_the_bootstrap_of_many_seeds_is_drawn_and_always_the_same() -> None:
    values = {seed: math.sin(seed) for seed in range(20)}
    found = estimate(values)
    assert found == estimate(values)
    assert found.t is not None and found.bootstrap is not None
    mean, spread = found.mean, math.sqrt(fmean((v - found.mean) ** 2 for v in values.values()))
    half = 1.96 * spread / math.sqrt(20)
    assert found.bootstrap == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert found.t[0] < found.bootstrap[0] < found.bootstrap[1] < found.t[1]


def test_of_one_seed_or_none_there_is_no_interval() -> None:
    one = estimate({7: 2.5})
    assert (one.mean, one.n, one.t, one.bootstrap) == (2.5, 1, None, None)
    none = estimate({})
    assert math.isnan(none.mean) and none.n == 0 and none.t is None


def test_what_is_not_finite_is_left_out_of_a_mean() -> None:
    found = estimate({0: 1.0, 1: math.nan, 2: 3.0, 3: math.inf})
    assert found.mean == 2.0 and found.n == 2 and list(found.values) == [0, 2]


# -- paired differences --------------------------------------------------------------------------


def test_differences_are_taken_seed_by_seed() -> None:
    """The arms overlap widely, the seeds agree: unpaired nothing would be shown."""
    arm, baseline = {0: 1.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 6.1, 2: 9.9}
    found = difference(arm, baseline)
    assert found["values"] == {0: near(-1.0), 1: near(-1.1), 2: near(-0.9)}
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found["mean"] == near(-1.0) and found["n"] == 3
    assert found["t"] == pytest.approx((-1 - half, -1 + half), abs=1e-4)
    assert found["verdict"] == "lower" and found["lower"] == 3
    assert difference(baseline, arm)["verdict"] == "higher"
    assert difference(baseline, arm)["lower"] == 0


def test_an_interval_that_holds_0_shows_nothing() -> None:
    found = difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.5, 2: 0.9})
    assert found["lower"] == 2 and found["verdict"] == "not shown"
    same = difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same["t"] == (0.0, 0.0) and same["verdict"] == "not shown" and same["lower"] == 0


def test_only_seeds_of_both_arms_are_paired() -> None:
    found = difference({0: 1.0, 2: 4.0, 5: 7.0}, {0: 2.0, 1: 9.0, 2: 6.0})
    assert found["values"] == {0: -1.0, 2: -2.0}
    one = difference({0: 1.0, 3: 1.0}, {0: 2.0, 1: 1.0})
    assert one["verdict"] == "one seed" and one["mean"] == -1.0 and one["t"] is None
    none = difference({0: 1.0}, {1: 1.0})
    assert none["verdict"] == "none" and none["n"] == 0 and math.isnan(none["mean"])
    diverged = difference({0: math.nan, 1: 1.0}, {0: 1.0, 1: 2.0})
    assert diverged["verdict"] == "one seed"
