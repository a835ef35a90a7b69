"""A study's figures as CSV: what is written is what is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import run

from treering.analysis import cells

VALUES = [[8.0, 8.0], [3.0, 6.0], [4.0, 2.0]]
BRANCH = {"average 0.9": [[3.2, 6.2], [3.6, 2.2]]}
AXES = {"update.rate": 0.5, "update.every": 10, "schedule.kind": "cosine", "seed": 3}


def recorded(**more: Any) -> Any:
    return run(VALUES, mixtures=[["t1"], ["t2"]], seed=3, **more)


def test_a_line_has_the_metrics_their_parts_the_axes_and_the_costs() -> None:
    line = cells.lines("mer", AXES, recorded())[0]
    assert line["arm"] == "mer" and line["seed"] == 3 and line["branch"] is None
    assert line["update.rate"] == 0.5 and line["schedule.kind"] == "cosine"
    assert line["retained"] == 3.0 and line["learned"] == 2.5 and line["forgetting"] == 1.0
    assert line["retained t1"] == 4.0 and line["forgetting t1"] == 1.0
    assert "forgetting t2" not in line
    assert line["step"] == 20 and line["tokens"] == 2000 and line["fresh_tokens"] == 1500
    assert line["flops"] == 20e9 and line["seconds"] == 40.0 and line["cosine"] is None


def test_a_branch_has_a_line_of_its_own() -> None:
    found = cells.lines("ema", {}, recorded(branches=BRANCH))
    assert [line["branch"] for line in found] == [None, "average 0.9"]
    assert found[1]["retained"] == pytest.approx(2.9) and found[1]["tokens"] == 2000


def test_probes_that_failed_are_left_out_of_the_cosine() -> None:
    records = recorded()
    records[5:5] = [{"kind": "probe", "step": 1, "cosine": c} for c in (0.5, None, -0.1)]
    records.insert(0, {"no": "kind"})
    assert cells.lines("mer", {}, records)[0]["cosine"] == pytest.approx(0.2)


def test_a_diverged_run_has_empty_places(tmp_path: Path) -> None:
    records = run([[8.0, 8.0], [3.0, 6.0], [None, None]], mixtures=[["t1"], ["t2"]])
    cells.write(tmp_path / "cells.csv", cells.lines("wild", {}, records))
    assert "nan" not in (tmp_path / "cells.csv").read_text().lower()
    line = cells.read(tmp_path / "cells.csv")[0]
    assert line["retained"] is None and line["retained t1"] is None and line["forgetting"] is None


def test_what_is_written_is_read_again_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    joint = run([[8.0, 8.0], [3.0, 6.0]], mixtures=[["t1", "t2"]])
    found = cells.lines("ema", AXES, recorded(branches=BRANCH)) + cells.lines("joint", {}, joint)
    cells.write(tmp_path / "cells.csv", found)
    cells.write(tmp_path / "cells.csv", found)
    assert [path.name for path in tmp_path.iterdir()] == ["cells.csv"]
    keys = dict.fromkeys(key for line in found for key in line)
    whole = [{key: line.get(key) for key in keys} for line in found]
    plain = [{k: None if v is None or v != v else v for k, v in line.items()} for line in whole]
    assert cells.read(tmp_path / "cells.csv") == plain
    assert plain[2]["forgetting"] is None and plain[0]["update.every"] == 10


def test_a_study_without_a_finished_cell_is_an_empty_table(tmp_path: Path) -> None:
    cells.write(tmp_path / "cells.csv", [])
    assert cells.read(tmp_path / "cells.csv") == []


def test_axes_that_are_tables_or_lists_are_written_as_json() -> None:
    axes = {"update": {"kind": "reptile", "every": 5}, "betas": [0.9, 0.95], "tied": True}
    line = cells.lines("mer", axes, recorded())[0]
    assert {key: json.loads(line[key]) for key in axes} == axes


names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1)
figures = (
    st.none() | st.integers(-(2**80), 2**80) | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(st.tuples(names, figures), min_size=1, max_size=4))
def test_any_name_and_any_number_survive(
    tmp_path_factory: pytest.TempPathFactory, given: list[tuple[str, float | None]]
) -> None:
    """An arm called "10", "nan" or "a,b" keeps its name; a number its last digit."""
    path = tmp_path_factory.mktemp("cells") / "cells.csv"
    found = [{"arm": name, "branch": None, "commit": "12e4", "x": x} for name, x in given]
    cells.write(path, found)
    assert cells.read(path) == found
