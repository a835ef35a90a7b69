"""What a run leaves behind can be written, read, torn and cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.records import Records, cut, read

Run = list[tuple[str, dict[str, Any]]]

RUN: Run = [
    ("header", {"recipe": {"seed": 0}}),
    ("score", {"step": 0, "corpus": "en", "loss": 9.0}),
    ("step", {"step": 1, "loss": 8.0}),
    ("step", {"step": 2, "loss": 7.0}),
    ("checkpoint", {"step": 2, "path": "checkpoints/2"}),
    ("step", {"step": 3, "loss": 6.0}),
    ("score", {"step": 3, "corpus": "en", "loss": 5.5}),
]


def written(folder: Path, run: Run = RUN) -> Path:
    records = Records(folder / "records.jsonl")
    for kind, fields in run:
        records.append(kind, fields)
    records.sync()
    records.close()
    return folder / "records.jsonl"


def as_read(run: Run) -> list[dict[str, Any]]:
    return [{"kind": kind, **fields} for kind, fields in run]


def test_what_was_written_is_read_in_order_from_the_file_or_its_folder(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert read(path) == read(tmp_path) == read(str(tmp_path)) == as_read(RUN)


def test_a_second_sitting_writes_on(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, [("end", {"reason": "finished", "seconds": 1.5})])
    assert read(tmp_path) == [*as_read(RUN), {"kind": "end", "reason": "finished", "seconds": 1.5}]


def test_a_record_can_be_read_before_the_file_is_closed(tmp_path: Path) -> None:
    records = Records(tmp_path / "records.jsonl")
    records.append("step", {"step": 1})
    assert read(tmp_path) == [{"kind": "step", "step": 1}]
    records.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    path = written(tmp_path, [("step", {"step": 1, "loss": value})])
    assert path.read_text() == '{"kind": "step", "step": 1, "loss": null}\n'


def test_names_in_any_script_and_with_line_breaks_stay_one_record(tmp_path: Path) -> None:
    run: Run = [("score", {"corpus": "日本語\n\u2028|", "step": 0})]
    assert read(written(tmp_path, run)) == as_read(run)


@given(torn=st.integers(1, 400))
def test_a_file_torn_anywhere_gives_its_whole_records(
    tmp_path_factory: pytest.TempPathFactory, torn: int
) -> None:
    path = written(tmp_path_factory.mktemp("run"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-torn])
    left = whole[:-torn].count(b"\n")
    assert read(path) == as_read(RUN)[:left]


@pytest.mark.parametrize("tail", [b'{"kind": "st', b"\x00" * 16, b"\xff\xfe\n", b"[1, 2]\n", b"\n"])
def test_what_is_no_record_ends_the_reading_and_is_cut_away(tmp_path: Path, tail: bytes) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert read(path) == as_read(RUN)
    cut(path, 3)
    assert path.read_bytes() == whole


def test_cut_leaves_the_records_up_to_a_step_and_then_each_step_stands_once(tmp_path: Path) -> None:
    path = written(tmp_path)
    cut(path, 2)
    assert read(path) == as_read(RUN[:5])
    written(tmp_path, [("header", {"recipe": {"seed": 0}}), *RUN[5:]])
    steps = [record["step"] for record in read(path) if record["kind"] == "step"]
    assert steps == [1, 2, 3]


def test_cut_at_0_keeps_the_scores_before_training(tmp_path: Path) -> None:
    path = written(tmp_path)
    cut(path, 0)
    assert read(path) == as_read(RUN[:2])


def test_cut_of_nothing_is_nothing(tmp_path: Path) -> None:
    cut(tmp_path / "records.jsonl", 3)
    assert not (tmp_path / "records.jsonl").exists()


def test_kinds_that_nobody_knows_are_read_as_they_are(tmp_path: Path) -> None:
    run = [*RUN, ("weather", {"step": 3, "sky": ["blue"]})]
    assert read(written(tmp_path, run)) == as_read(run)
