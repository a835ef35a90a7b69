"""The shelf opened: the recipe's tables become methods."""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from treering import adapter, model, surgery, together
from treering.config import Invalid, Recipe, Table, exact
from treering.lengths import lengths
from treering.methods import memories, schedules, updates
from treering.methods import penalties as holds
from treering.methods.schedules.decays import falling
from treering.methods.schedules.warmup import join
from treering.plan import Planner, Stage, integer_weights
from treering.protocols import Penalty, Schedule, Update
from treering.schema import construct, near

SPANS = ("run", "phase", "first")  # what a schedule's shape is laid over


def check(recipe: Recipe) -> None:
    """Make every method once: what is misspelt is told before the minutes of a preparation."""
    if recipe.model.from_ is None:
        model.llama(recipe.model, 1, recipe.length)
    surgery.surgeries(recipe)
    update(recipe, recipe.update)
    adapter.named(recipe)
    penalties(recipe)
    schedule(recipe, _about(recipe))
    falling(recipe.anneal.shape, recipe.anneal.floor, "anneal")
    together.check(recipe, lengths(planner(recipe, (2**40,) * len(recipe.corpora))))


def planner(recipe: Recipe, sizes: tuple[int, ...]) -> Planner:
    """The rule of the recipe's stream over corpora of `sizes` samples."""
    names, replay = tuple(recipe.corpora), recipe.replay
    table = dict(replay.memory)
    over = table.pop("over", "all")
    if over not in ("past", "all"):
        raise Invalid(f"replay.memory.over = {over!r}: must be 'past' or 'all'")
    for name, size in zip(names, sizes, strict=True):
        used = any(name in phase.mixture for phase in recipe.phases) or name in replay.past
        if used and not size:
            raise Invalid(
                f"corpora.{name}.train: has not one sample of length {recipe.length} + 1; "
                "give more text or a smaller length"
            )
    stages = []
    for phase in recipe.phases:
        shares = [exact(phase.mixture.get(name, 0.0)) for name in names]
        stages.append(Stage(ceil(phase.tokens / recipe.length), integer_weights(shares)))
    plan = Planner(
        seed=recipe.seed,
        names=names,
        sizes=sizes,
        past=tuple(name in replay.past for name in names),
        stages=tuple(stages),
        rows=recipe.rows,
        share=exact(replay.share),
        budget=replay.budget,
        memory=construct(memories.KINDS, table, "replay.memory"),
        over=over,
    )
    if plan.memory.held(2**62) < plan.rows + plan.replays:
        raise Invalid(
            f"replay.memory.samples = {plan.memory.held(2**62)}: must be at least the samples of "
            f"a step, {ceil(plan.rows + plan.replays)}"
        )
    return plan


def update(
    recipe: Recipe, table: Table, where: str = "update", steps: tuple[int, ...] = ()
) -> Update:
    """The update that a recipe's table names, with those inside it; steps: as in `schedule`."""
    table, steps = dict(table), steps or _about(recipe)
    if "inner" in table:
        if not isinstance(table["inner"], dict):
            raise Invalid(f"{where}.inner = {table['inner']!r}: must be a table with a kind")
        table["inner"] = update(recipe, table["inner"], where + ".inner", steps)
    if "start" in table:
        names = [phase.name for phase in recipe.phases]
        if (name := table["start"]) not in names:
            raise Invalid(f"{where}.start = {name!r}{near(str(name), names)}")
        table["start"] = names.index(name)
    if table.get("kind") == "outer" and isinstance(table.get("rate"), dict):
        try:
            table["rate"] = schedule(replace(recipe, schedule=table["rate"]), steps)
        except Invalid as error:
            raise Invalid(f"{where}.rate: {error}") from error
    if table.get("kind") == "per_sample" and recipe.micro_rows != 1:
        raise Invalid(
            f"batch.micro = {recipe.micro_rows * recipe.length}: update kind 'per_sample' takes "
            f"one sample at a time; set it to length ({recipe.length})"
        )
    try:
        made: Update = construct(updates.KINDS, table, where)
    except Invalid as error:  # what an update says of its keys, it says as if none were around it
        line = str(error)
        inside = line.startswith("update.") and not line.startswith(where + ".")
        raise Invalid(line.replace("update", where, 1) if inside else line) from error
    names = _branches(made)
    if twice := [name for name in names if names.count(name) > 1]:
        raise Invalid(f"{where}: two branches are called {twice[0]!r}; keep one of them")
    return made


def _branches(update: Any) -> list[str]:
    """The names of the branches of an update and of those inside it."""
    if update is None:
        return []
    return [*getattr(update, "names", ()), *_branches(getattr(update, "inner", None))]


def penalties(recipe: Recipe) -> tuple[Penalty, ...]:
    """The penalties that a recipe's tables name; one of weight 0 is none."""
    made = [
        construct(holds.KINDS, table, f"penalties[{i}]") for i, table in enumerate(recipe.penalties)
    ]
    return tuple(penalty for penalty in made if penalty.weight)


def schedule(recipe: Recipe, steps: tuple[int, ...]) -> Schedule:
    """The rate at each step of a run whose phases have so many steps."""
    table = dict(recipe.schedule)
    span = table.pop("span", "first" if table.get("kind") == "infinite" else "run")
    tokens = table.pop("warmup_tokens", None)
    shape = construct(schedules.KINDS, table, "schedule")
    if span not in SPANS:
        raise Invalid(f"schedule.span = {span!r}{near(str(span), list(SPANS))}")
    if span == "first" and table.get("anneal", 1.0) < 1 and len(steps) > 1:
        raise Invalid(
            f"schedule.anneal = {table['anneal']}: with span = 'first' later phases would go on at "
            "the floor; leave it out, and give [anneal] tokens for an annealed branch"
        )
    good = isinstance(tokens, int) and 0 <= tokens < 2**63 and "warmup" not in table
    if tokens is not None and not good:
        raise Invalid(
            f"schedule.warmup_tokens = {tokens!r}: tokens, in the place of warmup, a share"
        )

    def over(n: int) -> Schedule:
        warm = None if tokens is None else min(1.0, ceil(tokens / recipe.batch.tokens) / n)
        found: Schedule = (shape if warm is None else replace(shape, warmup=warm)).over(n)
        return found

    if span == "first":  # and what it comes to for ever after
        rate = over(steps[0])
        return lambda step: rate(min(step, steps[0]))
    spans = (sum(steps),) if span == "run" else steps
    return join([(over(n), n) for n in spans])


def _about(recipe: Recipe) -> tuple[int, ...]:
    """Steps of each phase, but for those that a budget beside them asks for."""
    return tuple(ceil(phase.tokens / recipe.batch.tokens) for phase in recipe.phases)


def annealed(recipe: Recipe, trunk: Schedule, begin: int, end: int) -> Schedule:
    """The rate of a branch that leaves a run after `begin` steps and ends after `end`."""
    shape, floor = recipe.anneal.shape, recipe.anneal.floor
    fall, high = falling(shape, floor, "anneal"), trunk(max(0, begin - 1))

    def rate(step: int) -> float:
        if step < begin:
            return trunk(step)
        return high * fall(min(1.0, (step - begin) / (end - begin)), floor)

    return rate
