"""What a run leaves behind can be written, read, torn and cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treering.config import Invalid
from treering.records import Records, cut, read

Run = list[tuple[str, dict[str, Any]]]

HEADER: dict[str, Any] = {
    "recipe": {"seed": 0, "corpora": {"en": {}}, "phases": [{"name": "one", "mixture": {"en": 1}}]},
    "phases": [{"name": "one", "end_step": 3}],
}
RUN: Run = [
    ("header", HEADER),
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
    within = {"step": 2, "counters": {"update": {"merged": [{"norm": value}], "pair": (1, value)}}}
    path = written(tmp_path, [("checkpoint", within)])
    assert '{"merged": [{"norm": null}], "pair": [1, null]}' in path.read_text()


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


@pytest.mark.parametrize("line", [b"\n", b"\x00\n", b"[1]\n", b"{}\n", b"[" * 100_000 + b"\n"])
def test_damage_before_the_last_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], line, *lines[4:]]))
    with pytest.raises(Invalid, match=r"records.jsonl: line 4 is damaged; restore the file"):
        read(path)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, "step is missing"),
        ({"step": True}, "step = True"),
        ({"step": 4, "loss": "low"}, "loss = low"),
        ({"step": 4, "tokens": 10**400}, "tokens = 10000000"),
    ],
)
def test_a_record_that_no_run_wrote_is_named(
    tmp_path: Path, fields: dict[str, Any], wrong: str
) -> None:
    with pytest.raises(Invalid, match=rf"line 8 is damaged \({wrong}.*\); restore the file"):
        read(written(tmp_path, [*RUN, ("step", fields)]))


def test_records_that_end_before_the_checkpoint_are_not_cut_but_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    with pytest.raises(Invalid, match=r"records.jsonl: ends at step 3, the checkpoint is of 4; "):
        cut(path, 4)
    assert path.read_bytes() == whole


def test_cut_leaves_the_records_up_to_a_step_and_then_each_step_stands_once(tmp_path: Path) -> None:
    path = written(tmp_path)
    cut(path, 2)
    assert read(path) == as_read(RUN[:5])
    written(tmp_path, [("header", HEADER), *RUN[5:]])
    steps = [record["step"] for record in read(path) if record["kind"] == "step"]
    assert steps == [1, 2, 3]


def test_cut_at_0_keeps_the_scores_before_training(tmp_path: Path) -> None:
    path = written(tmp_path)
    cut(path, 0)
    assert read(path) == as_read(RUN[:2])


@pytest.mark.parametrize(("reasons", "step"), [
    ((None, "failed"), None), ((None, None, "failed"), 1), (("finished",), None),
    ((None, "finished"), 1), ((None, "preempted"), 1), ((None, None, "preempted"), 2),
    ((None, "interrupted"), None), ((None, None), 1), ((None,), None),
])  # fmt: skip
def test_records_whose_checkpoints_are_gone_are_not_cut_but_named(
    tmp_path: Path, reasons: tuple[str | None, ...], step: int | None
) -> None:
    """None of `reasons` is a checkpoint; one alone may have been killed as it was written."""
    log = Records(tmp_path / "records.jsonl")
    for i, reason in enumerate(reasons, 1):
        log.append("step", {"step": i, "phase": "a"})
        kind = "checkpoint" if reason is None else "end"
        log.append(kind, {"step": i} if reason is None else {"reason": reason})
    log.close()
    before = (tmp_path / "records.jsonl").read_bytes()
    if step is None:
        cut(tmp_path / "records.jsonl", -1)
        assert (tmp_path / "records.jsonl").read_bytes() == b""
        return
    with pytest.raises(Invalid, match=f"checkpoint after step {step} is gone or damaged; restore"):
        cut(tmp_path / "records.jsonl", -1)
    assert (tmp_path / "records.jsonl").read_bytes() == before


def test_cut_of_nothing_is_nothing(tmp_path: Path) -> None:
    cut(tmp_path / "records.jsonl", 3)
    assert not (tmp_path / "records.jsonl").exists()


def test_kinds_that_nobody_knows_are_read_as_they_are(tmp_path: Path) -> None:
    run = [*RUN, ("weather", {"step": 3, "sky": ["blue"]})]
    assert read(written(tmp_path, run)) == as_read(run)
