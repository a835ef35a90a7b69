"""What goes together: methods that a recipe may not join, and those that would do nothing in it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from treering import adapter
from treering.config import Invalid, Recipe, Table


def check(recipe: Recipe, steps: Sequence[int]) -> None:
    """Raises Invalid for methods that do not go with one another, and warns of those that do
    nothing in phases of so many steps."""
    _check_together(recipe)
    _check_windows(recipe)
    _check_adapted(recipe)
    _warn_of_nothing_held(recipe)
    _warn_of_nothing_replayed(recipe)
    _warn_of_nothing_done(recipe)
    _warn_of_open_windows(recipe, steps)


def _check_together(recipe: Recipe) -> None:
    kinds = {*adapter.kinds(recipe.update)}
    if "coso" in kinds and any(table.get("weight") for table in recipe.penalties):
        raise Invalid(
            "penalties: not with update kind 'coso', which steps in coordinates of its own; leave "
            "one of them out"
        )
    rows = {"agem", "gem"} & kinds
    if rows and "per_sample" in kinds:
        raise Invalid(
            f"update: {rows.pop()!r} compares the rows of a step, of which 'per_sample' gives one "
            "at a time; use one of them"
        )
    if rows and (recipe.objective.replayed == 0 or _taught_on_replayed(recipe)):
        what = "teacher.on = 'replayed'" if recipe.objective.replayed else "replayed = 0"
        raise Invalid(
            f"objective.{what}: not with update kind {rows.pop()!r}, to which replayed rows are a "
            "reference and not trained on; leave one of them out"
        )
    if "per_sample" in kinds and recipe.objective.normalize == "weights":
        raise Invalid(
            "objective.normalize = 'weights': not with update kind 'per_sample', of whose single "
            "rows each would be divided by its own weight; use 'rows'"
        )
    whole = {"agem", "gem", "per_sample", "coso"} & kinds
    if recipe.objective.der.weight and (whole or recipe.anneal.tokens):
        beside = f"update kind '{whole.pop()}'" if whole else "anneal.tokens"
        raise Invalid(
            f"objective.der.weight = {recipe.objective.der.weight}: not beside {beside}, as "
            "predictions are recorded of whole steps of the run itself; leave one of them out"
        )
    if recipe.anneal.tokens and "coso" in kinds:
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not with update kind 'coso', which closes "
            "the phase that a branch goes on with; set it to 0"
        )
    if recipe.anneal.tokens and any(isinstance(t.get("rate"), dict) for t in nested(recipe)):
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not beside a schedule of update.rate, which "
            "says nothing of a branch's steps; give update.rate a number"
        )


def _check_windows(recipe: Recipe) -> None:
    """Raises Invalid for what would take weights back to before a subspace was kept, or move them
    on in it."""
    tables = list(nested(recipe))
    inside = [table["kind"] for table in tables]
    around = tables[: inside.index("coso")] if "coso" in inside else []
    for table in around:
        kind = table["kind"]
        moments = table.get("momentum", 0.0) or table.get("optimizer", "sgd") == "adam"
        if kind in ("reptile", "outer") and (moments or not table.get("align", False)):
            raise Invalid(
                f"update kind {kind!r}: around 'coso' its window must close where a phase ends, "
                "and no moments may go on into the next; set align = true, and no momentum"
            )


def _check_adapted(recipe: Recipe) -> None:
    """Raises Invalid for what does not go with an adapter."""
    small = adapter.named(recipe)
    if small is not None and recipe.anneal.tokens:
        raise Invalid(
            f"anneal.tokens = {recipe.anneal.tokens}: not with an adapter, which a branch would "
            "merge into the weights that the run goes on with; set it to 0"
        )
    if small is not None and recipe.optimizer.groups:
        raise Invalid(
            "optimizer.groups: are of the model's own weights, which an adapter leaves as they "
            "are; leave one of them out"
        )
    others = [kind for kind in adapter.kinds(recipe.update) if kind != "descent"]
    if adapter.thins(recipe) and others:
        raise Invalid(
            f"adapter.threshold = {recipe.adapter['threshold']}: gates are thinned after each step "
            f"of the optimizer, of which update kind {others[0]!r} knows nothing; use 'descent'"
        )
    if small is None or small.merge != "phase":
        return
    for i, table in enumerate(recipe.penalties):
        if table.get("weight") and (table["kind"], table.get("anchor", "phase")) != ("l2", "phase"):
            raise Invalid(
                f"penalties[{i}]: holds weights of an adapter that adapter.merge = 'phase' makes "
                "anew; use adapter.merge = 'end', or kind 'l2' with anchor = 'phase'"
            )


def _warn_of_nothing_replayed(recipe: Recipe) -> None:
    """Methods that are of replayed rows are plain training where there are none."""
    rows = {"agem", "gem"} & {*adapter.kinds(recipe.update)}
    named = [f"update kind {kind!r}" for kind in rows]
    named += ["objective.teacher.on = 'replayed'"] * _taught_on_replayed(recipe)
    named += ["objective.der"] * bool(recipe.objective.der.weight)
    past = recipe.replay.memory.get("over", "all") == "past"
    for what in named if recipe.replay.share == 0 else ():
        warnings.warn(f"{what}: does nothing without replay; give replay.share", stacklevel=2)
    if recipe.replay.share and past and len(recipe.phases) == 1 and not recipe.replay.past:
        what = " and ".join(["no sample is replayed", *(f"{each} does nothing" for each in named)])
        warnings.warn(
            f"replay.memory.over = 'past': {what} in a run of one phase; give replay.past",
            stacklevel=2,
        )


def _taught_on_replayed(recipe: Recipe) -> bool:
    teacher = recipe.objective.teacher
    return teacher.weight > 0 and teacher.on == "replayed"


def _warn_of_nothing_done(recipe: Recipe) -> None:
    """Settings that have an effect beside another alone."""
    anneal = recipe.anneal
    words = any(table["kind"] == "vocabulary" for table in recipe.surgeries)
    found = []
    if not anneal.tokens and (anneal.phases or anneal.at):
        found.append("anneal: no branch is trained; give anneal.tokens")
    if recipe.optimizer.kind == "sgd" and recipe.optimizer.at_phase != "keep":
        found.append(f"optimizer.at_phase = {recipe.optimizer.at_phase!r}: sgd has no moments")
    if words and recipe.tokenizer.from_ is None:
        found.append("surgeries: kind 'vocabulary' has no new tokens; give tokenizer.from")
    if words and recipe.adapter:
        found.append(
            "surgeries: rows of kind 'vocabulary' stay as they begin, as an adapter does not "
            "train them"
        )
    for what in found:
        warnings.warn(what, stacklevel=2)


def _warn_of_open_windows(recipe: Recipe, steps: Sequence[int]) -> None:
    """A window that is longer than what is left of a run never closes."""
    names = [phase.name for phase in recipe.phases]
    for table in nested(recipe):
        if table["kind"] in ("reptile", "outer") and not table.get("align", False):
            left = sum(steps[names.index(table.get("start", names[0])) :])
            if left < table["every"]:
                what = (
                    f"update.every = {table['every']}: no step of {table['kind']} in {left} steps"
                )
                warnings.warn(f"{what}; make it smaller, or set align = true", stacklevel=2)


def _warn_of_nothing_held(recipe: Recipe) -> None:
    """A run of one phase has no phase before it; with another to come it may be meant so."""
    if len(recipe.phases) > 1:
        return
    found = []
    if recipe.objective.der.weight and recipe.replay.memory.get("over", "all") == "past":
        found.append("objective.der (predictions are recorded of what the run learns)")
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


def nested(recipe: Recipe) -> Iterator[Table]:
    """The table of the update and of all that is inside it."""
    table: Table | None = recipe.update
    while table is not None:
        yield table
        table = table.get("inner")
