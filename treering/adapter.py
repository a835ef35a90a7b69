"""A recipe's adapter: into the model before it is spread, out of it before it is exported."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch
from transformers import PreTrainedModel

from treering import model
from treering.config import Invalid, Recipe, Table
from treering.methods import adapters
from treering.methods.adapters.low_rank import low_rank, remove
from treering.methods.adapters.merging import held
from treering.protocols import Adapter, Update
from treering.schema import construct

MERGEABLE = ("descent", "per_sample", "agem", "gem")  # updates that carry no weights over a merge


def named(recipe: Recipe) -> Adapter | None:
    """The adapter that the recipe names, if any. Raises Invalid for one without peft, or beside
    what does not go with it."""
    if not recipe.adapter:
        return None
    made: Adapter = construct(adapters.KINDS, recipe.adapter, "adapter")
    kind, updates = recipe.adapter["kind"], list(kinds(recipe.update))
    if find_spec("peft") is None:
        raise Invalid(f"adapter.kind = {kind!r}: peft is missing; pip install 'treering[peft]'")
    if recipe.compute.precision == "fp8":
        raise Invalid("compute.precision = 'fp8': not with an adapter; use 'bf16'")
    if "coso" in updates:
        raise Invalid("update.kind = 'coso': is for whole matrices; leave [adapter] out")
    if recipe.objective.teacher.weight and recipe.objective.teacher.from_ == "phase":
        raise Invalid(
            "objective.teacher.from = 'phase': not with an adapter, whose weights the teacher does "
            "not have; use 'start' or a folder"
        )
    carries = [kind for kind in updates if kind not in MERGEABLE]
    if made.merge == "phase" and carries:
        raise Invalid(
            f"adapter.merge = 'phase': update kind {carries[0]!r} has weights from before a "
            "merge; use adapter.merge = 'end', or update kind 'descent'"
        )
    return made


def thins(recipe: Recipe) -> bool:
    """Whether the adapter gives up directions after each step, by how far a phase is."""
    return bool(recipe.adapter.get("threshold")) and recipe.adapter.get("kept") is None


def kinds(update: Table) -> Iterator[str]:
    """Those of an update and of all that is inside it."""
    yield update["kind"]
    if "inner" in update:
        yield from kinds(update["inner"])


def adapted(recipe: Recipe, begun: PreTrainedModel) -> PreTrainedModel:
    """The model with the recipe's adapter in it, if any."""
    small = named(recipe)
    if small is not None:
        small.insert(begun, list(model.matrices(begun)), recipe.seed)
    return begun


def trained(recipe: Recipe, found: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of an adapted model that training changes, by their names in a checkpoint."""
    every = found.named_parameters()
    weights = {f"weights/{name}": param.detach() for name, param in every if param.requires_grad}
    small = named(recipe)
    if small is not None and small.merge == "phase":
        for kind, tensors in held(low_rank(found)).items():
            weights |= {f"update.{kind}/{name}": tensor for name, tensor in tensors.items()}
    return weights


def merged(recipe: Recipe, found: PreTrainedModel) -> PreTrainedModel:
    """An adapted model as an ordinary one of its family: adapters are merged and taken away."""
    if recipe.adapter:
        remove(found)
    return found


def around(recipe: Recipe, inner: Update, found: PreTrainedModel, steps: tuple[int, ...]) -> Update:
    """The update of a run whose phases have so many steps: `inner`, and what the adapter of the
    model asks for. After the model was spread, as it holds the weights."""
    small = named(recipe)
    return inner if small is None else small.around(inner, low_rank(found), recipe.seed, steps)
