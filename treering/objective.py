"""What is minimised: the root module with its objective, and its teacher where one is asked for."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from treering import attention, model, pretrained, tokenizer
from treering.asked import check_attention, is_linear
from treering.config import Invalid, Recipe
from treering.forward import Forward, precision
from treering.forward import forward as callable_as
from treering.mesh import Mesh, device
from treering.methods.objectives.cross_entropy import linear_cross_entropy
from treering.methods.objectives.divergence import linear_distillation
from treering.methods.objectives.next_token import NextToken
from treering.weights import read, stored

OWN = ("start", "phase")  # teachers that are the run's own model


def forward(
    recipe: Recipe,
    begun: PreTrainedModel,
    end_of_text: int,
    mesh: Mesh,
    teacher: model.Teacher | None = None,
) -> Forward:
    """The root module of a model, callable as the recipe's `[compute]` says; weights that were left
    out are read into it and into its teacher."""
    blocks = attention.by_blocks(begun, mesh.device)
    chunked = replace(objective(recipe, end_of_text), blocks=blocks)
    whole = replace(chunked, chunked=None)
    attending(recipe, begun, teacher)
    root = model.Root(begun, whole, teacher)
    rows = mesh.most(recipe.rows) if recipe.batch.micro is None else recipe.micro_rows
    unread = [part for part in (begun, teacher) if part and next(part.parameters()).is_meta]
    call = callable_as(root, recipe.compute, rows, mesh)
    if begun in unread:
        assert recipe.model.from_ is not None
        read(pretrained.folder(recipe.model.from_), stored(begun))
    source = recipe.objective.teacher.from_
    if teacher is not None and source in OWN and not recipe.adapter:  # else it is a copy
        teacher.put(list(begun.parameters()))
    elif teacher in unread:
        assert teacher is not None
        read(pretrained.folder(source), stored(teacher.model))
    if is_linear(call, chunked, whole):
        root.objective = chunked
        if recipe.compute.compile and mesh.grid is not None:  # else the whole root is
            root.objective = replace(
                chunked,
                chunked=torch.compile(linear_cross_entropy, dynamic=False),
                distilled=torch.compile(linear_distillation, dynamic=False),
            )
    check_attention(call, whole)
    return call


def attending(recipe: Recipe, begun: PreTrainedModel, teacher: model.Teacher | None = None) -> None:
    """Let both attend without masks, if both may."""
    every = [begun] if teacher is None else [begun, teacher.model]
    if not all(attention.own(each, recipe.length) for each in every):
        for each in every:
            attention.back(each)


def objective(recipe: Recipe, end_of_text: int) -> NextToken:
    """The loss, for a model whose logits are hidden states times head."""
    end = end_of_text if recipe.model.attention == "document" else None
    wanted = recipe.objective
    return NextToken(document_end=end, z=wanted.z, temperature=wanted.teacher.temperature)


def teacher(recipe: Recipe, begun: PreTrainedModel, mark: str) -> model.Teacher | None:
    """The model whose predictions are to be kept, in the precision of the run's products; with
    weights where `begun` has them. mark: the tokenizer's. Raises Invalid for one that is not of the
    model's kind, vocabulary or tokenizer."""
    wanted = recipe.objective.teacher
    if not wanted.weight:
        return None
    if wanted.from_ in OWN:
        found = copy.deepcopy(begun)
    else:
        load = pretrained.described if next(begun.parameters()).is_meta else pretrained.load
        found = load(wanted.from_, remote_code=recipe.model.remote_code)
        words = tokenizer.load(wanted.from_, remote_code=recipe.model.remote_code)
        at = f"objective.teacher.from = {wanted.from_!r}"
        if type(found) is not type(begun) or model.size(found) != model.size(begun):
            raise Invalid(
                f"{at}: is a {type(found).__name__} of {model.size(found)} ids, the model a "
                f"{type(begun).__name__} of {model.size(begun)}; name one of its kind"
            )
        if tokenizer.fingerprint(words) != mark:
            raise Invalid(f"{at}: has another tokenizer than the model; name one with the same")
    dtype = precision(recipe.compute.precision, device()) or torch.float32
    for param in found.parameters():  # not buffers: those of RoPE need fp32
        param.data = param.data.to(dtype)
    whole = model.cost(found, recipe.length) + 2.0 * model.frozen(found)  # as if all were trained
    return model.Teacher(found, whole)
