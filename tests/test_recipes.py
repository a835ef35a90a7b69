"""Every recipe that comes along loads, and its methods can be made, without training."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import tiny

from treering import config, shelf, study, surgery
from treering.lengths import lengths
from treering.methods import memories, schedules
from treering.protocols import Update
from treering.shapes import shape

FOLDER = Path(__file__).parents[1] / "recipes"
FILES = sorted(FOLDER.rglob("*.toml"))
STUDIES = [path for path in FILES if "arms" in tomllib.loads(path.read_text())]
RECIPES = [path for path in FILES if path not in STUDIES]


def stand_in(recipe: Path, data: Path) -> None:
    """Texts where the recipe says that its texts lie."""
    table: dict[str, Any] = tomllib.loads(recipe.read_text())
    for corpus in table["corpora"].values():
        for path in (corpus["train"], corpus["validation"]):
            if isinstance(path, str):
                file = data / path
                file.parent.mkdir(parents=True, exist_ok=True)
                tiny.write_text(file, tiny.documents("en", 2))


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 7 and len(STUDIES) >= 7


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_loads_and_its_methods_can_be_made(path: Path, tmp_path: Path) -> None:
    stand_in(path, tmp_path)
    recipe = config.load(path, data=tmp_path)
    check(recipe)
    if path.name != "base.toml":
        assert path.name in path.read_text(), "its command names it"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_cell_of_a_study_loads_and_its_methods_can_be_made(
    path: Path, tmp_path: Path
) -> None:
    stand_in(path.parent / tomllib.loads(path.read_text())["base"], tmp_path)
    cells = study.load(path, tmp_path)
    for cell in cells:
        check(cell.recipe)
    assert path.name in path.read_text(), "its command names it"


def check(recipe: config.Recipe) -> None:
    shelf.check(recipe)
    steps = tuple(-(-phase.tokens // recipe.batch.tokens) for phase in recipe.phases)
    table = {name: value for name, value in recipe.replay.memory.items() if name != "over"}
    assert shelf.construct(memories.KINDS, table, "replay.memory").held(7) == 7
    table = {name: value for name, value in recipe.schedule.items() if name != "span"}
    rate = shelf.construct(schedules.KINDS, table, "schedule").over(sum(steps))
    assert all(0 < rate(step) <= recipe.schedule["peak"] for step in range(sum(steps)))
    assert len(surgery.surgeries(recipe)) == len(recipe.surgeries)
    update: Update = shelf.update(recipe, recipe.update)
    assert update.counters() is not None
    planner = shelf.planner(recipe, (10_000,) * len(recipe.corpora))
    budget = recipe.replay.budget
    assert lengths(planner) == steps if budget == "total" else sum(lengths(planner)) > sum(steps)
    assert sum(stage.samples for stage in planner.stages) > 0
    assert recipe.model.from_ in {
        None, "english/model", "english-100", "english-200", "english-alone/model", "short/model"
    }  # fmt: skip
    if recipe.model.from_ is None:  # of a size that two processors train in minutes
        assert shape(recipe.model).layers < 1e7
