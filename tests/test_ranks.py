"""What ranks waited for and held: clocks and sums; on real ranks in test_mesh.py."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny
from rich.console import Console

from treering import records
from treering.analysis.costs import ranks, throughput
from treering.folder import summary
from treering.mesh import Mesh
from treering.ranks import Ranks
from treering.report.table import show


def slowly() -> Iterator[int]:
    for number in range(3):
        time.sleep(0.05)
        yield number


def test_the_clock_runs_while_a_batch_is_waited_for() -> None:
    clocks = Ranks(Mesh())
    assert list(clocks.waiting(slowly())) == [0, 1, 2]
    time.sleep(0.05)
    found = clocks.record()
    assert 0.15 <= found["waited_for_text"][0] <= found["seconds"] - 0.05
    assert found["slowest"] == 0 and found["waited_for_slowest"] == 0
    assert 10 * 2**20 < found["memory"][0] < 2**40
    clocks.begin()
    assert clocks.record()["waited_for_text"] == [0.0]


def test_the_slowest_is_who_computed_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = Mesh(world=3)
    monkeypatch.setattr(mesh, "gather", lambda own: [(0.5, 1.0, 7), (0.0, 4.0, 9), (0.0, 1.0, 8)])
    found = Ranks(mesh).record()
    assert found["slowest"] == 1 and found["waited_for_slowest"] == 2.0
    assert found["waited_for_text"] == [0.5, 0.0, 0.0] and found["memory"] == [7, 9, 8]


def test_a_summary_has_shares_of_all_windows() -> None:
    window = {"kind": "ranks", "seconds": 10.0, "computed": [5.0, 7.0]}
    found = ranks(
        [
            window | {"waited_for_text": [1.0, 0.0], "slowest": 1, "waited_for_slowest": 1.0,
                      "memory": [5, 6]},
            window | {"waited_for_text": [1.0, 3.0], "slowest": 1, "waited_for_slowest": 2.0,
                      "memory": [8, 7]},
            {"kind": "step", "seconds": 99.0},
        ]
    )  # fmt: skip
    assert found == {"waited_for_text": 0.15, "waited_for_slowest": 0.15, "slowest": 1, "memory": 8,
                     "processes": 2}  # fmt: skip
    assert set(ranks([]).values()) == {None}


def test_a_run_that_went_on_with_more_processes_is_told_by_these() -> None:
    window = {"kind": "ranks", "seconds": 10.0, "waited_for_slowest": 0.0, "slowest": 0}
    alone = window | {"waited_for_text": [5.0], "memory": [9]}
    pair = window | {"waited_for_text": [1.0, 2.0], "memory": [3, 4]}
    assert ranks([alone, pair, pair]) == {
        "waited_for_text": 0.2, "waited_for_slowest": 0.0, "slowest": 0, "memory": 4, "processes": 2
    }  # fmt: skip


@pytest.mark.parametrize("broken", [
    {"seconds": None}, {"waited_for_text": [None, 1.0]}, {"memory": [], "waited_for_text": []},
    {"waited_for_text": [1.0]},
])  # fmt: skip
def test_a_window_that_is_not_whole_is_left_out(broken: dict[str, Any]) -> None:
    whole = {"kind": "ranks", "step": 1, "seconds": 10.0, "waited_for_text": [1.0, 2.0],
             "memory": [3, 4]}  # fmt: skip
    wanted = {"waited_for_text": 0.2, "waited_for_slowest": None, "slowest": None, "memory": 4,
              "processes": 2}  # fmt: skip
    assert ranks([whole, whole | broken]) == ranks([whole]) == wanted


@pytest.mark.parametrize("speed", [{}, {"flops_per_token": 9.0}, {"devices": 0},
                                   {"flops_per_token": None, "devices": 1}])  # fmt: skip
def test_a_speed_that_is_not_whole_is_not_known(speed: dict[str, Any]) -> None:
    header = recorded.header(["t1"], [["t1"]]) | {"speed": speed}
    step = {"kind": "step", "step": 1, "tokens_per_second": 5.0}
    found = throughput([header, step])
    assert found["tokens_per_second"] == 5.0 and found["full"] == {"tflops": None, "mfu": None}


def test_records_of_kinds_that_are_not_known_are_not_read() -> None:
    """Their keys may be of other types."""
    header = recorded.header(["t1"], [["t1"]])
    step = {"kind": "step", "step": 1, "tokens_per_second": 5.0}
    later = {"kind": "later", "tokens_per_second": [], "ledger": 3}
    assert throughput([header, step, later]) == throughput([header, step])


def test_a_run_tells_before_each_scoring(place: Path, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "run")
    found = records.read(tmp_path / "run")
    windows = [r for r in found if r["kind"] == "ranks"]
    assert [r["step"] for r in windows] == sorted(
        {r["step"] for r in found if r["kind"] == "score"} - {0}
    )
    shown = io.StringIO()
    show(summary(tmp_path / "run"), Console(file=shown, width=200))
    lines = {line.split()[0]: line for line in shown.getvalue().splitlines() if line.strip()}
    assert "of the time for text" in lines["waited"] and "rank" not in lines["waited"]
    assert "MiB at most" in lines["memory"]
