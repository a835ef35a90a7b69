"""The metrics of continual learning: worked examples, identities, and runs read from records."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recorded
from hypothesis import given
from hypothesis import strategies as st

from treering.analysis import forgetting as metrics
from treering.analysis.forgetting import Metric
from treering.analysis.matrix import Matrix, Row, matrix
from treering.config import Invalid
from treering.records import Records

ACCURACY = [[0.1, 0.1, 0.1], [0.90, 0.20, 0.10], [0.70, 0.80, 0.30], [0.60, 0.75, 0.85]]
MONOTONE = [[8.0, 8.0, 8.0], [3.0, 5.0, 6.0], [3.4, 2.8, 5.5], [3.2, 3.1, 2.5]]
BACKWARD = [[8.0, 8.0, 8.0], [3.0, 5.0, 6.0], [2.9, 2.8, 5.5], [3.1, 2.7, 2.5]]
ALL = (metrics.forgetting, metrics.retained, metrics.learned, metrics.bwt, metrics.fwt)


def sequence(values: Any, direction: Any = "lower") -> Matrix:
    """One corpus a phase: row 0, then a row for each."""
    values = np.array(values, dtype=float)
    names = tuple(f"t{j + 1}" for j in range(values.shape[1]))
    rows = tuple(Row(f"s{i}", i) for i in range(len(values)))
    return Matrix(values, rows, names, {n: j + 1 for j, n in enumerate(names)}, direction)


def near(value: float) -> Any:
    return pytest.approx(value, abs=1e-12)


# -- worked examples -----------------------------------------------------------------------------


def test_example_a_accuracy() -> None:
    a = sequence(ACCURACY, "higher")
    reference = {"t1": 0.92, "t2": 0.85, "t3": 0.90}
    assert metrics.retained(a).value == near(2.2 / 3)  # the average performance
    assert metrics.incremental_mean(a).value == near((0.90 + 0.75 + 2.2 / 3) / 3)
    assert metrics.forgetting(a).value == near(0.175)
    assert metrics.forgetting(a).per_corpus == {"t1": near(0.30), "t2": near(0.05)}
    assert metrics.bwt(a).value == near(-0.175)
    assert metrics.fwt(a).value == near(0.15)
    assert metrics.fwt(a).per_corpus == {"t2": near(0.10), "t3": near(0.20)}
    assert metrics.intransigence(a, reference).value == near(0.04)


def test_example_b_loss() -> None:
    b = sequence(MONOTONE)
    assert metrics.forgetting(b).value == near(0.25)
    assert metrics.forgetting(b).per_corpus == {"t1": near(0.2), "t2": near(0.3)}
    assert metrics.bwt(b).value == near(-0.25)
    assert metrics.retained(b).value == near(8.8 / 3)
    assert metrics.learned(b).value == near(8.3 / 3)
    assert metrics.fwt(b).value == near(2.75)
    reference = {"t1": 2.9, "t2": 2.7, "t3": 2.6}
    assert metrics.intransigence(b, reference).value == near(0.1 / 3)


def test_example_c_loss_with_backward_transfer() -> None:
    c = sequence(BACKWARD)
    assert metrics.forgetting(c).per_corpus == {"t1": near(0.2), "t2": near(-0.1)}
    assert metrics.forgetting(c).value == near(0.05)
    assert metrics.bwt(c).value == near(0.0)
    assert metrics.retained(c).value == near(8.3 / 3) == metrics.learned(c).value


def test_the_mean_is_over_the_corpora_that_have_the_metric_not_over_all() -> None:
    a = sequence(ACCURACY, "higher")
    for metric, trap in ((metrics.forgetting(a), 0.1167), (metrics.bwt(a), -0.1167)):
        assert set(metric.per_corpus) == {"t1", "t2"}
        assert sum(metric.per_corpus.values()) / 3 == pytest.approx(trap, abs=1e-4)
        assert abs(metric.value - trap) > 0.05
    assert sum(metrics.fwt(a).per_corpus.values()) / 3 == near(0.10) != metrics.fwt(a).value


def test_more_of_the_past_can_only_raise_forgetting() -> None:
    b = sequence(MONOTONE)
    within = dataclasses.replace(  # t2 was at 2.6 in the middle of the second phase
        b,
        values=np.insert(b.values, 2, [3.3, 2.6, 5.7], axis=0),
        rows=(*b.rows[:2], Row("s2", 1, end=False), *b.rows[2:]),
        learned={"t1": 1, "t2": 3, "t3": 4},
    )
    for past in ("stage_ends", "all_stage_ends"):
        assert metrics.forgetting(within, past=past).value == near(0.25)
    assert metrics.forgetting(within, past="all_evals").per_corpus["t2"] == near(0.5)
    assert metrics.bwt(within) == metrics.bwt(b)
    assert metrics.fwt(within) == metrics.fwt(b)
    better_before = sequence([[2.0, 1.0], [3.0, 2.0], [4.0, 3.0]])
    assert metrics.forgetting(better_before).value == near(1.0)
    assert metrics.forgetting(better_before, past="all_stage_ends").value == near(2.0)


# -- identities ----------------------------------------------------------------------------------


@st.composite
def matrices(draw: Callable[..., Any]) -> Matrix:
    """Any corpora learned at any row: jointly, before the run (row 0), or never."""
    count = draw(st.integers(2, 6))
    names = tuple("abcdef"[: draw(st.integers(1, 6))])
    value = st.floats(0, 20, allow_nan=False).map(lambda x: round(x, 6))
    line = st.lists(value, min_size=len(names), max_size=len(names))
    values = np.array(draw(st.lists(line, min_size=count, max_size=count)))
    learned = {name: draw(st.none() | st.integers(0, count - 1)) for name in names}
    direction = draw(st.sampled_from(["lower", "higher"]))
    known = {name: row for name, row in learned.items() if row is not None}
    return Matrix(values, tuple(Row(f"s{i}", i) for i in range(count)), names, known, direction)


@given(matrices())
def test_minus_bwt_is_at_most_forgetting(m: Matrix) -> None:
    forgot, transfer = metrics.forgetting(m), metrics.bwt(m)
    assert forgot.per_corpus.keys() == transfer.per_corpus.keys()
    for corpus, value in forgot.per_corpus.items():
        assert -transfer.per_corpus[corpus] <= value + 1e-9


@given(matrices())
def test_forgetting_is_minus_bwt_where_the_best_past_is_when_it_was_learned(m: Matrix) -> None:
    best = m.values.min(axis=0) if m.direction == "lower" else m.values.max(axis=0)
    values = m.values.copy()
    for corpus, row in m.learned.items():
        at = m.corpora.index(corpus)
        values[row, at] = best[at]
    m = dataclasses.replace(m, values=values)
    opposite = {corpus: near(-value) for corpus, value in metrics.bwt(m).per_corpus.items()}
    assert metrics.forgetting(m).per_corpus == opposite


@given(matrices())
def test_retained_less_learned_is_minus_bwt_spread_over_all_learned_corpora(m: Matrix) -> None:
    now, then, transfer = metrics.retained(m), metrics.learned(m), metrics.bwt(m)
    for corpus in {corpus for corpus, row in m.learned.items() if row == m.ends[-1]}:
        assert now.per_corpus[corpus] == then.per_corpus[corpus]
    if transfer.per_corpus:
        share = len(transfer.per_corpus) / len(now.per_corpus)
        difference = m.sign * (now.value - then.value)
        assert difference == pytest.approx(-share * transfer.value, abs=1e-9)


@given(matrices(), st.integers(0, 5))
def test_a_frozen_model_forgets_nothing(m: Matrix, row: int) -> None:
    frozen = dataclasses.replace(m, values=np.tile(m.values[row % len(m.rows)], (len(m.rows), 1)))
    for metric in (metrics.forgetting(frozen), metrics.bwt(frozen), metrics.fwt(frozen)):
        assert set(metric.per_corpus.values()) <= {0.0}


@given(matrices())
def test_longer_pasts_never_lower_forgetting(m: Matrix) -> None:
    since = metrics.forgetting(m).per_corpus
    ends = metrics.forgetting(m, past="all_stage_ends").per_corpus
    evals = metrics.forgetting(m, past="all_evals").per_corpus
    assert all(since[corpus] <= ends[corpus] <= evals[corpus] for corpus in since)


@given(matrices())
def test_a_strictly_worse_last_row_is_forgetting_with_its_sign(m: Matrix) -> None:
    values = m.values.copy()
    values[-1] = m.sign * ((m.sign * values[:-1]).max(axis=0) + 1)
    worse = dataclasses.replace(m, values=values)
    if metrics.forgetting(worse).per_corpus:
        assert metrics.forgetting(worse).value > 0 > metrics.bwt(worse).value


@given(matrices(), st.randoms())
def test_the_order_of_columns_does_not_matter(m: Matrix, random: Any) -> None:
    order = list(range(len(m.corpora)))
    random.shuffle(order)
    names = tuple(m.corpora[at] for at in order)
    other = dataclasses.replace(m, values=m.values[:, order], corpora=names)
    for metric in ALL:
        one, two = metric(m), metric(other)
        assert one.per_corpus == two.per_corpus
        assert one.value == pytest.approx(two.value, nan_ok=True)


@given(matrices())
def test_accuracy_is_loss_with_its_sign_turned(m: Matrix) -> None:
    turned: Any = {"lower": "higher", "higher": "lower"}[m.direction]
    other = dataclasses.replace(m, values=-m.values, direction=turned)
    for metric in (metrics.forgetting, metrics.bwt, metrics.fwt):
        assert metric(m).per_corpus == metric(other).per_corpus


# -- undefined and missing -----------------------------------------------------------------------


def test_one_phase_has_no_forgetting_and_no_transfer_and_says_so() -> None:
    one = sequence([[8.0], [3.0]])
    for metric in (metrics.forgetting, metrics.bwt, metrics.fwt):
        found = metric(one)
        assert (
            math.isnan(found.value) and found.per_corpus == {} and "no corpus" in str(found.reason)
        )
        with pytest.raises(ValueError, match="no corpus"):
            metric(one, strict=True)
    assert metrics.retained(one).value == metrics.learned(one).value == 3.0
    assert metrics.incremental_mean(one).value == 3.0


def test_before_any_phase_is_finished_nothing_is_judged() -> None:
    none = Matrix(np.array([[8.0]]), (Row("base", 0),), ("a",), {})
    for metric in (*ALL, metrics.incremental_mean):
        assert math.isnan(metric(none).value) and metric(none).reason


def test_a_missing_cell_is_nan_with_its_name_or_raises() -> None:
    values = [row[:] for row in MONOTONE]
    values[2][0] = math.nan
    holed = sequence(values)
    found = metrics.forgetting(holed)
    assert math.isnan(found.value) and math.isnan(found.per_corpus["t1"])
    assert found.per_corpus["t2"] == near(0.3)
    assert found.reason == "nats/token of 't1' is missing at 's2' (step 2)"
    with pytest.raises(ValueError, match="'t1' is missing at 's2'"):
        metrics.forgetting(holed, strict=True)
    assert metrics.bwt(holed, strict=True).value == near(-0.25)  # which does not need that cell
    with pytest.raises(ValueError, match="'t3' is missing in the reference"):
        metrics.intransigence(sequence(MONOTONE), {"t1": 2.9, "t2": 2.7}, strict=True)
    assert math.isnan(metrics.incremental_mean(holed).value)
    assert "'t1'" in str(metrics.incremental_mean(holed).reason)


# -- from records --------------------------------------------------------------------------------


def run(values: Any, mixtures: list[list[str]], *, past: tuple[str, ...] = ()) -> list[Any]:
    """The records of a run of 10 steps a phase, scored as in `values`, ended as it should."""
    corpora = [f"t{j + 1}" for j in range(len(values[0]))]
    phases = [
        {"name": f"p{i + 1}", "tokens": 1000, "mixture": dict.fromkeys(names, 1.0)}
        for i, names in enumerate(mixtures)
    ]
    recipe = {
        "corpora": {name: {"train": name, "validation": 0.1} for name in corpora},
        "phases": phases,
        "replay": {"share": 0.25, "past": list(past)},
    }
    ends = [{"name": p["name"], "end_step": 10 * (i + 1)} for i, p in enumerate(phases)]
    records: list[Any] = [{"kind": "header", "recipe": recipe, "phases": ends}]
    for at, row in enumerate(values):
        if at:
            step = {"tokens": 1000 * at, "fresh_tokens": 750 * at, "flops": 1e9 * at}
            records.append({"kind": "step", "step": 10 * at, "seconds": 2.0 * at, **step})
        for corpus, loss in zip(corpora, row, strict=True):
            score = {"loss": loss, "bits_per_byte": loss / 2, "tokens": 512}
            records.append({"kind": "score", "step": 10 * at, "corpus": corpus, **score})
    return [*records, {"kind": "end", "reason": "finished", "seconds": 2.0 * (len(values) - 1)}]


def test_a_sequential_run_gives_the_worked_example() -> None:
    m = matrix(run(BACKWARD, [["t1"], ["t2"], ["t3"]]))
    assert m.rows == (Row("base", 0, 0), *(Row(f"p{i}", 10 * i, 1000 * i) for i in (1, 2, 3)))
    assert m.learned == {"t1": 1, "t2": 2, "t3": 3} and m.corpora == ("t1", "t2", "t3")
    np.testing.assert_array_equal(m.values, BACKWARD)
    assert metrics.forgetting(m).value == near(0.05)


def test_scores_within_phases_are_rows_on_request_and_never_stages() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    for corpus, loss in (("t1", 2.5), ("t2", 4.0), ("t3", 5.8)):
        records.insert(-4, {"kind": "score", "step": 15, "corpus": corpus, "loss": loss})
    assert metrics.forgetting(matrix(records)).value == near(0.25)
    full = matrix(records, ends_only=False)
    assert [row.end for row in full.rows] == [True, True, False, True, True]
    assert full.learned == {"t1": 1, "t2": 3, "t3": 4}
    assert metrics.forgetting(full).value == near(0.25)
    assert metrics.forgetting(full, past="all_evals").per_corpus["t1"] == near(0.7)
    running = [r for r in records if r.get("step", 0) <= 15]
    assert [row.step for row in matrix(running, ends_only=False).rows] == [0, 10, 15]
    assert metrics.retained(matrix(running, ends_only=False)).value == 3.0


def test_corpora_of_one_phase_are_learned_together() -> None:
    m = matrix(run([[8, 8, 8], [3, 4, 6], [5, 4, 2]], [["t1", "t2"], ["t3"]]))
    assert m.learned == {"t1": 1, "t2": 1, "t3": 2}
    assert metrics.forgetting(m).per_corpus == {"t1": 2.0, "t2": 0.0}
    assert metrics.fwt(m).per_corpus == {"t3": 2.0}
    joint = matrix(run([[8, 8], [3, 4]], [["t1", "t2"]]))
    assert metrics.retained(joint).value == 3.5
    assert math.isnan(metrics.forgetting(joint).value)


def test_a_phase_that_names_a_corpus_again_does_not_learn_it_anew() -> None:
    m = matrix(run([[8, 8], [3, 6], [5, 2], [4, 3]], [["t1"], ["t2"], ["t1"]]))
    assert m.learned == {"t1": 1, "t2": 2}
    assert metrics.forgetting(m).per_corpus == {"t1": 1.0, "t2": 1.0}


def test_a_past_corpus_is_learned_at_row_0_and_forgotten_from_row_1() -> None:
    m = matrix(run([[3, 8], [4, 2]], [["t2"]], past=("t1",)))
    assert m.learned == {"t1": 0, "t2": 1}
    assert metrics.forgetting(m) == Metric(1.0, {"t1": 1.0}, "nats/token")
    assert metrics.bwt(m).value == -1.0
    assert metrics.retained(m).value == 3.0 and metrics.learned(m).value == 2.5
    assert math.isnan(metrics.fwt(m).value)


def test_a_corpus_in_no_phase_stands_in_the_matrix_only() -> None:
    m = matrix(run([[8, 8, 8], [3, 7, 5], [4, 7, 2]], [["t1"], ["t3"]]))
    assert m.corpora == ("t1", "t2", "t3") and m.learned == {"t1": 1, "t3": 2}
    assert m.values[2, 1] == 7.0
    assert all("t2" not in metric(m).per_corpus for metric in ALL)


def test_an_unfinished_run_has_the_rows_that_are_there() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    found = metrics.summary([record for record in records if record.get("step", 0) <= 20][:-1])
    assert [row["label"] for row in found["rows"]] == ["base", "p1", "p2"]
    assert found["learned"] == {"t1": 1, "t2": 2} and found["end"] is None
    assert found["loss"]["metrics"]["forgetting"]["per_corpus"] == {"t1": near(0.4)}
    begun = metrics.summary(records[:1])
    assert begun["loss"]["values"] == [[None, None, None]] and begun["step"] == 0
    assert begun["loss"]["metrics"]["retained"]["value"] is None


def test_a_diverged_last_row_is_missing_not_left_out() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    for record in records:
        if record["kind"] == "score" and record["step"] == 30:
            record["loss"] = None
    found = metrics.forgetting(matrix(records))
    assert math.isnan(found.value) and "at 'p3' (step 30)" in str(found.reason)


def test_unknown_kinds_and_keys_change_nothing() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    strange = [{**record, "mood": {"good": True}} for record in records]
    strange = [part for record in strange for part in ({"kind": "weather", "step": 99}, record)]
    assert metrics.summary([{"no": "kind"}, *strange]) == metrics.summary(records)


def test_the_summary_is_json_without_nan_and_counts_what_was_spent() -> None:
    found = metrics.summary(run(MONOTONE, [["t1"], ["t2"], ["t3"]]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["end"] == "finished" and found["step"] == 30
    assert found["tokens"] == 3000 and found["fresh_tokens"] == 2250
    assert found["replayed_share"] == 0.25 == found["asked_share"]
    assert found["flops"] == 3e9 and found["seconds"] == 6.0
    assert found["loss"]["values"] == MONOTONE
    assert found["bits_per_byte"]["unit"] == "bits/byte"
    assert found["bits_per_byte"]["metrics"]["bwt"]["value"] == near(-0.125)


def test_bits_per_byte_that_nobody_knows_are_none_with_a_reason() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    for record in records:
        record.pop("bits_per_byte", None)
    found = metrics.summary(records)
    assert found["loss"]["metrics"]["retained"]["value"] == near(8.8 / 3)
    assert len(found["bits_per_byte"]["values"]) == 4
    assert found["bits_per_byte"]["metrics"]["retained"]["value"] is None
    assert "bits/byte of 't1'" in found["bits_per_byte"]["metrics"]["retained"]["reason"]


def test_a_resumed_run_ends_as_its_last_sitting_did() -> None:
    records = run(MONOTONE, [["t1"], ["t2"], ["t3"]])
    interrupted = [*records[:5], {"kind": "end", "reason": "interrupted", "seconds": 1.0}]
    assert metrics.summary(interrupted)["end"] == "interrupted"
    assert metrics.summary([*interrupted, records[0]])["end"] is None
    assert metrics.summary([*interrupted, *records])["end"] == "finished"


def test_records_without_a_header_are_refused() -> None:
    with pytest.raises(Invalid, match="no header"):
        matrix([{"kind": "step", "step": 1}])


def test_the_page_of_metrics_shows_what_can_be_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a run of two phases, whose figures are those by hand."""
    page = (Path(__file__).parents[1] / "docs/metrics.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "runs/law").mkdir(parents=True)
    written = Records(tmp_path / "runs/law/records.jsonl")
    for record in recorded.run([[2.0, 2.0], [1.0, 1.5], [1.25, 0.5]], mixtures=[["t1"], ["t2"]]):
        written.append(record["kind"], {k: v for k, v in record.items() if k != "kind"})
    written.close()
    monkeypatch.chdir(tmp_path)
    for said, here in (('"bits_per_byte"', '"loss"'), ('"law": 0.91', '"t1": 0.75, "t2": 0.25')):
        code = code.replace(said, here)
    exec(code, {})
    shown = capsys.readouterr().out.split("\n")
    assert shown == ["{'t1': 0.25}", "0.9375", "0.25", ""]
