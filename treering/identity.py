"""What makes two runs the same run."""

from __future__ import annotations

from treering import pretrained, schema
from treering.config import Recipe, Table


def identity(recipe: Recipe, mark: str, digests: dict[str, dict[str, str]]) -> Table:
    """A recipe by values and digests, without paths, mesh and trackers: two runs with the same
    identity are the same run. mark: the tokenizer's; digests: the stores'."""
    table = schema.values(recipe)
    table["corpora"] = digests
    del table["mesh"], table["checkpoint"], table["track"]
    if not recipe.surgeries:  # a run that began before there were any goes on
        del table["surgeries"]
    free = ("task_folder", "task_data") if recipe.evaluate.tasks else ("task",)
    scored = table["evaluate"]
    table["evaluate"] = {key: scored[key] for key in scored if not key.startswith(free)}
    if "from" in table["model"]:
        start = table["model"]["from"]
        table["model"]["from"] = pretrained.fingerprint(start) or start
    return table | {"tokenizer": mark}
