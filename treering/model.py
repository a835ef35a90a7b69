"""Causal language models: fresh, pretrained, exported.

Shape suffixes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from treering import config, pretrained, tables
from treering.config import Invalid
from treering.ledger import flops_per_token
from treering.protocols import Objective
from treering.rng import key
from treering.shapes import shape as shape_of


class Root(nn.Module):
    """Decoder, head and loss in one module: what is compiled, sharded and called.

    Nothing outside it sees the logits.
    """

    def __init__(
        self, model: PreTrainedModel, objective: Objective, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.teacher = teacher

    def forward(
        self,
        tokens_BL1: torch.Tensor,
        counts_B: torch.Tensor,
        taught_B: torch.Tensor | None = None,
        *recorded_BLK: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """int64[B, L + 1] and what each row counts, float32[B] -> (sum of counts * losses, with
        gradient; loss of each row in nats/token, float32[B], without). `taught_B` is what each
        row's divergence from the teacher counts; without it the teacher is not asked. It may be one
        from what is recorded, ids and log-chances: then those of now are returned, too."""
        if taught_B is None:
            return self.objective(self.model, tokens_BL1, counts_B)
        if recorded_BLK:
            ids, logs = recorded_BLK
            return self.objective(self.model, tokens_BL1, counts_B, (ids, logs), taught_B)
        assert self.teacher is not None
        return self.objective(self.model, tokens_BL1, counts_B, self.teacher, taught_B)


class Teacher(nn.Module):
    """A model that is asked and never trained: it lies in the root beside the one that learns, is
    spread and compiled with it, and is none of its parameters. `flops` of a token that is taught:
    the forward pass."""

    def __init__(self, model: PreTrainedModel, flops_per_token: float) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()
        self.flops = flops_per_token / 3

    def forward(
        self, given: dict[str, Any], whole: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(hidden states, head) for what a model is called with, or (logits, head) where the
        `whole` of them is asked for; without gradient."""
        head = self.model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
        with torch.no_grad():
            if whole:
                return self.model(**given).logits, head
            return self.model.base_model(**given).last_hidden_state, head

    def train(self, mode: bool = True) -> Teacher:
        """Never: a root that is told to train tells its parts."""
        return super().train(False)

    def settle(self) -> None:
        """Of one that is spread over ranks let go of what is gathered, so that what is written to
        its parameters is seen."""
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def put(self, weights: Sequence[torch.Tensor]) -> None:
        """Other weights, one for each parameter."""
        self.settle()
        for param, weight in zip(self.model.parameters(), weights, strict=True):
            param.copy_(weight)


def build(
    recipe: config.Recipe, vocabulary: int, end_of_text: int, *, spread: bool = False
) -> PreTrainedModel:
    """The model that a recipe starts from, in fp32, on the CPU, with its dropout set. One that will
    be spread over ranks comes without its pretrained weights, for `weights.read` to fill in."""
    wanted = recipe.model
    if wanted.from_ is None:
        settings = llama(wanted, vocabulary, recipe.length, end_of_text)
        return fresh(settings, recipe.seed)
    load = pretrained.described if spread else pretrained.load
    return load(wanted.from_, dropout=wanted.dropout, remote_code=wanted.remote_code)


def fresh(settings: LlamaConfig, seed: int) -> PreTrainedModel:
    """A Llama with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(seed, "weights") % 2**63)
        model: PreTrainedModel = LlamaForCausalLM(settings)
        return model


def llama(
    wanted: tables.Model, vocabulary: int, length: int, end_of_text: int | None = None
) -> LlamaConfig:
    """The configuration of a fresh model. Raises Invalid for sizes that make none."""
    if wanted.kind != "llama":
        raise Invalid(f"model.kind = {wanted.kind!r}: only 'llama' is made fresh; or give from")
    made = shape_of(wanted)
    return LlamaConfig(
        vocab_size=vocabulary,
        bos_token_id=None,  # Llama's own, 1 and 2, are ordinary tokens here
        eos_token_id=end_of_text,
        hidden_size=made.width,
        num_hidden_layers=made.depth,
        num_attention_heads=made.heads,
        num_key_value_heads=made.heads,
        intermediate_size=made.mlp,
        max_position_embeddings=max(2048, length),
        tie_word_embeddings=made.tied,
        attention_dropout=wanted.dropout,
    )


def size(model: PreTrainedModel) -> int:
    """Ids that the model can embed."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table.shape[0]


def count(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters: all, and those that multiply (all but look-up tables that are not the head)."""
    every, idle = list(model.parameters()), _idle(model)
    return sum(p.numel() for p in every), sum(p.numel() for p in every if id(p) not in idle)


def frozen(model: PreTrainedModel) -> int:
    """Those parameters that multiply and have no gradient of their own."""
    idle, every = _idle(model), model.parameters()
    return sum(p.numel() for p in every if not p.requires_grad and id(p) not in idle)


def _idle(model: PreTrainedModel) -> set[int]:
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    return {id(t) for t in tables if head is None or t is not head.weight}


def matrices(model: PreTrainedModel) -> dict[str, str]:
    """Names of the weights of linear layers but the head, and what their rows are: outputs ("out")
    or, of GPT-2's layers, inputs ("in")."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    kinds = ((nn.Linear, "out"), (Conv1D, "in"))
    return {
        f"{name}.weight": rows
        for name, module in model.named_modules()
        for kind, rows in kinds
        if isinstance(module, kind) and module is not head
    }


def cost(model: PreTrainedModel, length: int) -> float:
    """FLOPs of a trained token in windows of `length`; 4 for each frozen parameter."""
    (_, multiplying), (layers, width) = count(model), shape(model)
    every = flops_per_token(multiplying, layers=layers, width=width, length=length)
    return every - 2.0 * frozen(model)


def shape(model: PreTrainedModel) -> tuple[int, int]:
    """(layers, width)."""
    text = model.config.get_text_config()
    return int(text.num_hidden_layers), int(text.hidden_size)


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers says must not be split. One that is spread over ranks is of a
    class below its own."""
    names = set(model._no_split_modules or ())
    return [m for m in model.modules() if names & {kind.__name__ for kind in type(m).__mro__}]
