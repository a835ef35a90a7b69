"""A run along its way, and its matrix where it had spent so much: interpolated by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import cut, run

from treering.analysis.compare import METRICS
from treering.analysis.curves import curves, end, matrix_at
from treering.analysis.matrix import Matrix, matrix

VALUES = [[8.0, 8.0, 8.0], [3.0, 5.0, 6.0], [3.4, 2.8, 5.5], [3.2, 3.1, 2.5]]


def last(m: Matrix) -> list[float]:
    found: list[float] = m.values[-1].tolist()
    return found


# -- curves --------------------------------------------------------------------------------------


def test_a_curve_has_every_moment_at_which_the_run_was_scored() -> None:
    found = curves(run(VALUES, within={15: [3.1, 4.0, 5.8]}))
    assert found.step.tolist() == [0, 10, 15, 20, 30]
    assert found.tokens.tolist() == [0, 1000, 1500, 2000, 3000]
    assert found.flops.tolist() == [0, 10e9, 15e9, 20e9, 30e9]
    assert found.scores["t2"].tolist() == [8.0, 5.0, 4.0, 2.8, 3.1]
    assert list(found.scores) == ["t1", "t2", "t3"]


def test_a_branch_begins_where_the_run_does_and_is_scored_at_phase_ends() -> None:
    branch = [[3.1, 5.1, 6.1], [3.0, 2.9, 5.6], [2.9, 2.8, 2.7]]
    records = run(VALUES, within={15: [9.0, 9.0, 9.0]}, branches={"average 0.9": branch})
    found = curves(records, branch="average 0.9", metric="bits_per_byte")
    assert found.step.tolist() == [0, 10, 20, 30]
    assert found.scores["t1"].tolist() == [4.0, 1.55, 1.5, 1.45]


def test_what_is_missing_in_a_curve_is_nan() -> None:
    records = run([[8.0, None], [3.0, 5.0]], mixtures=[["t1"]], spent=(100, None))
    found = curves(records)
    assert math.isnan(found.scores["t2"][0]) and found.scores["t2"][1] == 5.0
    assert found.flops[0] == 0.0 and math.isnan(found.flops[1])
    nothing = curves(records[:1])
    assert nothing.step.size == nothing.scores["t1"].size == 0


def test_the_end_is_what_the_last_step_had_spent_and_nan_where_nobody_knows() -> None:
    assert end(run(VALUES), "tokens") == 3000.0 and end(run(VALUES), "flops") == 30e9
    assert end(cut(run(VALUES), 17), "tokens") == 1700.0
    assert math.isnan(end(run(VALUES, spent=(100, None)), "flops"))


# -- the matrix at a point -----------------------------------------------------------------------


def test_between_two_scores_the_last_row_is_on_the_line_between_them() -> None:
    m = matrix_at(run(VALUES), "tokens", 2250)  # a quarter of the third phase
    assert [row.label for row in m.rows] == ["base", "p1", "p2", "p3, cut"]
    assert last(m) == pytest.approx([3.35, 2.875, 4.75])
    assert m.values[:3].tolist() == VALUES[:3] and m.learned == {"t1": 1, "t2": 2, "t3": 3}
    assert METRICS["forgetting"](m).per_corpus == pytest.approx({"t1": 0.35, "t2": 0.075})
    assert METRICS["learned"](m).value == pytest.approx((3.0 + 2.8 + 4.75) / 3)


def test_a_score_within_the_phase_is_nearer_than_its_end() -> None:
    m = matrix_at(run(VALUES, within={25: [3.0, 3.0, 3.0]}), "tokens", 2250)
    assert last(m) == pytest.approx([3.2, 2.9, 4.25]) and m.rows[-1].step == 20
    beyond = matrix_at(run(VALUES, within={25: [3.0, 3.0, 3.0]}), "tokens", 2750)
    assert last(beyond) == pytest.approx([3.1, 3.05, 2.75]) and beyond.rows[-1].step == 25


def test_flops_are_a_clock_of_their_own() -> None:
    m = matrix_at(run(VALUES, spent=(100, 4e9)), "flops", 50e9)  # 12.5 steps
    assert [row.label for row in m.rows] == ["base", "p1", "p2, cut"]
    assert last(m) == pytest.approx([3.1, 4.45, 5.875]) and m.learned == {"t1": 1, "t2": 2}


def test_in_the_first_phase_its_corpus_counts_as_learned_so_far() -> None:
    m = matrix_at(run(VALUES), "tokens", 400)
    assert last(m) == pytest.approx([6.0, 6.8, 7.2]) and m.learned == {"t1": 1}
    assert METRICS["retained"](m).value == pytest.approx(6.0)
    assert math.isnan(METRICS["forgetting"](m).value)
    assert last(matrix_at(run(VALUES), "tokens", 0)) == VALUES[0]


def test_exactly_at_a_phase_end_the_row_is_that_end_and_no_next_phase_has_begun() -> None:
    m = matrix_at(run(VALUES), "tokens", 2000)
    assert len(m.rows) == 3 and last(m) == VALUES[2] and m.learned == {"t1": 1, "t2": 2}


def test_beyond_the_end_of_a_run_nothing_is_known() -> None:
    for records in (run(VALUES), cut(run(VALUES), 20)):
        m = matrix_at(records, "tokens", 3001)
        assert all(map(math.isnan, last(m))) and math.isnan(METRICS["retained"](m).value)
        assert m.values[:3].tolist() == VALUES[:3] and m.learned["t2"] == 2


def test_a_past_corpus_is_forgotten_from_the_first_step_on() -> None:
    records = run([[3.0, 8.0], [4.0, 2.0]], mixtures=[["t2"]], past=["t1"])
    m = matrix_at(records, "tokens", 250)
    assert m.learned == {"t1": 0, "t2": 1} and last(m) == pytest.approx([3.25, 6.5])
    assert METRICS["forgetting"](m).per_corpus == {"t1": pytest.approx(0.25)}


def test_a_score_that_is_missing_makes_its_corpus_nan_around_it_alone() -> None:
    records = run(VALUES, within={25: [None, 3.0, 3.0]})
    m = matrix_at(records, "tokens", 2250)
    assert math.isnan(last(m)[0]) and last(m)[1:] == pytest.approx([2.9, 4.25])
    assert last(matrix_at(records, "tokens", 3000)) == VALUES[3]


def test_flops_that_nobody_recorded_give_nan_and_no_error() -> None:
    m = matrix_at(run(VALUES, spent=(100, None)), "flops", 1e9)
    assert all(map(math.isnan, last(m)))
    no_tokens = matrix_at(run(VALUES, spent=(None, 1e9)), "flops", 15e9)
    assert last(no_tokens) == pytest.approx([3.2, 3.9, 5.75]) and no_tokens.rows[1].tokens is None


# -- properties ----------------------------------------------------------------------------------

losses = st.floats(0, 20).map(lambda x: round(x, 6))


@st.composite
def runs(draw: Callable[..., Any]) -> list[Any]:
    """Any corpora in any phases, scored within them too, at any cost of a step."""
    width, phases = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    names = [f"t{j + 1}" for j in range(width)]
    row = st.lists(losses, min_size=width, max_size=width)
    return run(
        draw(st.lists(row, min_size=phases + 1, max_size=phases + 1)),
        mixtures=[draw(st.sets(st.sampled_from(names), min_size=1)) for _ in range(phases)],
        past=draw(st.lists(st.sampled_from(names), unique=True)),
        within=draw(st.dictionaries(st.integers(1, 10 * phases).filter(lambda s: s % 10), row)),
        spent=(draw(st.integers(1, 10**6)), draw(st.floats(1.0, 1e15))),
    )


@given(runs(), st.sampled_from(["tokens", "flops"]))
def test_cut_at_its_own_end_a_run_is_as_it_is(records: list[Any], clock: Any) -> None:
    whole, found = matrix(records), matrix_at(records, clock, end(records, clock))
    np.testing.assert_array_equal(found.values, whole.values)
    assert found.learned == whole.learned and found.ends == whole.ends
    for metric in METRICS.values():
        a, b = metric(found), metric(whole)
        assert a.per_corpus == b.per_corpus and a.value == pytest.approx(b.value, nan_ok=True)


@given(runs(), st.floats(0, 1), st.sampled_from(["tokens", "flops"]))
def test_a_cut_lies_between_its_neighbours(records: list[Any], share: float, clock: Any) -> None:
    spent = share * end(records, clock)
    found, line = matrix_at(records, clock, spent), curves(records)
    at = getattr(line, clock)
    right = int(np.searchsorted(at, spent))
    left = right if at[right] == spent else right - 1
    for j, column in enumerate(line.scores.values()):
        low, high = sorted((column[left], column[right]))
        assert low - 1e-9 <= found.values[-1, j] <= high + 1e-9
    assert found.values[:-1].tolist() == matrix(records).values[: len(found.rows) - 1].tolist()


@given(runs(), st.integers(0, 40))
def test_a_cut_at_any_score_is_that_score(records: list[Any], pick: int) -> None:
    line = curves(records)
    at = pick % line.step.size
    found = matrix_at(records, "tokens", float(line.tokens[at]))
    assert last(found) == [column[at] for column in line.scores.values()]
