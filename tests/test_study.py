"""A study's file becomes cells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tiny

from treering import cli, study
from treering.config import Invalid
from treering.grid import merged

pytestmark = pytest.mark.filterwarnings("ignore:update.every")  # of Reptile in short runs

BASE = """
length = 16
tokenizer.train = 300
model = { depth = 1, width = 16, heads = 2, mlp = 32 }
corpora.en = { train = "en.jsonl", validation = 0.2 }
phases = [{ name = "en", tokens = 640, mixture = { en = 1.0 } }]
update = { kind = "reptile", every = 5, rate = 0.5 }
schedule = { kind = "cosine", peak = 1e-3 }
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Texts of nothing much, and a base recipe."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/en.jsonl").write_text("{}\n")
    (tmp_path / "data/base.toml").write_text(BASE)
    return tmp_path


def load(place: Path, text: str, data: Path | None = None) -> list[study.Cell]:
    (place / "study.toml").write_text('base = "data/base.toml"\n' + text)
    return study.load(place / "study.toml", data)


def names(place: Path, text: str) -> list[str]:
    return [cell.name for cell in load(place, text)]


def test_tables_are_merged_and_one_that_names_a_kind_takes_the_place_of_the_other() -> None:
    base = {"replay": {"share": 0.5, "memory": {"kind": "everything"}}, "length": 8}
    assert merged(base, {"replay": {"share": 0.1}, "seed": 1}) == {
        "replay": {"share": 0.1, "memory": {"kind": "everything"}},
        "length": 8,
        "seed": 1,
    }
    other = {"kind": "reservoir", "samples": 9}
    assert merged(base, {"replay": {"memory": other}})["replay"]["memory"] == other
    assert merged({"update": {"kind": "a", "x": 1}}, {"update": {"x": 2}})["update"]["x"] == 2
    assert merged({"a": 1}, {"a": {"b": 2}}) == {"a": {"b": 2}}
    assert base == {"replay": {"share": 0.5, "memory": {"kind": "everything"}}, "length": 8}


def test_common_lies_over_the_base_the_arm_over_it_and_the_axes_on_top(place: Path) -> None:
    plain, mer = load(
        place,
        """
        [common]
        update.every = 7
        schedule.peak = 2e-3
        [arms.plain]
        update = { kind = "descent" }
        [arms.mer]
        schedule.peak = 3e-3
        grid.update.rate = [0.9]
        """,
    )
    assert plain.recipe.update == {"kind": "descent"} and plain.recipe.schedule["peak"] == 2e-3
    assert mer.recipe.update == {"kind": "reptile", "every": 7, "rate": 0.9}
    assert mer.recipe.schedule == {"kind": "cosine", "peak": 3e-3}
    assert mer.arm == "mer" and mer.group == mer.name == "mer-rate0.9"
    assert mer.axes == {"update.rate": 0.9} and plain.axes == {} and plain.recipe.seed == 0


def test_every_combination_is_a_cell_and_the_seed_stands_last_in_its_name(place: Path) -> None:
    text = """
    [grid]
    seed = [0, 3]
    [arms.plain]
    [arms.mer]
    grid.update.rate = [0.3, 0.5]
    grid."schedule.kind" = ["constant"]
    """
    assert names(place, text) == [
        "plain-seed0",
        "plain-seed3",
        *(f"mer-rate{r}-kindconstant-seed{s}" for r in (0.3, 0.5) for s in (0, 3)),
    ]
    found = load(place, text)
    assert [cell.recipe.seed for cell in found] == [0, 3] * 3
    assert found[-1].group == "mer-rate0.5-kindconstant" and found[-1].axes["seed"] == 3
    assert found[-1].recipe.schedule == {"kind": "constant", "peak": 1e-3}


def test_an_arms_own_axis_takes_the_place_of_everyones(place: Path) -> None:
    text = """
    grid.seed = [0, 1, 2]
    [arms.cheap]
    [arms.dear]
    grid.seed = [7]
    """
    assert names(place, text) == ["cheap-seed0", "cheap-seed1", "cheap-seed2", "dear-seed7"]


def test_axes_of_one_table_do_not_undo_each_other(place: Path) -> None:
    text = """
    [arms.a]
    grid.schedule.peak = [0.5]
    grid.schedule.kind = ["constant", "cosine"]
    grid.evaluate.tokens = [64]
    """
    first, second = load(place, text)
    assert first.recipe.schedule == {"kind": "constant", "peak": 0.5}
    assert second.recipe.schedule == {"kind": "cosine", "peak": 0.5}
    assert second.recipe.evaluate.tokens == 64 and second.recipe.update["every"] == 5


def test_an_axis_may_go_through_a_list_of_tables(place: Path) -> None:
    text = """
    [arms.a]
    penalties = [{ kind = "l2", weight = 1.0 }, { kind = "ewc", weight = 5.0 }]
    grid.penalties.0.weight = [2.0, 3.0]
    """
    first, second = load(place, text)
    assert [each["weight"] for each in first.recipe.penalties] == [2.0, 5.0]
    assert [each["weight"] for each in second.recipe.penalties] == [3.0, 5.0]
    assert (first.name, second.name) == ("a-weight2.0", "a-weight3.0")


def test_an_axis_may_have_tables_for_values(place: Path) -> None:
    text = """
    [arms.a]
    grid.update = [{ kind = "descent" }, { kind = "reptile", every = 2, rate = 1.0 }]
    """
    first, second = load(place, text)
    assert first.recipe.update == {"kind": "descent"} and second.recipe.update["every"] == 2
    assert first.name != second.name and "/" not in second.name


def test_files_are_relative_to_the_base_or_to_the_folder_that_is_given(place: Path) -> None:
    train = str(place / "data/en.jsonl")
    assert load(place, "[arms.a]")[0].recipe.corpora["en"].train == train
    shutil.copytree(place / "data", place / "other")
    elsewhere = load(place, "[arms.a]", place / "other")[0]
    assert elsewhere.recipe.corpora["en"].train == str(place / "other/en.jsonl")


def test_the_baseline_may_be_an_arm_or_one_of_its_settings(place: Path) -> None:
    text = "[arms.a]\ngrid.update.rate = [0.5, 1.0]"
    for name in ("a", "a-rate0.5"):
        found = load(place, f'baseline = "{name}"\n{text}')
        assert {cell.baseline for cell in found} == {"a-rate0.5"}


WRONG = {
    'baseline = "b"\n[arms.a]': "baseline = 'b': no such arm; known: a",
    "": "arms is missing",
    "[arms]": "arms = {}: name at least one",
    "[[arms]]": "arms = [{}]: must be",
    "arms.a = 3": "arms.a = 3: must be a table",
    "[arms.a]\n[grids]": "grids = {}: unknown key; did you mean 'grid'?",
    "[arms.a]\n[grid]\nseed = 3": "grid.seed = 3: must be a list",
    "[arms.a]\n[grid]\nseed = []": "grid.seed = []: must be a list",
    "[arms.a]\ngrid = 3": "arms.a.grid = 3: must be a table",
    "[arms.a]\ngrid.update.rate = 0.5": "arms.a.grid.update.rate = 0.5: must be a list",
    "[arms.a]\n[grid]\nlength = [16, 0]": "cell a-length0: length = 0: must be",
    "[arms.a]\n[arms.b]\nsed = 1": "cell b: sed = 1: unknown key; did you mean 'seed'?",
    "[arms.a]\n[grid]\nseed = [0, 0]": "cell a-seed0: two cells have this name",
    "[arms.a]\n[arms.a-seed0]\n[grid]\nseed=[0]\n[arms.a.grid]\nx=[1]": "cell a-x1-seed0: x = 1",
    '[arms."a/b"]': "cell 'a/b': cannot be a folder's name",
    '[arms.""]': "cell '': cannot be a folder's name",
    '[arms.".."]': "cell '..': cannot be a folder's name",
    '[arms."a\\u0000"]': "cannot be a folder's name",
    f"[arms.{'a' * 300}]": "cannot be a folder's name",
    "[arms.a]\nupdate.kind = 'reptil'": "cell a: update.kind = 'reptil'; did you mean 'reptile'?",
    "[arms.a]\n[grid.update]\nrate = [0.5, 1.5]": "cell a-rate1.5: update.rate = 1.5: must be in",
    "[arms.a]\n[arms.b]\ntrack.to = ['wandbx']": "cell b: track.to = 'wandbx': no such tracker",
    "[arms.a": "is not TOML",
    "[arms.a]\npenalties = [{kind = 'l2'}]\ngrid.penalties.1.weight = [1.0]": "penalties is a list "
    "of 1; give a number below that",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_said_in_a_line_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (place / "study.toml").write_text('base = "data/base.toml"\n' + text)
    before = tiny.files(place)
    assert cli.main(["study", str(place / "study.toml"), "--out", str(place / "out")]) == 2
    said = capsys.readouterr().err
    assert WRONG[text] in said and len(said.splitlines()) == 1
    assert tiny.files(place) == before and not (place / "out").exists()


def test_a_base_that_is_missing_is_named(place: Path) -> None:
    with pytest.raises(Invalid, match=r"nowhere\.toml: cannot be read"):
        (place / "study.toml").write_text('base = "nowhere.toml"\n[arms.a]')
        study.load(place / "study.toml")


def test_values_that_no_file_can_be_named_after_are_named_anyhow(place: Path) -> None:
    text = "[arms.a]\ngrid.x = [2020-01-01, 1.5]"
    with pytest.raises(Invalid, match="cell a-x-2020-01-01-: x = .*: unknown key"):
        load(place, text)
