"""Schedules: values by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from treering import config, shelf
from treering.config import Invalid
from treering.methods.schedules import WSD, Constant, Cosine, Infinite, Linear
from treering.methods.schedules.decays import KINDS as DECAYS
from treering.methods.schedules.warmup import join
from treering.protocols import Schedule

FIRST = """[schedule]
kind = "infinite"
span = "first"
peak = 1e-2
warmup = 0.1
cooldown = 0.5
shape = "linear"
"""
SHAPES = [Constant, Cosine, Linear, partial(WSD, decay=0.0)]


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


FALLS = {  # from step 13 on
    "linear": [0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125],
    "cosine": [0.965746, 0.868198, 0.722208, 0.55, 0.377792, 0.231802, 0.134254],
    "1-sqrt": [0.681802, 0.55, 0.448865, 0.363604, 0.288488, 0.220577, 0.158127],
    "exponential": [0.749894, 0.562341, 0.421697, 0.316228, 0.237137, 0.177828, 0.133352],
    "rsqrt": [0.570501, 0.400234, 0.302706, 0.23753, 0.190039, 0.153454, 0.124153],
}
ANNEALED = [*[0.55] * 6, 0.55, 0.359147, 0.234521, 0.153141]
TWENTY: dict[str, tuple[Any, list[float]]] = {
    "constant": (Constant(1.0, warmup=0.1), [0.5, *[1.0] * 19]),
    "linear": (Linear(1.0, 0.1, 0.1), [0.5, 1.0, *[1 - 0.05 * i for i in range(18)]]),
    "cosine": (
        Cosine(1.0, 0.1, 0.1),
        [0.5, 1.0, 1.0, 0.993163, 0.972862, 0.939711, 0.89472, 0.839254, 0.775, 0.703909, 0.628142,
         0.55, 0.471858, 0.396091, 0.325, 0.260746, 0.20528, 0.160289, 0.127138, 0.106837],
    ),
    "infinite cosine": (
        Infinite(1.0, 0.55, 0.1, 0.1, 0.5, 0.8, "cosine"),
        [0.5, 1.0, 1.0, 0.982873, 0.934099, 0.861104, 0.775, 0.688896, 0.615901, 0.567127,
         *ANNEALED],
    ),
    "infinite rsqrt": (
        Infinite(1.0, 0.55, 0.1, 0.1, 0.5, 0.8, "rsqrt"),
        [0.5, 1.0, 1.0, 0.785251, 0.700117, 0.651353, 0.618765, 0.59502, 0.576727, 0.562076,
         *ANNEALED],
    ),
    "infinite linear": (
        Infinite(1.0, 0.55, 0.1, 0.1, 0.5, 0.8, "linear"),
        [0.5, 1.0, 1.0, 0.94375, 0.8875, 0.83125, 0.775, 0.71875, 0.6625, 0.60625, *ANNEALED],
    ),
}  # fmt: skip
TWENTY |= {
    f"wsd {shape}": (WSD(1.0, 0.1, 0.1, 0.4, shape), [0.5, *[1.0] * 12, *falls])
    for shape, falls in FALLS.items()
}


@pytest.mark.parametrize("kind", TWENTY)
def test_golden_values_of_twenty_steps(kind: str) -> None:
    """Worked out from the papers' formulas, apart from the code: two steps of warm-up; WSD falls
    from step 12 on; infinite cools to step 10 and anneals from 16 on."""
    shape, wanted = TWENTY[kind]
    rate = shape.over(20)
    assert [rate(step) for step in range(20)] == pytest.approx(wanted, abs=1e-6)


def test_golden_values_of_a_rate_that_is_warmed_up_again(place: Path) -> None:
    """Two phases of ten steps, two of warm-up in each; a cosine to 0.1, by hand."""
    recipe = config.load(place / "recipe.toml")
    own = {"kind": "cosine", "peak": 1.0, "floor": 0.1, "warmup": 0.2, "span": "phase"}
    rate = shelf.schedule(replace(recipe, schedule=own), (10, 10))
    phase = [0.5, 1.0, 1.0, *FALLS["cosine"]]
    assert [rate(step) for step in range(20)] == pytest.approx(2 * phase, abs=1e-6)


@pytest.mark.parametrize("shape", FALLS)
def test_golden_values_of_an_annealed_branch(place: Path, shape: str) -> None:
    """It leaves a constant rate after twelve of twenty steps and falls to a tenth of it."""
    recipe = config.load(place / "recipe.toml")
    own = replace(recipe, anneal=replace(recipe.anneal, tokens=640, shape=shape, floor=0.1))
    rate = shelf.annealed(own, Constant(2.0).over(20), 12, 20)
    wanted = [*[2.0] * 13, *(2 * value for value in FALLS[shape]), 0.2]
    assert [rate(step) for step in range(21)] == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize(
    ("shape", "values"),
    [
        ("linear", [0.775, 0.55, 0.325]),
        ("1-sqrt", [0.55, 0.363604, 0.220577]),
        ("cosine", [0.868198, 0.55, 0.231802]),
        ("exponential", [0.562341, 0.316228, 0.177828]),
    ],
)
def test_golden_values_of_warm_up_stable_decay(shape: str, values: list[float]) -> None:
    """Peak 1 to step 80, 0.1 at 100; by arXiv 2511.18903 for 1-sqrt, by hand."""
    rate = WSD(peak=1.0, floor=0.1, warmup=0.1, decay=0.2, shape=shape).over(100)
    assert [rate(t) for t in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert {rate(t) for t in range(10, 81)} == {1.0}
    assert [rate(t) for t in (85, 90, 95)] == pytest.approx(values, abs=1e-6)
    assert rate(100) == rate(10**9) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(
    ("shape", "cooled"), [("cosine", 0.775), ("rsqrt", 0.618765), ("linear", 0.775)]
)
def test_golden_values_of_the_infinite_schedule(shape: str, cooled: float) -> None:
    """Warm-up to step 10, cooldown to 0.55 at 40, anneal from 80 to 0.1 at 100 (arXiv 2403.08763,
    section 7; the steepness of rsqrt is that of its code)."""
    share = {"warmup": 0.1, "cooldown": 0.4, "anneal": 0.8}
    rate = Infinite(peak=1.0, constant=0.55, floor=0.1, shape=shape, **share).over(100)
    assert [rate(t) for t in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate(25) == pytest.approx(cooled, abs=1e-6)
    assert {rate(t) for t in range(40, 81)} == {0.55}
    assert [rate(t) for t in (90, 100)] == pytest.approx([0.234521, 0.1], abs=1e-6)


def test_an_inverse_square_root_has_fallen_most_of_its_way_early() -> None:
    """By hand: (1 / sqrt(1 + 10 x) - 1) / (1 / sqrt(11) - 1) at x = 0.1, 0.25, 0.5, 0.75."""
    fallen = [1 - DECAYS["rsqrt"](x, 0.0) for x in (0.1, 0.25, 0.5, 0.75)]
    assert fallen == pytest.approx([0.42, 0.67, 0.85, 0.94], abs=5e-3)


def test_without_an_anneal_the_infinite_schedule_stays_constant_for_ever() -> None:
    rate = Infinite(peak=2.0, constant=0.5).over(50)
    assert rate(30) == rate(49) == rate(10**9) == 1.0


@given(
    shape=st.sampled_from(sorted(DECAYS)),
    floor=st.floats(0.01, 1),
    x=st.floats(0, 1),
    y=st.floats(0, 1),
)
def test_every_decay_falls_from_1_to_its_floor(
    shape: str, floor: float, x: float, y: float
) -> None:
    fall = DECAYS[shape]
    assert fall(0.0, floor) == pytest.approx(1, abs=1e-12)
    assert fall(1.0, floor) == pytest.approx(floor, abs=1e-12)
    assert fall(min(x, y), floor) >= fall(max(x, y), floor) - 1e-12


@pytest.mark.parametrize("span", ["run", "phase", "first"])
def test_a_warm_up_may_be_given_in_tokens(place: Path, span: str) -> None:
    """Whatever the span's length: 640 tokens are 10 steps of 64, and 641 one more."""
    recipe = config.load(place / "recipe.toml")
    for kind in ("constant", "cosine", "linear", "wsd", "infinite"):
        own = {"kind": kind, "peak": 1.0, "span": span, "warmup_tokens": 640}
        rate = shelf.schedule(replace(recipe, schedule=own), (100, 70))
        assert [rate(0), rate(4), rate(9)] == pytest.approx([0.1, 0.5, 1.0])
        assert rate(100) == pytest.approx(0.1) or span != "phase"
        more = shelf.schedule(replace(recipe, schedule=own | {"warmup_tokens": 641}), (100, 70))
        assert [more(0), more(10)] == pytest.approx([1 / 11, 1.0])


@pytest.mark.parametrize(
    "wrong",
    [{"warmup_tokens": -1}, {"warmup_tokens": "10M"}, {"warmup_tokens": 640, "warmup": 0.1}],
)
def test_a_warm_up_in_tokens_that_cannot_be_is_refused(
    place: Path, wrong: dict[str, object]
) -> None:
    recipe = config.load(place / "recipe.toml")
    own = {"kind": "cosine", "peak": 1.0} | wrong
    with pytest.raises(Invalid, match=r"schedule.warmup_tokens = .*: tokens, in the place of"):
        shelf.check(replace(recipe, schedule=own))


@pytest.mark.parametrize("steps", [97, 100, 333])
@pytest.mark.parametrize("shape", ["cosine", "rsqrt", "linear"])
def test_no_schedule_jumps_where_its_parts_meet(shape: str, steps: int) -> None:
    """Where a part begins the rate is what the part before comes to, however the borders round."""
    rate = Infinite(peak=2.0, warmup=0.1, cooldown=0.4, anneal=0.8, shape=shape).over(steps)
    warm, cool, hot = (round(share * steps) for share in (0.1, 0.4, 0.8))
    assert rate(warm - 1) == rate(warm) == pytest.approx(2.0, rel=1e-12)
    assert [rate(cool), rate(hot - 1), rate(hot)] == pytest.approx([1.1] * 3, rel=1e-12)
    assert rate(steps) == pytest.approx(0.2, rel=1e-12)
    inside = [*range(warm, cool), *range(hot, steps)]
    assert all(rate(t + 1) < rate(t) for t in inside)


@pytest.mark.parametrize("steps", [97, 100, 333])
@pytest.mark.parametrize("shape", list(DECAYS))
def test_the_stable_part_meets_its_decay(shape: str, steps: int) -> None:
    rate = WSD(peak=2.0, floor=0.1, warmup=0.1, decay=0.2, shape=shape).over(steps)
    warm, falls = round(0.1 * steps), steps - round(0.2 * steps)
    assert rate(warm - 1) == rate(warm) == rate(falls) == pytest.approx(2.0, rel=1e-12)
    assert all(rate(t + 1) < rate(t) for t in range(falls, steps))
    assert rate(steps) == pytest.approx(0.2, rel=1e-12)


@pytest.mark.parametrize("steps", [7, 101, 335])
def test_a_warm_up_that_meets_the_decay_is_no_jump_at_odd_lengths(steps: int) -> None:
    """Half of 7 is 4 twice: the decay begins where the warm-up has ended."""
    rate = WSD(peak=2.0, floor=0.1, warmup=0.5, decay=0.5).over(steps)
    warm = round(0.5 * steps)
    assert rate(warm - 1) == rate(warm) == pytest.approx(2.0, rel=1e-12)
    assert rate(steps) == pytest.approx(0.2, rel=1e-12)


def test_the_infinite_schedule_goes_on_after_the_first_phase_unless_it_is_told_otherwise(
    place: Path,
) -> None:
    given = FIRST.replace('span = "first"\n', "")
    path = place / "infinite.toml"
    text = (place / "recipe.toml").read_text()
    path.write_text(text[: text.index("[schedule]")] + given + text[text.index("[batch]") :])
    recipe = config.load(path)
    rate = shelf.schedule(recipe, (100, 100))
    assert rate(50) == rate(199) == pytest.approx(0.0055) and rate(20) > rate(40)
    with pytest.raises(Invalid, match=r"schedule.anneal = 0.8: with span = 'first'"):
        shelf.schedule(replace(recipe, schedule=recipe.schedule | {"anneal": 0.8}), (100, 100))
    ends = recipe.schedule | {"anneal": 0.8}
    assert shelf.schedule(replace(recipe, schedule=ends), (100,))(100) == pytest.approx(0.001)


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


def test_over_the_first_phase_alone_later_ones_go_on_where_it_ended(tmp_path: Path) -> None:
    path = tiny.without(tiny.place(tmp_path), "schedule")
    path.write_text(path.read_text() + FIRST)
    recipe = config.load(path)
    rate = shelf.schedule(recipe, (20, 30))
    alone = Infinite(peak=1e-2, warmup=0.1, cooldown=0.5, shape="linear").over(20)
    assert [rate(t) for t in range(20)] == [alone(t) for t in range(20)]
    assert {rate(t) for t in range(20, 60)} == {alone(20)} == {1e-2 * 0.55}
    assert shelf.schedule(recipe, (20, 30, 40))(55) == rate(49)  # a later phase changes nothing


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


@pytest.mark.parametrize(
    ("shape", "fields", "message"),
    [
        (WSD, {"decay": 0.95, "warmup": 0.1}, "schedule.decay = 0.95: a share of the span; with"),
        (WSD, {"shape": "cosin"}, "schedule.shape = 'cosin'; did you mean 'cosine'"),
        (WSD, {"shape": "exponential", "floor": 0.0}, "schedule.floor = 0: an exponential decay"),
        (Infinite, {"cooldown": 0.0, "warmup": 0.1}, "warmup, cooldown, anneal = 0.1, 0.0, 1.0"),
        (Infinite, {"constant": 0.0}, "schedule.constant = 0.0: a share of the peak"),
        (Infinite, {"anneal": 0.9, "floor": 0.6}, "schedule.floor = 0.6: in .0, constant."),
        (Infinite, {"steepness": 0.0}, "schedule.steepness = 0.0: must be positive"),
    ],
)
def test_parts_of_a_schedule_that_do_not_fit_are_refused(
    shape: Callable[..., object], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        shape(peak=1.0, **fields)


@pytest.mark.parametrize(("warmup", "decay"), [(0.8, 0.2), (0.9, 0.1), (0.0, 1.0)])
def test_a_warm_up_and_a_decay_may_fill_a_span(warmup: float, decay: float) -> None:
    """In floats 1 - 0.8 is less than 0.2."""
    rate = WSD(peak=1.0, warmup=warmup, decay=decay, floor=0.1, shape="linear").over(100)
    assert rate(100) == pytest.approx(0.1)
