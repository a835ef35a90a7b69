"""A study: arms x axes over a base recipe, each cell an ordinary run.

    STUDY.toml -load-> Study, [Cell(name, arm, group, axes, recipe)] -conduct.perform-> DIR

    base = "base.toml"                 # a recipe, relative to the study
    baseline = "sequential"            # the arm to which differences are taken
    [grid]                             # every combination is a cell
    seed = [0, 1, 2]
    [common]                           # laid over the base for every arm
    [arms.sequential]                  # laid over the base: tables are merged, but a table that
    [arms.mer-25]                      # names a kind takes the place of the base's
    replay.share = 0.25
    update = { kind = "reptile", every = 50, rate = 0.5 }
    grid.update.rate = [0.3, 0.5]      # axes of this arm alone, or in the place of the grid's

An arm without axes, the seed included, is one cell. `conduct` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from treering import config
from treering.config import Invalid, Recipe, Table
from treering.grid import axes, combinations, laid, mark, merged
from treering.schema import read


@dataclass(frozen=True)
class Study:
    """The study's file: see the module's text."""

    base: str
    arms: dict[str, Table]
    grid: Table = field(default_factory=dict)
    common: Table = field(default_factory=dict)
    baseline: str | None = None


@dataclass(frozen=True)
class Cell:
    """One run of a study. `group` is the arm with the values of all axes but the seed, `baseline`
    the group to which it is compared."""

    name: str
    arm: str
    group: str
    axes: dict[str, Any]
    recipe: Recipe
    baseline: str | None = None


def load(path: str | Path, data: str | Path | None = None) -> list[Cell]:
    """The cells of the study in a TOML file, arm by arm. Raises Invalid, naming the cell, where
    one has no valid recipe."""
    path = Path(path)
    study = read(Study, config.toml(path), "")
    if not study.arms:
        raise Invalid("arms = {}: name at least one, as [arms.NAME]")
    base = path.parent / study.base
    table = merged(config.toml(base), study.common)
    where = Path(data) if data is not None else base.parent
    found = []
    for arm, over in study.arms.items():
        own = axes(over.get("grid", {}), f"arms.{arm}.grid")
        everyones = axes(study.grid, "grid")
        grid = own | {key: values for key, values in everyones.items() if key not in own}
        found += [_cell(arm, over, chosen, table, where) for chosen in combinations(grid)]
    names = [cell.name for cell in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise Invalid(f"cell {twice[0]}: two cells have this name; rename an arm, or name each "
                      "value of an axis once")  # fmt: skip
    known = dict.fromkeys([*study.arms, *(cell.group for cell in found)])
    if study.baseline is not None and study.baseline not in known:
        raise Invalid(f"baseline = {study.baseline!r}: no such arm; known: {', '.join(known)}")
    to = _baselines(study.baseline, found)
    return [replace(cell, baseline=to.get(cell.group)) for cell in found]


def _baselines(asked: str | None, found: Sequence[Cell]) -> dict[str, str]:
    """The baseline's group to which each group is compared: the first of those that agree with it
    in the most of the axes that other arms have, too. Its other settings are as any arm's."""
    bases = [cell for cell in found if asked in (cell.arm, cell.group)]
    others = [cell for cell in found if bases and cell.arm != bases[0].arm]
    shared = {key for cell in others for key in cell.axes if key != "seed"}

    def agreed(base: Cell, cell: Cell) -> int:
        known = shared & base.axes.keys() & cell.axes.keys()
        return sum(base.axes[key] == cell.axes[key] for key in known)

    return {c.group: max(bases, key=lambda b: agreed(b, c)).group for c in found if bases}


def _cell(arm: str, over: Table, chosen: dict[str, Any], base: Table, where: Path) -> Cell:
    table = merged(base, {key: value for key, value in over.items() if key != "grid"})
    for key, value in chosen.items():
        table = laid(table, key, value)
    group = arm + "".join(mark(key, value) for key, value in chosen.items() if key != "seed")
    name = group + (mark("seed", chosen["seed"]) if "seed" in chosen else "")
    fit = name.isprintable() and "/" not in name and len(name.encode()) <= 200
    if not arm or name.startswith(".") or not fit:
        raise Invalid(f"cell {name!r}: cannot be a folder's name; rename the arm")
    with naming(name):
        return Cell(name, arm, group, chosen, config.resolve(table, where))


@contextmanager
def naming(cell: str) -> Iterator[None]:
    """Whatever is wrong with a cell's recipe is said with the cell's name."""
    try:
        yield
    except Invalid as error:
        raise Invalid(f"cell {cell}: {error}") from error
