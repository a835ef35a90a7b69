"""What `treering plan pilots` does, and the recipe that `treering plan ask` writes."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from treering import config, piloting
from treering.atomic import replacing
from treering.config import Invalid, Recipe, Table
from treering.piloting import Pilots


def pilots(options: argparse.Namespace) -> int:
    """Writes the study of pilots that is worth a budget, and prints what it costs."""
    base, out = Path(options.recipe), Path(options.out)
    free(out)
    if not 0 < options.budget < math.inf:
        raise Invalid(f"--budget {options.budget}: must be positive FLOPs, such as 1e15")
    recipe = config.load(base, data=options.data)
    found = piloting.pilots(recipe, vocabulary(recipe), options.budget, _shares(options.shares))
    with replacing(out) as beside:
        beside.write_text(piloting.study(found, recipe, base, out), encoding="utf-8")
    _show(found, recipe, options.budget)
    print(f"{out}: treering study {out} --out PILOTS --jobs 2")
    return 0


@dataclass(frozen=True)
class Template:
    """The recipe that `treering plan ask` changes: as it is written, resolved, and its ids."""

    table: Table
    recipe: Recipe
    vocabulary: int


def template(options: argparse.Namespace) -> Template:
    """`--recipe`, before anything is computed. Raises Invalid for one that cannot follow what is
    recommended, and where there is something at `--out` already."""
    free(Path(options.out))
    recipe = config.load(options.recipe, data=options.data)
    if recipe.model.from_ is not None and not options.size:
        raise Invalid(
            f"--recipe {options.recipe}: its model is read from {recipe.model.from_}, so its size "
            "is given; say it, by --size N"
        )
    return Template(config.toml(Path(options.recipe)), recipe, vocabulary(recipe))


def recommend(begin: Template, out: Path, size: float, tokens: float, replay: float) -> None:
    """Writes a recipe with that size, length and share to `out`."""
    text = piloting.recommended(begin.table, begin.recipe, begin.vocabulary, size, tokens, replay)
    with replacing(out) as beside:
        beside.write_text(text, encoding="utf-8")
    print(f"{out}: treering run {out} --out RUN")


def free(out: Path) -> None:
    """Raises Invalid where there is something already."""
    if out.exists():
        raise Invalid(f"--out {out}: is there already; name another file, or remove it")


def vocabulary(recipe: Recipe) -> int:
    """Ids of a fresh model; 0 where it is read from a folder, which says so itself."""
    if recipe.tokenizer.train is not None or recipe.model.from_ is not None:
        return recipe.tokenizer.train or 0
    from treering import tokenizer

    assert recipe.tokenizer.from_ is not None, "a fresh model has a tokenizer"
    return tokenizer.size(tokenizer.load(recipe.tokenizer.from_))


def _shares(text: str | None) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",")) if text else piloting.SHARES
    except ValueError:
        raise Invalid(f"--shares {text}: give numbers, as 0,0.05,0.25") from None


def _show(found: Pilots, recipe: Recipe, budget: float) -> None:
    console, table = Console(), RichTable("arm", "layers", "N, multiplying", "depth", "width")
    for name, made in found.shapes.items():
        row = f"{made.layers:,}", f"{found.sizes[name]:,}", str(made.depth), str(made.width)
        table.add_row(name, *row)
    console.print(table)
    shares = ", ".join(f"{share:g}" for share in found.shares)
    console.print(
        f"{found.runs} runs: {len(found.sizes)} sizes, replay {shares}, seeds {found.seeds}, "
        f"{found.tokens[-1]:,} tokens of {recipe.phases[-1].name}; "
        f"{found.cost:.3g} FLOPs of {budget:.3g} (6 N D)"
    )
    if recipe.replay.memory.get("over", "all") == "all":
        console.print(
            "replay.memory.over = 'all': the new corpus is replayed, too; with 'past' only old "
            "text is, as the laws have it"
        )
