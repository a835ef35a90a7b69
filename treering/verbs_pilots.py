"""What `treering plan pilots` does, and the recipe that `treering plan ask` writes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from treering import config, piloting, schema
from treering.analysis.laws.manner import Manner
from treering.atomic import replacing
from treering.config import Invalid, Recipe
from treering.piloting import Pilots, Template, command


def pilots(options: argparse.Namespace) -> int:
    """Writes the study of pilots that is worth a budget, and prints what it costs."""
    base, out = Path(options.recipe), Path(options.out)
    free(out)
    if not 0 < options.budget < math.inf:
        raise Invalid(f"--budget {options.budget}: must be positive FLOPs, such as 1e15")
    recipe = config.load(base, data=options.data)
    shares = shares_of(options.shares, piloting.SHARES)
    found = piloting.pilots(recipe, vocabulary(recipe), options.budget, shares)
    with replacing(out) as beside:
        beside.write_text(piloting.study(found, recipe, base, out, options.data), encoding="utf-8")
    _show(found, recipe, options.budget)
    print(f"{out}: {command('study', out, 'PILOTS', options.data)} --jobs 2")
    return 0


def template(options: argparse.Namespace, manner: Manner | None) -> Template:
    """`--recipe`, before anything is computed, its paths relative to where `--out` will lie. Raises
    Invalid for one that cannot follow what is recommended, and where there is something at `--out`
    already."""
    out = Path(options.out)
    free(out)
    recipe = config.load(options.recipe, data=options.data)
    if recipe.model.from_ is not None and not options.size:
        raise Invalid(
            f"--recipe {options.recipe}: its model is read from {recipe.model.from_}, so its size "
            "is given; say it, by --size N"
        )
    table = config.toml(Path(options.recipe))
    if options.data is None:
        table = piloting.moved(table, schema.values(recipe), out)
    return Template(table, recipe, vocabulary(recipe), manner)


def recommend(begin: Template, options: argparse.Namespace, planned: tuple[float, ...]) -> None:
    """Writes a recipe with that size, length and share to `--out`, and says how its rate goes."""
    out = Path(options.out)
    with replacing(out) as beside:
        beside.write_text(piloting.recommended(begin, *planned), encoding="utf-8")
    print(_manner(begin))
    warn_of_memory(begin.recipe)
    print(f"{out}: {command('run', out, 'RUN', options.data)}")


def _manner(begin: Template) -> str:
    """How the rate of the recipe goes, and whether the law is of such runs."""
    manner, recipe = begin.manner, begin.recipe
    kept = "the recipe keeps its schedule, and has no [anneal]"
    if manner is None:
        return f"A CSV does not tell how the rate of its runs went: {kept}."
    own, theirs = recipe.schedule.get("kind"), manner.schedule.get("kind")
    if manner.part:
        name = recipe.phases[-1].name
        return (
            f"The law is of annealed branches: the recipe has the pilots' schedule ({theirs}), and "
            f"a branch of the last {manner.part / (1 + manner.part):.0%} of the tokens of {name}; "
            f"what was predicted is RUN/annealed/{name}."
        )
    other = "" if own == theirs else f" It is {own}, that of the pilots {theirs or 'not one'}."
    return f"The law is of runs that were not annealed: {kept}.{other}"


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


def shares_of(text: str | None, default: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers of `--shares`."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else default
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
    warn_of_memory(recipe)


def warn_of_memory(recipe: Recipe) -> None:
    """Says so where what is replayed is not old text alone."""
    if recipe.replay.memory.get("over", "all") == "all":
        Console().print(
            "replay.memory.over = 'all': the new corpus is replayed, too; with 'past' only old "
            "text is, as the laws have it"
        )
