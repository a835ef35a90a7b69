"""The shelf opened: the recipe's tables become methods. With build.py the only importer of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from treering import adapter, model, surgery
from treering.config import Invalid, Recipe, Table, exact
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
    _check_together(recipe)
    _check_adapted(recipe)
    _warn_of_nothing_held(recipe)
    schedule(recipe, (1,) * len(recipe.phases))
    falling(recipe.anneal.shape, recipe.anneal.floor, "anneal")
    planner(recipe, (2**40,) * len(recipe.corpora))


def _check_together(recipe: Recipe) -> None:
    """Raises Invalid for methods that do not go with one another."""
    if "coso" in adapter.kinds(recipe.update) and penalties(recipe):
        raise Invalid(
            "penalties: not with update kind 'coso', which steps in coordinates of its own; leave "
            "one of them out"
        )
    rows = {"agem", "gem"} & {*adapter.kinds(recipe.update)}
    if rows and "per_sample" in adapter.kinds(recipe.update):
        raise Invalid(
            f"update: {rows.pop()!r} compares the rows of a step, of which 'per_sample' gives one "
            "at a time; use one of them"
        )
    whole = {"agem", "gem", "per_sample", "coso"} & {*adapter.kinds(recipe.update)}
    if recipe.objective.der.weight and (whole or recipe.anneal.tokens):
        beside = f"update kind '{whole.pop()}'" if whole else "anneal.tokens"
        raise Invalid(
            f"objective.der.weight = {recipe.objective.der.weight}: not beside {beside}, as "
            "predictions are recorded of whole steps of the run itself; leave one of them out"
        )
    if recipe.anneal.tokens and "coso" in adapter.kinds(recipe.update):
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not with update kind 'coso', which closes "
            "the phase that a branch goes on with; set it to 0"
        )
    if recipe.anneal.tokens and any(isinstance(t.get("rate"), dict) for t in _nested(recipe)):
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not beside a schedule of update.rate, which "
            "says nothing of a branch's steps; give update.rate a number"
        )


def _check_adapted(recipe: Recipe) -> None:
    """Raises Invalid for what does not go with an adapter that is merged at each phase's end."""
    small = adapter.named(recipe)
    if small is None or small.merge != "phase":
        return
    if recipe.anneal.tokens:
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not with adapter.merge = 'phase', which "
            "closes the phase that a branch goes on with; set it to 0"
        )
    for i, table in enumerate(recipe.penalties):
        if table.get("weight") and (table["kind"], table.get("anchor", "phase")) != ("l2", "phase"):
            raise Invalid(
                f"penalties[{i}]: holds weights of an adapter that adapter.merge = 'phase' makes "
                "anew; use adapter.merge = 'end', or kind 'l2' with anchor = 'phase'"
            )


def _warn_of_nothing_held(recipe: Recipe) -> None:
    """A run of one phase has no phase before it; with another to come it may be meant so."""
    if len(recipe.phases) > 1:
        return
    found = []
    for i, table in enumerate(recipe.penalties):
        anchored = table["kind"] == "l2" and table.get("anchor", "phase") == "phase"
        if not table.get("weight"):
            continue
        if anchored or (table["kind"] != "l2" and not recipe.replay.past):
            remedy = "anchor = 'start'" if anchored else "replay.past"
            found.append(f"penalties[{i}] ({table['kind']}; give {remedy})")
    if recipe.objective.teacher.weight and recipe.objective.teacher.from_ == "phase":
        found.append("objective.teacher (give from = 'start')")
    for what in found:
        warnings.warn(f"{what}: holds nothing in a run of one phase", stacklevel=2)


def _nested(recipe: Recipe) -> Iterator[Table]:
    """The table of the update and of all that is inside it."""
    table: Table | None = recipe.update
    while table is not None:
        yield table
        table = table.get("inner")


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
    table, steps = dict(table), steps or (1,) * len(recipe.phases)
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
    made: Update = construct(updates.KINDS, table, where)
    return made


def penalties(recipe: Recipe) -> tuple[Penalty, ...]:
    """The penalties that a recipe's tables name; one of weight 0 is none."""
    made = [
        construct(holds.KINDS, table, f"penalties[{i}]") for i, table in enumerate(recipe.penalties)
    ]
    return tuple(penalty for penalty in made if penalty.weight)


def schedule(recipe: Recipe, steps: tuple[int, ...]) -> Schedule:
    """The rate at each step of a run whose phases have so many steps."""
    table = dict(recipe.schedule)
    span = table.pop("span", "run")
    shape = construct(schedules.KINDS, table, "schedule")
    if span not in SPANS:
        raise Invalid(f"schedule.span = {span!r}{near(str(span), list(SPANS))}")
    if span == "first":  # and what it comes to for ever after
        rate = shape.over(steps[0])
        return lambda step: rate(min(step, steps[0]))
    spans = (sum(steps),) if span == "run" else steps
    return join([(shape.over(n), n) for n in spans])


def annealed(recipe: Recipe, trunk: Schedule, begin: int, end: int) -> Schedule:
    """The rate of a branch that leaves a run after `begin` steps and ends after `end`."""
    shape, floor = recipe.anneal.shape, recipe.anneal.floor
    fall, high = falling(shape, floor, "anneal"), trunk(max(0, begin - 1))

    def rate(step: int) -> float:
        if step < begin:
            return trunk(step)
        return high * fall(min(1.0, (step - begin) / (end - begin)), floor)

    return rate
