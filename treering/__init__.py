"""Treering: continual pre-training of language models.

    recipe = treering.load("recipe.toml")
    summary = treering.run(recipe, "out")
    records = treering.read("out")

A tree adds a ring each year and keeps every ring before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from treering.config import Invalid, Recipe, load
from treering.records import read

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Invalid", "Recipe", "load", "read", "run"]


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    fresh: bool = False,
    cache: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train a recipe in the folder `out`, or go on where it stopped; returns the summary.

    See `treering.training.run`; torch is imported when this is called.
    """
    from treering import training

    return training.run(recipe, out, fresh=fresh, cache_folder=cache, console=console)
