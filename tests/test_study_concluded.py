"""A study's cells become a comparison, and what is left is run once: with runs that never were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from recorded import cut, run
from rich.console import Console
from test_study import load, place
from tiny import files as files_of

from treering import cli, conduct, config, study
from treering.analysis import cells as tables
from treering.analysis.compare import compare
from treering.analysis.runs import files, gather
from treering.config import Invalid
from treering.engines.process import Job

pytestmark = pytest.mark.filterwarnings("ignore:update.every")  # of Reptile in short runs

__all__ = ["place"]


def made(cell: study.Cell, out: Path, records: Any) -> None:
    """A run folder as the cell's process leaves it."""
    folder = conduct.run_of(cell, out)
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(config.to_toml(cell.recipe))
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "summary.json").write_text("{}")


VALUES = [[8.0, 8.0, 8.0], [3.0, 5.0, 6.0], [3.4, 2.8, 5.5], [3.2, 3.1, 2.5]]
SEEDED = 'baseline = "replay"\ngrid.seed = [0, 1]\n[arms.replay-past]\n[arms.replay]\n[arms.mer]'


def finish(place: Path, *but: str, text: str = SEEDED) -> tuple[Any, Path]:
    found = load(place, text)
    conduct.lay_out(found, place / "out")
    for cell in found:
        if cell.name not in but:
            made(cell, place / "out", run(VALUES, seed=cell.recipe.seed, method=cell.group))
    return found, place / "out"


def test_the_comparison_is_to_the_baseline_and_not_to_an_arm_that_begins_like_it(
    place: Path,
) -> None:
    table = conduct.conclude(*finish(place))
    assert table["baseline"] == "replay" and table["notes"] == []
    assert list(table["arms"]) == ["replay-past", "replay", "mer"]
    assert json.loads((place / "out/comparison.json").read_text()) == json.loads(json.dumps(table))
    assert "differences to replay" in (place / "out/comparison.md").read_text()
    assert [line["arm"] for line in tables.read(place / "out/cells.csv")][::2] == [*table["arms"]]


def test_cells_that_are_not_finished_are_named_and_so_is_a_baseline_that_is_not(
    place: Path,
) -> None:
    table = conduct.conclude(*finish(place, "replay-seed0", "replay-seed1", "mer-seed0"))
    assert table["baseline"] == "replay-past" and table["arms"]["mer"]["seeds"] == [1]
    assert "mer-seed0: not finished, left out" in table["notes"]
    assert any(note.startswith("replay, the baseline, is not finished") for note in table["notes"])
    assert "not finished" in (place / "out/comparison.md").read_text()
    with pytest.raises(Invalid, match="no cell is finished; see .*logs"):
        conduct.conclude(load(place, SEEDED), place / "nothing")


def test_a_baseline_with_axes_is_its_first_setting_or_the_one_that_is_named(place: Path) -> None:
    text = "grid.seed = [0, 1]\n[arms.mer]\n[arms.a]\ngrid.update.rate = [0.5, 1.0]"
    assert conduct.conclude(*finish(place, text=f'baseline = "a"\n{text}'))["baseline"] == (
        "a-rate0.5"
    )
    found = load(place, f'baseline = "a-rate1.0"\n{text}')
    assert conduct.conclude(found, place / "out")["baseline"] == "a-rate1.0"


def test_a_cell_stays_finished_when_what_makes_no_other_run_changes(place: Path) -> None:
    found, out = finish(place)
    free = "compute.recompute = 'full'\nprobe.every = 5\nmesh.timeout = 60.0\ntrack.name = 'x'\n"
    free += "checkpoint = { every_tokens = 64, keep = 5 }\nguard.max_skipped = 3\n"
    for common, same in ((free, True), ("optimizer.clip = 0.5\n", False)):
        again = load(place, SEEDED.replace("[arms", f"[common]\n{common}[arms", 1))
        assert [cell.name for cell in again] == [cell.name for cell in found]
        assert {conduct.is_finished(cell, out) for cell in again} == {same}


SHARES = """
baseline = "rewarm"
[grid]
seed = [0, 1]
replay.share = [0.0, 0.25]
[arms.infinite]
[arms.rewarm]
[arms.other]
grid.replay.share = [0.5]
"""


def test_an_arm_is_compared_to_the_setting_of_the_baseline_that_has_its_values(place: Path) -> None:
    """No setting of the baseline has 0.5: it is compared to the first."""
    table = conduct.conclude(*finish(place, text=SHARES))
    found = table["end"]["differences"]
    assert {arm: each["retained"]["baseline"] for arm, each in found.items()} == {
        "infinite-share0.0": "rewarm-share0.0",
        "infinite-share0.25": "rewarm-share0.25",
        "other-share0.5": "rewarm-share0.0",
    }
    text = (place / "out/comparison.md").read_text()
    assert all(f"**differences to rewarm-share{share} at" in text for share in ("0.0", "0.25"))


def test_a_setting_that_is_named_is_the_baseline_of_all(place: Path) -> None:
    found = load(place, SHARES.replace('"rewarm"', '"rewarm-share0.25"'))
    assert {cell.baseline for cell in found} == {"rewarm-share0.25"}
    assert {cell.baseline for cell in load(place, SHARES.replace("baseline", "#"))} == {None}


def test_settings_that_the_baseline_alone_has_are_compared_to_the_first_of_them(
    place: Path,
) -> None:
    text = SHARES + "[arms.rewarm.grid]\nschedule.peak = [1e-3, 2e-3]\n"
    found = {cell.group: cell.baseline for cell in load(place, text)}
    first, second = (f"rewarm-peak{peak}-share0.25" for peak in ("0.001", "0.002"))
    assert found[first] == found[second] == found["infinite-share0.25"] == first
    alone = load(place, 'baseline = "a"\n[arms.a]\ngrid.update.rate = [0.5, 1.0]')
    assert {cell.baseline for cell in alone} == {"a-rate0.5"}


@pytest.mark.parametrize("text", [SEEDED, SHARES])
def test_whoever_is_given_the_folder_takes_the_studys_baselines(place: Path, text: str) -> None:
    table = conduct.conclude(*finish(place, text=text))
    again = compare(gather([str(place / "out")]))
    assert again["baseline"] == table["baseline"] != sorted(table["arms"])[0]
    for view in ("end", "equal_tokens", "equal_flops"):
        assert again[view]["differences"] == table[view]["differences"]
    assert place / "out/study.json" in files([str(place / "out")])


def test_of_two_studies_each_arm_is_compared_within_its_own(place: Path) -> None:
    """Both have an arm of the same name, the baseline of the one."""
    for name, baseline, method in (("one", "a", "reptile"), ("two", "b", "average")):
        found = load(place, f'baseline = "{baseline}"\n[arms.a]\n[arms.b]')
        conduct.lay_out(found, place / name)
        for cell in found:
            kind = f"{method} of {cell.arm}"
            made(cell, place / name, run(VALUES, seed=cell.recipe.seed, method=kind))
        conduct.conclude(found, place / name)
    arms = gather([str(place / name) for name in ("one", "two")])
    assert {arm.name: arm.baseline for arm in arms} == {
        "a": "a", "b": "a", "a (2)": "b (2)", "b (2)": "b (2)"
    }  # fmt: skip


def test_a_study_of_before_has_no_baseline_and_a_damaged_one_is_named(
    place: Path,
) -> None:
    finish(place)
    (place / "out/study.json").unlink()
    assert {arm.baseline for arm in gather([str(place / "out")])} == {None}
    for damage in ("[", "{}", '[{"name": "mer-seed0"}]', "[" * 100_000):
        (place / "out/study.json").write_text(damage)
        with pytest.raises(Invalid, match=r"study\.json: is damaged \(.*run the study again"):
            gather([str(place / "out")])


def test_a_cell_is_finished_wherever_its_texts_lie_now_and_not_with_another_recipe(
    place: Path,
) -> None:
    found, out = finish(place)
    assert all(conduct.is_finished(cell, out) for cell in found)
    (place / "data").rename(place / "moved")
    (place / "study.toml").write_text('base = "moved/base.toml"\n' + SEEDED)
    assert all(conduct.is_finished(cell, out) for cell in study.load(place / "study.toml"))
    (place / "study.toml").write_text('base = "moved/base.toml"\ncommon.length = 8\n' + SEEDED)
    assert not any(conduct.is_finished(cell, out) for cell in study.load(place / "study.toml"))


def test_a_cell_that_is_half_done_is_not_finished(place: Path) -> None:
    found = load(place, SEEDED)
    assert not conduct.is_finished(found[0], place / "out")
    made(found[0], place / "out", cut(run(VALUES), 25))
    assert not conduct.is_finished(found[0], place / "out")
    made(found[1], place / "out", run(VALUES))
    (conduct.run_of(found[1], place / "out") / "recipe.toml").write_text("alien = 1")
    assert not conduct.is_finished(found[1], place / "out")


def perform(found: Any, out: Path, engine: Any, only: study.Cell | None = None) -> list[str]:
    return conduct.perform(found, out, engine, Console(quiet=True), only=only, cache="cache")


def test_only_cells_that_are_left_are_run_and_each_with_its_resolved_recipe(place: Path) -> None:
    found, out = finish(place, "mer-seed1", "replay-seed0")
    asked: list[Job] = []

    def engine(jobs: list[Job], watch: Any) -> Generator[tuple[Job, int], None, None]:
        asked.extend(jobs)
        for job in jobs:
            watch([job.name])
            if job.name == "mer-seed1":
                made(found[5], out, run(VALUES, seed=1))
            yield job, 0

    shutil.rmtree(out / "runs/replay-seed1")  # another one, which is not asked for below
    assert perform(found, out, engine, only=found[5]) == []
    assert [job.name for job in asked] == ["mer-seed1"]
    assert config.load(asked[0].recipe) == found[5].recipe
    assert asked[0].cache == str(Path("cache").absolute()) and Path(asked[0].out).is_absolute()
    assert len(list((out / "recipes").iterdir())) == 6
    assert perform(found, out, engine) == ["replay-seed0", "replay-seed1"]  # 0, but no result
    assert len(tables.read(out / "cells.csv")) == 4 and len(asked) == 3


def test_an_interruption_while_cells_run_closes_the_engine(place: Path) -> None:
    found = load(place, SEEDED)
    closed = []

    def engine(jobs: list[Job], watch: Any) -> Generator[tuple[Job, int], None, None]:
        try:
            yield jobs[0], 0
        finally:
            closed.append(True)

    class Full(Console):
        def print(self, *words: Any, **more: Any) -> None:
            if "failed" in str(words):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conduct.perform(found, place / "out", engine, Full())
    assert closed


def test_a_recipe_that_a_cell_may_be_reading_is_not_written_again(place: Path) -> None:
    """Of an array of jobs each lays out the study, while the first of them read their recipes."""
    found = load(place, SEEDED)
    conduct.lay_out(found, place / "out")
    path = place / "out/recipes/mer-seed0.toml"
    handle, before = path.stat().st_ino, path.stat().st_mtime_ns
    conduct.lay_out(found, place / "out")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (handle, before)
    with open(path) as reader:
        conduct._write(path, "other = 1\n")
        assert reader.read() == config.to_toml(found[4].recipe)
    assert {p.suffix for p in (place / "out/recipes").iterdir()} == {".toml"}


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_place_that_holds_something_else_is_left_alone(
    place: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    load(place, "[arms.a]")
    (place / "out").mkdir() if kind == "folder" else (place / "out").write_text("mine")
    if kind == "folder":
        (place / "out/thesis.txt").write_text("mine")
    before = files_of(place)
    assert cli.main(["study", str(place / "study.toml"), "--out", str(place / "out")]) == 2
    assert "is a file" in (said := capsys.readouterr().err) or "holds files but no study" in said
    assert files_of(place) == before
