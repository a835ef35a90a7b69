"""What makes two runs the same run."""

from __future__ import annotations

from dataclasses import MISSING, fields

from treering import pretrained, schema
from treering.config import Recipe, Table

# Left out where they ask for nothing.
LATER = ("adapter", "anneal", "objective", "penalties", "surgeries")


def identity(recipe: Recipe, mark: str, digests: dict[str, dict[str, str]]) -> Table:
    """A recipe by values and digests, without paths, mesh and trackers: two runs with the same
    identity are the same run. mark: the tokenizer's; digests: the stores'."""
    table = schema.values(recipe)
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory()
                for f in fields(Recipe)}  # fmt: skip
    table["corpora"] = digests
    del table["mesh"], table["checkpoint"], table["track"]
    free = ("task_folder", "task_data") if recipe.evaluate.tasks else ("task",)
    scored = table["evaluate"]
    table["evaluate"] = {key: scored[key] for key in scored if not key.startswith(free)}
    if "from" in table["model"]:
        start = table["model"]["from"]
        table["model"]["from"] = pretrained.fingerprint(start) or start
    teacher = table["objective"]["teacher"]
    teacher["from"] = pretrained.fingerprint(teacher["from"]) or teacher["from"]
    if not recipe.objective.der.weight:
        del table["objective"]["der"]
    if not recipe.anneal.at:
        del table["anneal"]["at"]
    if not recipe.optimizer.groups:
        del table["optimizer"]["groups"]
    for name in LATER:  # so that a run begun before there was such a table goes on
        if getattr(recipe, name) == defaults[name]:
            del table[name]
    return table | {"tokenizer": mark}
