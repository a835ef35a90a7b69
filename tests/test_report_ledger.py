"""The ledger on the page: what was spent on what, and what a branch itself spent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import browser
import pytest
import recorded
import tiny

from treering import checkpoint, records
from treering.analysis.runs import branched
from treering.report.page import page

SETS = ("probe.every=5", "update={kind='reptile', every=5, rate=0.5}")
ANNEAL = ("schedule={kind='constant', peak=1e-2}", "anneal={tokens=320}")  # 5 steps
PURPOSES = ["training", "meta-updates", "evaluation", "probes", "annealed branches", "all"]
VALUES = [[9.0, 9.0, 9.0], [4.0, 8.0, 9.5], [6.0, 3.5, 9.0], [7.0, 5.5, 4.5]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.place(tmp_path_factory.mktemp("ledger")) / "recipe.toml"


@pytest.fixture(scope="module")
def finished(recipe: Path) -> Path:
    tiny.run(recipe, recipe.parent / "finished", *SETS, *ANNEAL)
    return recipe.parent / "finished"


def ledger(out: Path) -> dict[str, float]:
    """That of the newest checkpoint, but for tokens, which other records have."""
    newest = checkpoint.newest(out / "checkpoints")
    assert newest is not None
    return {name: newest[1]["ledger"][name] for name in records.LEDGER}


def ends(out: Path) -> list[records.Record]:
    return [record for record in records.read(out) if record["kind"] == "end"]


# The records


def test_the_end_has_the_ledger_of_all_that_was_spent(finished: Path) -> None:
    (end,) = ends(finished)
    saved = ledger(finished)  # before the last branch was trained
    scores = [r for r in records.read(finished) if r["kind"] == "branch_score"]
    assert end["ledger"] == saved | {
        "anneal_flops": 2 * saved["anneal_flops"],
        "evaluation_flops": saved["evaluation_flops"] + scores[-1]["evaluation_flops_beyond"],
    }
    assert all(end["ledger"].values())
    found = records.read(finished)
    last = [record for record in found if record["kind"] == "step"][-1]
    learned = end["ledger"]["training_flops"] + end["ledger"]["meta_flops"]
    assert learned == pytest.approx(last["flops"])
    per_token = next(record["flops_per_token"] for record in found if record["kind"] == "header")
    scored = sum(record["tokens"] for record in found if record["kind"] == "score")
    beside = {r["step"]: r["evaluation_flops_beyond"] for r in found if r["kind"] == "branch_score"}
    evaluated = scored * per_token / 3 + sum(beside.values())
    assert end["ledger"]["evaluation_flops"] == pytest.approx(evaluated)
    probed = sum(record["tokens"] for record in found if record["kind"] == "probe")
    assert end["ledger"]["probe_flops"] == pytest.approx(probed * per_token)


def test_a_checkpoints_record_has_what_was_spent_until_its_step(finished: Path) -> None:
    found = [record for record in records.read(finished) if record["kind"] == "checkpoint"]
    spent = [record["ledger"] for record in found]
    for name in records.LEDGER:
        each = [of[name] for of in spent]
        assert each == sorted(each) and each[-1] <= ends(finished)[0]["ledger"][name]


def test_an_interrupted_run_has_the_ledger_of_an_unbroken_one(
    recipe: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(20, patch)
        tiny.run(recipe, tmp_path / "run", *SETS, *ANNEAL)
    assert ends(tmp_path / "run")[-1]["ledger"] == ledger(tmp_path / "run")
    tiny.run(recipe, tmp_path / "run", *SETS, *ANNEAL)
    assert ends(tmp_path / "run")[-1]["ledger"] == pytest.approx(ends(finished)[-1]["ledger"])


def test_a_sitting_without_a_step_has_the_ledger_of_those_before(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    """As after a kill while the model was exported."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "summary.json").unlink()
    tiny.run(recipe, out, *SETS, *ANNEAL)
    (end,) = ends(out)  # that of before was cut with the last branch's scores
    assert end["ledger"] == ends(finished)[0]["ledger"]


def test_a_run_that_fails_has_the_ledger_of_its_last_step(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from treering.saving import Saver

    def full(self: Saver) -> None:
        raise OSError("full")

    monkeypatch.setattr(Saver, "check", full)
    with pytest.raises(OSError, match="full"):
        tiny.run(recipe, tmp_path / "run")
    (end,) = ends(tmp_path / "run")
    (step,) = [record for record in records.read(tmp_path / "run") if record["kind"] == "step"]
    assert end["reason"] == "failed" and end["ledger"]["training_flops"] == step["flops"]
    assert end["ledger"]["evaluation_flops"] > 0 == end["ledger"]["probe_flops"]


# The page


def test_the_page_has_a_row_for_each_purpose(finished: Path) -> None:
    run = records.read(finished)
    tables = browser.Tables(page(branched("run", {0: run}), None)).of["ledger"]
    head, *rows = tables[1]
    assert head == ["purpose", "run"] and [row[0] for row in rows] == PURPOSES
    spent = ends(finished)[0]["ledger"]
    beyond = {r["step"]: r["flops_beyond"] for r in run if r["kind"] == "branch_score"}
    values = [spent[name] for name in records.LEDGER]
    assert len(beyond) == 2 and spent["anneal_flops"] == sum(beyond.values())
    assert [row[1] for row in rows] == [f"{value:.3g}" for value in (*values, sum(values))]


def test_runs_that_do_not_say_are_shown_without(finished: Path) -> None:
    """Those of before there was a ledger in the records: beside another, and alone."""
    old = recorded.run(VALUES)
    (alone,) = browser.Tables(page(branched("old", {0: old}), None)).of["ledger"]
    assert alone[1][:4] == ["old", "-", "3,000", "2,250"]
    both = branched("new", {0: records.read(finished)}) + branched("old", {0: old})
    head, *rows = browser.Tables(page(both, None)).of["ledger"][1]
    assert head == ["purpose", "new", "old"]
    assert [row[2] for row in rows] == ["-"] * 6
    assert "-" not in {row[1] for row in rows}


def test_a_branch_is_shown_with_what_it_spent_itself() -> None:
    rows = [row[:] for row in VALUES[1:]]
    run = recorded.run(VALUES, branches={"annealed": rows, "average 0.9": rows})
    more = {"tokens_beyond": 200, "fresh_tokens_beyond": 100, "flops_beyond": 2e9}
    run = [record | (more if record.get("branch") == "annealed" else {}) for record in run]
    made = page(branched("run", {0: run}), None)
    lines = {line[0]: line[2:7] for line in browser.Tables(made).of["ledger"][0][1:]}
    assert lines == {
        "run": ["3,000", "2,250", "25.00%", "3e+10", "60"],
        "run, annealed": ["3,200", "2,350", "26.56%", "3.2e+10", "-"],  # its seconds nobody knows
        "run, average 0.9": ["3,000", "2,250", "25.00%", "3e+10", "60"],
    }
    assert "26.56% of 3,200 trained tokens were replayed" in made


@pytest.mark.parametrize("wrong", ["much", {"probe_flops": "much"}])
def test_a_ledger_that_no_run_wrote_is_named(tmp_path: Path, wrong: object) -> None:
    lines = [*recorded.run(VALUES), {"kind": "end", "reason": "finished", "ledger": wrong}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "records.jsonl").write_text(text)
    with pytest.raises(records.Invalid, match=r"is damaged \(ledger.* = much"):
        records.read(tmp_path)
