"""A study of pilots: runs smaller than the one that is planned, for `treering plan fit`.

    sizes        three, an eighth, a quarter and a half of the planned layers
    shares       five, one of them without replay, which no law can guess
    tokens       each run is one long trunk at a constant rate; in its last phase branches are
                 annealed after an eighth, a quarter, a half and all of it: one run, four points
    before       the phase before it has such branches, too: that at its end tells the loss before

All phases are as long as the budget allows, up to the recipe's own lengths. What is left goes into
seeds.
"""

from __future__ import annotations

import math
import os
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

import tomli_w

from treering.analysis.laws.manner import Manner
from treering.config import Invalid, Recipe, Table
from treering.grid import merged
from treering.shapes import Shape, shape

PARTS = (1 / 8, 1 / 4, 1 / 2)  # of the planned layers
SHARES = (0.0, 0.02, 0.05, 0.15, 0.4)
WITHIN = (0.125, 0.25, 0.5)  # of the last phase; and its end
FALL = 0.2  # tokens of a branch, as a share of those before it in the last phase
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
    whole, last = [phase.tokens for phase in recipe.phases], recipe.phases[-1]
    once = 6.0 * sum(sizes.values()) * sum(_trained(recipe, share) for share in shares)
    part = min(1.0, budget / once)
    fewest = math.ceil(FEWEST / WITHIN[0]) * recipe.batch.tokens
    if last.tokens < fewest:
        raise Invalid(
            f"phases[{len(whole) - 1}].tokens = {last.tokens}: {last.name} is too short for pilots "
            f"to be scored {len(WITHIN) + 1} times in it, whatever the budget; lengthen the phase "
            f"to {fewest:,} tokens"
        )
    least = fewest / last.tokens
    if part < least:
        raise Invalid(
            f"--budget {budget:g}: is {part * last.tokens:,.0f} tokens of {last.name} "
            f"for each of {len(sizes) * len(shares)} pilots, too few to be scored "
            f"{len(WITHIN) + 1} times; give {_up(least * once):.2g} FLOPs at least"
        )
    seeds = max(1, min(SEEDS, math.floor(budget / once)))
    tokens = tuple(_steps(part * each, recipe) * recipe.batch.tokens for each in whole)
    return Pilots(shapes, sizes, shares, seeds, tokens, part * once * seeds)


@dataclass(frozen=True)
class Template:
    """A recipe that what is recommended is laid over: as it is written, resolved, and its ids; and
    how the rate went in the pilots, where that is known."""

    table: Table
    recipe: Recipe
    vocabulary: int
    manner: Manner | None


def recommended(begin: Template, size: float, tokens: float, replay: float) -> str:
    """The recipe with a model of about `size` multiplying parameters, so many tokens in its last
    phase, replayed and annealed ones among them, and that replay share; TOML. A model that is read
    from a folder stays as it is."""
    table, recipe = begin.table, begin.recipe
    over = _lasting(begin, tokens, replay) | {"replay": {"share": round(replay, 4)}}
    words = [f"{tokens:.3g} tokens of {recipe.phases[-1].name} with {replay:.2%} replay"]
    if recipe.model.from_ is None:
        made = planned = shape(recipe.model)
        for _ in range(8):  # what is not in the layers depends on the width
            beside = made.multiplying(begin.vocabulary) - made.layers
            made = planned.scaled(max(size - beside, size / 20))
        words.append(f"N = {made.multiplying(begin.vocabulary):,} parameters that multiply")
        kept = {key: value for key, value in table.get("model", {}).items() if key not in SIZES}
        table = table | {"model": kept | asdict(made)}
    head = f"# Recommended by treering plan ask: {', '.join(words)}.\n"
    rest = {key: value for key, value in table.items() if key != "anneal"}
    return head + tomli_w.dumps(merged(rest, over))


def _lasting(begin: Template, tokens: float, replay: float) -> Table:
    """Of the recipe its phases, the last one trained for so many tokens in all; and where pilots
    were annealed their schedule, and a branch as long as theirs, which these are among."""
    recipe, manner = begin.recipe, begin.manner
    share = replay if recipe.replay.budget == "batch" else 0.0  # a step trains more than its batch
    steps = _steps(tokens * (1 - share), recipe)
    part = manner.part if manner else 0.0
    branch = min(steps - 1, max(1, round(steps * part / (1 + part)))) if part else 0
    own = (steps - branch) * recipe.batch.tokens
    phases = [dict(phase) for phase in begin.table["phases"]]
    phases[-1]["tokens"] = round(own * (1 - replay)) if recipe.replay.budget == "fresh" else own
    if manner is None or not branch:
        return {"phases": phases}
    anneal = {"tokens": branch * recipe.batch.tokens, "phases": [recipe.phases[-1].name]}
    peak = {key: recipe.schedule[key] for key in ("peak",) if key in recipe.schedule}
    return {
        "phases": phases,
        "schedule": peak | manner.schedule,
        "anneal": manner.anneal | anneal,
    }


def tokens(recipe: Recipe, replay: float, *, annealed: bool) -> float:
    """The D of laws: all tokens that a run, or the branch at its end, trains of its last phase,
    replayed ones too."""
    last, own, budget = recipe.phases[-1], recipe.anneal, recipe.replay.budget
    branch = own.tokens if annealed and own.after(last.name) else 0
    beside = 1 / (1 - replay)
    trunk = last.tokens * (1 if budget == "total" else beside)
    return trunk + branch * (beside if budget == "batch" else 1)


def moved(table: Table, found: Table, out: Path) -> Table:
    """A recipe's table with its relative paths as they are from where `out` lies; `found` is the
    table resolved. What it leaves as it is, such as the name of a model of the hub, stays."""
    made = dict(table)
    for key, value in table.items():
        at = found.get(key)
        if isinstance(value, dict) and isinstance(at, dict):
            made[key] = moved(value, at, out)
        elif isinstance(value, str) and isinstance(at, str) and value != at:
            made[key] = value if value[:1] in ("~", os.sep) else relative(Path(at), out)
    return made


def relative(path: Path, out: Path) -> str:
    """A path as it is from the folder of `out`, links followed, or ".." would lead elsewhere."""
    return os.path.relpath(path.parent.resolve() / path.name, out.parent.resolve())


def command(verb: str, file: Path | str, to: str, data: str | None) -> str:
    """What to run next, as it is typed."""
    words = ["treering", verb, str(file), *(["--data", data] if data else []), "--out", to]
    return shlex.join(words)


def _steps(tokens: float, recipe: Recipe) -> int:
    return max(1, round(tokens / recipe.batch.tokens))


def _trained(recipe: Recipe, share: float) -> float:
    """Tokens of a pilot as long as the recipe, replayed ones and those of branches among them."""
    own, whole = recipe.replay, [phase.tokens for phase in recipe.phases]
    beside = 1.0 if own.budget == "total" else 1 / (1 - share)
    first = beside if own.past or own.memory.get("over", "all") == "all" else 1.0
    branches = FALL * whole[-1] * (sum(WITHIN) + len(_annealed(recipe)))
    longer = beside if own.budget == "batch" else 1.0  # of "fresh" a branch's tokens are all
    return first * whole[0] + beside * sum(whole[1:]) + longer * branches


def _annealed(recipe: Recipe) -> list[str]:
    """Phases that have branches: the last, and the one before it."""
    return [phase.name for phase in recipe.phases[-2:]]


def _up(flops: float) -> float:
    """The next number of two digits, so that as much as is asked for is enough."""
    unit = 10.0 ** (math.floor(math.log10(flops)) - 1)
    return math.ceil(flops / unit) * unit


def study(found: Pilots, recipe: Recipe, base: Path, out: Path, data: str | None = None) -> str:
    """The study as TOML, over the recipe in the file `base`, whose paths are relative to `data`;
    `out` is where it will lie."""
    last = found.tokens[-1]
    phases: list[Table] = [
        {"name": phase.name, "tokens": tokens, "mixture": dict(phase.mixture)}
        for phase, tokens in zip(recipe.phases, found.tokens, strict=True)
    ]
    kept = recipe.model
    model: Table = {"kind": kept.kind, "attention": kept.attention, "dropout": kept.dropout}
    peak, warmup = recipe.schedule["peak"], recipe.schedule.get("warmup", 0.01)
    table: Table = {
        "base": relative(base.absolute(), out),
        "grid": {"replay": {"share": list(found.shares)}, "seed": list(range(found.seeds))},
        "common": {
            "phases": phases,
            "schedule": {"kind": "constant", "peak": peak, "warmup": warmup},
            "anneal": {
                "tokens": round(FALL * last),
                "phases": _annealed(recipe),
                "at": {recipe.phases[-1].name: list(WITHIN)},
            },
            "evaluate": {"every_tokens": sum(found.tokens)},
        },
        "arms": {name: {"model": model | asdict(made)} for name, made in found.shapes.items()},
    }
    words = [
        f"Pilots: {found.runs} runs, {found.cost:.3g} FLOPs (6 N D), "
        f"{len(WITHIN) + 1} points each, the ends of annealed branches.",
        f"{command('study', str(out), 'PILOTS', data)} --jobs 2",
        "treering plan fit PILOTS --old CORPUS",
    ]
    return "".join(f"# {line}\n" for line in words) + tomli_w.dumps(table)
