"""Downstream tasks in a run: recorded, and training does not notice them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from tasks import fill, sets, with_lm_eval

from treering import checkpoint, records
from treering.config import Invalid


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    """A run without tasks. It has dropout, so that the process's generators are drawn from."""
    tiny.run(place / "recipe.toml", place / "plain", "model.dropout=0.1")
    return place / "plain"


@pytest.fixture(scope="module")
def tasked(place: Path) -> Path:
    """The same run with tasks of three kinds at row 0 and phase ends."""
    asked = sets(place, "choose", "roll", "write")
    tiny.run(place / "recipe.toml", place / "tasked", "model.dropout=0.1", *asked)
    return place / "tasked"


@with_lm_eval
def test_a_run_with_tasks_equals_the_run_without_bit_for_bit(plain: Path, tasked: Path) -> None:
    tiny.assert_same_run(tasked, plain)
    one, other = tiny.files(tasked / "model"), tiny.files(plain / "model")
    assert {name for name in one if one[name] != other[name]} == {"README.md"}


@with_lm_eval
def test_tasks_are_recorded_at_row_0_and_at_phase_ends(plain: Path, tasked: Path) -> None:
    found = [record for record in records.read(tasked) if record["kind"] == "task"]
    keys = ["kind", "step", "phase", "task", "metric", "value", "stderr", "n"]
    assert all(list(record) == keys for record in found)
    named = ("choose", "acc"), ("roll", "bits_per_byte"), ("write", "exact_match")
    moments = ("base", 0), ("first", 25), ("second", 50)
    assert [(r["phase"], r["step"], r["task"], r["metric"]) for r in found] == [
        (*moment, *name) for moment in moments for name in named
    ]
    assert {record["n"] for record in found} == {8}
    rolled = [record for record in found if record["task"] == "roll"]
    assert rolled[2]["value"] < rolled[0]["value"]  # it has learned English
    assert {record["stderr"] for record in rolled} == {None}  # lm-eval knows none
    summary = json.loads((tasked / "summary.json").read_text())
    columns = ["choose/acc", "roll/bits_per_byte", "write/exact_match"]
    assert summary["tasks"]["columns"] == columns
    values = [[r["value"] for r in found if r["step"] == step] for _, step in moments]
    assert summary["tasks"]["values"] == values
    nothing = json.loads((plain / "summary.json").read_text())["tasks"]
    assert nothing["columns"] == [] and nothing["values"] == [[], [], []]
    assert "roll/bits_per_byte" in (tasked / "model/README.md").read_text()


@with_lm_eval
def test_what_the_tasks_cost_is_charged_to_evaluation(plain: Path, tasked: Path) -> None:
    ledgers = []
    for out in (plain, tasked):
        newest = checkpoint.newest(out / "checkpoints")
        assert newest is not None
        ledgers.append(newest[1]["ledger"])
    assert ledgers[1].pop("evaluation_flops") > 1.05 * ledgers[0].pop("evaluation_flops")
    assert ledgers[0] == ledgers[1]


@with_lm_eval
def test_an_interrupted_run_with_tasks_equals_the_unbroken_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (*tiny.KINDS, "task")
    asked = sets(place, "choose", "roll")
    tiny.run(place / "recipe.toml", tmp_path / "unbroken", *asked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(30, patch)
        tiny.run(place / "recipe.toml", tmp_path / "broken", *asked)
    moved = place / "moved"  # paths are no part of a run's identity
    (place / "tasks").rename(moved)
    try:
        elsewhere = (*asked, f"evaluate.task_folder='{moved}'")
        tiny.run(place / "recipe.toml", tmp_path / "broken", *elsewhere)
    finally:
        moved.rename(place / "tasks")
    tiny.assert_same_run(tmp_path / "broken", tmp_path / "unbroken", kinds)
    with pytest.raises(Invalid, match="the recipe changed: evaluate.task_limit: 8 -> 9"):
        more = (*asked, "evaluate.task_limit=9")
        tiny.run(place / "recipe.toml", tmp_path / "broken", *more)


@with_lm_eval
def test_tasks_on_two_ranks_are_those_of_one(place: Path, tmp_path: Path) -> None:
    """Choices, a rolling loss and a generated text of a model that is spread over two processes."""
    short = (*sets(place, "choose", "roll", "write"), "phases.0.tokens=640", "phases.1.tokens=640")
    tiny.run(place / "recipe.toml", tmp_path / "one", *short)
    command = [sys.executable, "-m", "treering", "run", str(place / "recipe.toml")]
    command += ["--out", str(tmp_path / "two"), "--cache", str(place / "cache"), "--devices", "2"]
    done = subprocess.run(
        [*command, *(f"--set={each}" for each in short)], timeout=100, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (tiny.story(tmp_path / name, ("task",)) for name in ("one", "two"))
    assert len(one) == len(two) == 3 * 3
    for a, b in zip(one, two, strict=True):
        assert a.pop("value") == pytest.approx(b.pop("value"), abs=1e-5)
        assert a.pop("stderr") == pytest.approx(b.pop("stderr"), abs=1e-5)
        assert a == b
