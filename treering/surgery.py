"""The model that a run begins with: fresh or pretrained, and then as its surgeries leave it."""

from __future__ import annotations

import warnings
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import model, tokenizer
from treering.config import Invalid, Recipe
from treering.methods.surgeries import KINDS
from treering.methods.surgeries.context import Context
from treering.protocols import Origin, Surgery
from treering.schema import construct


def surgeries(recipe: Recipe) -> list[Surgery]:
    """Those that the recipe names, in its order."""
    found: list[Surgery] = [
        construct(KINDS, table, f"surgeries[{i}]") for i, table in enumerate(recipe.surgeries)
    ]
    named = [surgery.length for surgery in found if isinstance(surgery, Context)]
    if named and named[-1] < recipe.length:
        raise Invalid(
            f"surgeries.length = {named[-1]}: is less than the recipe's length of {recipe.length}, "
            "at which the model is trained; give as much at least"
        )
    return found


def by_rows(recipe: Recipe) -> bool:
    """Whether each rank may read its rows of the weights alone; a warning says where it may not."""
    good = all(surgery.by_rows for surgery in surgeries(recipe))
    if not good and recipe.model.from_ is not None:
        warnings.warn("surgeries: they change weights, so that every process reads the whole model "
                      "before it is spread", stacklevel=2)  # fmt: skip
    return good


def start(
    recipe: Recipe, words: PreTrainedTokenizerBase, *, spread: bool = False
) -> PreTrainedModel:
    """The model in fp32, on the CPU, with its dropout set; see `model.build`. Raises Invalid where
    a surgery cannot be done, or where tokens would have no row."""
    size = tokenizer.size(words)
    made = model.build(recipe, size, tokenizer.end_of_text(words), spread=spread)
    origin = Origin(words, recipe.model.from_, recipe.seed)
    for surgery in surgeries(recipe):
        made = surgery(made, origin)
    if model.size(made) < size:
        raise Invalid(
            f"model.from = {recipe.model.from_!r}: its vocabulary of {model.size(made)} is smaller "
            f"than the tokenizer's {size}; leave [tokenizer] out to use the model's own, or give "
            "its rows to one that extends it by [[surgeries]] kind = 'vocabulary'"
        )
    _check_positions(made, recipe.length)
    return made


def _check_positions(made: PreTrainedModel, length: int) -> None:
    """Raises Invalid where a model has no row for a position; warns where its config names fewer
    positions than are trained."""
    known = getattr(made.config.get_text_config(), "max_position_embeddings", None)
    if not known or length <= known:
        return
    words = f"length = {length}: beyond the {known} positions of {type(made).__name__}"
    tables = (part for part in made.modules() if isinstance(part, nn.Embedding))
    learned = [t for t in tables if t is not made.get_input_embeddings()]
    if any(table.num_embeddings - known in (0, 2) for table in learned):  # OPT keeps two more
        raise Invalid(f"{words}, which are learned; take a smaller length")
    warnings.warn(f"{words}; give [[surgeries]] kind = 'context', length = {length}, so that its "
                  "config says what it reads", stacklevel=3)  # fmt: skip


def without(recipe: Recipe, source: str) -> Recipe:
    """The recipe with the model in `source`, on which nothing is to be done any more."""
    return replace(recipe, model=replace(recipe.model, from_=source), surgeries=())
