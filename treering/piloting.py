"""A study of pilots: runs smaller than the one that is planned, for `treering plan fit`.

    sizes        three, an eighth, a quarter and a half of the planned layers
    shares       five, one of them without replay, which no law can guess
    tokens       each run is one long trunk at a constant rate; in its last phase branches are
                 annealed after an eighth, a quarter, a half and all of it: one run, four points

All phases are as long as the budget allows, up to the recipe's own lengths. What is left goes into
seeds.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from treering.config import Invalid, Recipe, Table
from treering.grid import merged
from treering.shapes import Shape, shape

PARTS = (1 / 8, 1 / 4, 1 / 2)  # of the planned layers
SHARES = (0.0, 0.02, 0.05, 0.15, 0.4)
WITHIN = (0.125, 0.25, 0.5)  # of the last phase; and its end
FALL = 0.2  # tokens of a branch, as a share of those before it in the phase
FEWEST = 20  # steps before the first branch
SEEDS = 3
SIZES = ("preset", "depth", "width", "heads", "mlp", "tied")


@dataclass(frozen=True)
class Pilots:
    """The study's runs: `shapes` by the names of their arms, `sizes` the parameters that multiply;
    each phase's `tokens`; `cost` in FLOPs, 6 for each of these and each token."""

    shapes: dict[str, Shape]
    sizes: dict[str, int]
    shares: tuple[float, ...]
    seeds: int
    tokens: tuple[int, ...]
    cost: float

    @property
    def runs(self) -> int:
        return len(self.shapes) * len(self.shares) * self.seeds


def pilots(
    recipe: Recipe, vocabulary: int, budget: float, shares: tuple[float, ...] = SHARES
) -> Pilots:
    """What is worth a budget in FLOPs. Raises Invalid for a recipe whose model is not made fresh,
    and for a budget that is too small."""
    if recipe.model.from_ is not None:
        raise Invalid(
            f"model.from = {recipe.model.from_!r}: pilots are of several sizes, made fresh; plan "
            "with a preset, or write a study with an arm for each checkpoint of the family"
        )
    if "peak" not in recipe.schedule:
        raise Invalid("schedule.peak: is missing; pilots train at that rate")
    if len(set(shares)) < 3 or not all(0 <= share < 1 for share in shares):
        raise Invalid(f"--shares {shares}: give three or more, from 0 to below 1")
    planned = shape(recipe.model)
    shapes = {}
    for part in PARTS:
        made = planned.scaled(part * planned.layers)
        shapes[f"n{made.layers / 1e6:.3g}m"] = made
    if len(shapes) < len(PARTS):
        raise Invalid(f"model: of {planned.layers:,} parameters in its layers there are no smaller "
                      "ones to learn from; plan a larger one")  # fmt: skip
    sizes = {name: made.multiplying(vocabulary) for name, made in shapes.items()}
    whole = [phase.tokens for phase in recipe.phases]
    beside = FALL * whole[-1] * sum((*WITHIN, 1.0))
    once = 6.0 * sum(sizes.values()) * len(shares) * (sum(whole) + beside)
    part = min(1.0, budget / once)
    least = FEWEST * recipe.batch.tokens / (WITHIN[0] * whole[-1])
    if part < least:
        raise Invalid(
            f"--budget {budget:g}: is {part * whole[-1]:,.0f} tokens of {recipe.phases[-1].name} "
            f"for each of {len(sizes) * len(shares)} pilots, too few to be scored "
            f"{len(WITHIN) + 1} times; give {least * once:.2g} FLOPs at least"
        )
    seeds = max(1, min(SEEDS, math.floor(budget / once)))
    tokens = tuple(_steps(part * each, recipe) * recipe.batch.tokens for each in whole)
    return Pilots(shapes, sizes, shares, seeds, tokens, part * once * seeds)


def recommended(
    table: Table, recipe: Recipe, vocabulary: int, size: float, tokens: float, replay: float
) -> str:
    """The recipe in a table with a model of about `size` multiplying parameters, so many tokens in
    its last phase, replayed ones among them, and that replay share; TOML. A model that is read from
    a folder stays as it is."""
    own = tokens if recipe.replay.budget == "total" else tokens * (1 - replay)
    last = _steps(own, recipe) * recipe.batch.tokens
    phases = [dict(phase) for phase in table["phases"]]
    phases[-1]["tokens"] = last
    over: Table = {"phases": phases, "replay": {"share": round(replay, 4)}}
    words = [f"{tokens:.3g} tokens of {recipe.phases[-1].name} with {replay:.2%} replay"]
    if recipe.model.from_ is None:
        made = planned = shape(recipe.model)
        for _ in range(8):  # what is not in the layers depends on the width
            beside = made.multiplying(vocabulary) - made.layers
            made = planned.scaled(max(size - beside, size / 20))
        words.append(f"N = {made.multiplying(vocabulary):,} parameters that multiply")
        kept = {key: value for key, value in table.get("model", {}).items() if key not in SIZES}
        table = table | {"model": kept | asdict(made)}
    head = f"# Recommended by treering plan ask: {', '.join(words)}.\n"
    return head + tomli_w.dumps(merged(table, over))


def _steps(tokens: float, recipe: Recipe) -> int:
    return max(1, round(tokens / recipe.batch.tokens))


def study(found: Pilots, recipe: Recipe, base: Path, out: Path) -> str:
    """The study as TOML, over the recipe in the file `base`; `out` is where it will lie."""
    last = found.tokens[-1]
    phases: list[Table] = [
        {"name": phase.name, "tokens": tokens, "mixture": dict(phase.mixture)}
        for phase, tokens in zip(recipe.phases, found.tokens, strict=True)
    ]
    kept = recipe.model
    model: Table = {"kind": kept.kind, "attention": kept.attention, "dropout": kept.dropout}
    peak, warmup = recipe.schedule["peak"], recipe.schedule.get("warmup", 0.01)
    table: Table = {
        "base": os.path.relpath(base.absolute(), out.absolute().parent),
        "grid": {"replay": {"share": list(found.shares)}, "seed": list(range(found.seeds))},
        "common": {
            "phases": phases,
            "schedule": {"kind": "constant", "peak": peak, "warmup": warmup},
            "anneal": {
                "tokens": round(FALL * last),
                "phases": [recipe.phases[-1].name],
                "at": list(WITHIN),
            },
            "evaluate": {"every_tokens": sum(found.tokens)},
        },
        "arms": {name: {"model": model | asdict(made)} for name, made in found.shapes.items()},
    }
    words = [
        f"Pilots: {found.runs} runs, {found.cost:.3g} FLOPs (6 N D), "
        f"{len(WITHIN) + 1} points each, the ends of annealed branches.",
        f"treering study {out.name} --out PILOTS --jobs 2, then treering plan fit PILOTS",
    ]
    return "".join(f"# {line}\n" for line in words) + tomli_w.dumps(table)
