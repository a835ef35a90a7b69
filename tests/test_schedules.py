"""Schedules: values by hand."""

from __future__ import annotations

import math

import pytest

from treering.config import Invalid
from treering.methods.schedules import Constant, Cosine, Linear
from treering.methods.schedules.warmup import join
from treering.protocols import Schedule

SHAPES = [Constant, Cosine, Linear]


def test_the_cosine_at_its_peak_half_way_and_at_its_end() -> None:
    """By hand: T = 100, T_w = 10, peak 1, floor 0.1."""
    rate = Cosine(peak=1.0, floor=0.1, warmup=0.1).over(100)
    assert [rate(t) for t in (10, 55, 100)] == pytest.approx([1.0, 0.55, 0.1], abs=1e-12)


def test_a_warm_up_wastes_no_step() -> None:
    """(t + 1) / T_w: the first step has a rate, and the last of them the peak."""
    for shape in SHAPES:
        rate = shape(peak=2.0, warmup=0.1).over(100)
        assert [rate(t) for t in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
        assert rate(10) == pytest.approx(2.0)


def test_no_warm_up_gives_the_peak_at_step_0() -> None:
    for shape in SHAPES:
        assert shape(peak=3e-4).over(100)(0) == 3e-4


def test_a_warm_up_that_rounds_to_nothing_is_none() -> None:
    for shape in SHAPES:
        assert shape(peak=1.0, warmup=0.01).over(20)(0) == 1.0


def test_golden_values_of_the_cosine() -> None:
    rate = Cosine(peak=2.8e-4, floor=0.1).over(300)
    third = 0.1 + 0.9 * (1 + math.cos(math.pi / 3)) / 2
    assert [rate(t) for t in (0, 100, 150, 200, 300)] == pytest.approx(
        [2.8e-4, 2.8e-4 * third, 1.54e-4, 2.8e-4 * 0.325, 2.8e-5]
    )
    assert third == pytest.approx(0.775)


def test_golden_values_of_the_linear_decay() -> None:
    rate = Linear(peak=1.0, floor=0.1, warmup=0.2).over(10)
    expected = [0.5, 1.0, 1.0, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125, 0.1]
    assert [rate(t) for t in range(11)] == pytest.approx(expected)


def test_a_constant_rate_stays_at_its_peak() -> None:
    rate = Constant(peak=0.5, warmup=0.5).over(4)
    assert [rate(t) for t in range(6)] == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_past_its_end_a_schedule_stays_at_its_floor() -> None:
    for shape in (Cosine, Linear):
        rate = shape(peak=1.0, floor=0.2).over(10)
        assert rate(10) == rate(11) == rate(10**6) == pytest.approx(0.2)


def test_a_schedule_without_steps_does_not_divide_by_zero() -> None:
    for shape in SHAPES:
        assert shape(peak=1.0).over(0)(0) == 1.0
        assert shape(peak=1.0, warmup=1.0).over(1)(0) == 1.0
        assert shape(peak=1.0, warmup=1.0).over(4)(3) == 1.0


def test_one_cosine_over_all_phases_does_not_warm_again() -> None:
    rate = join([(Cosine(peak=1.0, warmup=0.1).over(40), 40)])
    values = [rate(t) for t in range(4, 40)]
    assert values == sorted(values, reverse=True)


def test_joined_per_phase_each_phase_warms_up_again() -> None:
    shape = Cosine(peak=1.0, floor=0.1, warmup=0.25)
    rate = join([(shape.over(8), 8), (shape.over(4), 4)])
    first, second = [shape.over(8)(t) for t in range(8)], [shape.over(4)(t) for t in range(4)]
    assert [rate(t) for t in range(12)] == first + second
    assert first[:2] == [0.5, 1.0]
    assert second[0] == 1.0
    assert rate(7) < 0.2 < rate(8)


def test_past_its_end_the_last_of_joined_schedules_goes_on() -> None:
    rate = join([(Constant(1.0).over(3), 3), (Linear(1.0, floor=0.5).over(2), 2)])
    assert [rate(t) for t in (2, 3, 5, 99)] == [1.0, 1.0, 0.5, 0.5]


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    shape = Cosine(peak=1.0, warmup=0.1)
    rate: Schedule = join([(shape.over(9), 9), (shape.over(7), 7)])
    forwards = [rate(t) for t in range(16)]
    assert [rate(t) for t in reversed(range(16))] == forwards[::-1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak": -1.0}, "schedule.peak = -1.0: must not be negative"),
        ({"peak": math.nan}, "schedule.peak = nan"),
        ({"peak": 1.0, "warmup": 1.5}, "schedule.warmup = 1.5: a share of the span"),
        ({"peak": 1.0, "floor": -0.1}, "schedule.floor = -0.1: a share of the peak"),
    ],
)
def test_a_rate_or_share_out_of_range_is_refused(fields: dict[str, float], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        Cosine(**fields)
