"""Causal language models: fresh, pretrained, exported.

Shape suffixes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from treering import config, pretrained, tables
from treering.config import Invalid
from treering.ledger import flops_per_token
from treering.protocols import Objective
from treering.rng import key
from treering.schema import near

#              depth, width, heads, MLP, tied. From 99m on: arXiv 2508.01908, released configs.
PRESETS = {
    "1m": (4, 128, 4, 344, True),
    "3m": (4, 192, 6, 512, True),
    "10m": (8, 288, 6, 768, True),
    "99m": (16, 512, 8, 1280, False),
    "560m": (24, 1024, 16, 2560, False),
    "1b": (24, 1792, 28, 5120, False),
    "6b": (30, 3072, 24, 9216, False),
}


class Root(nn.Module):
    """Decoder, head and loss in one module: what is compiled, sharded and called.

    Nothing outside it sees the logits.
    """

    def __init__(self, model: PreTrainedModel, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(
        self, tokens_BL1: torch.Tensor, counts_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """int64[B, L + 1] and what each row counts, float32[B] -> (sum of counts * losses, with
        gradient; loss of each row in nats/token, float32[B], without)."""
        return self.objective(self.model, tokens_BL1, counts_B)


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
    model = load(wanted.from_, dropout=wanted.dropout, remote_code=wanted.remote_code)
    if size(model) < vocabulary:
        raise Invalid(
            f"model.from = {wanted.from_!r}: its vocabulary of {size(model)} is smaller than the "
            f"tokenizer's {vocabulary}; leave [tokenizer] out to use the model's own"
        )
    return model


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
    if wanted.preset is not None and wanted.preset not in PRESETS:
        raise Invalid(f"model.preset = {wanted.preset!r}" + near(wanted.preset, list(PRESETS)))
    depth, width, heads, mlp, tied = _sizes(wanted)
    if width % heads or (width // heads) % 2:
        raise Invalid(f"model.heads = {heads}: width {width} must split into heads of even width")
    return LlamaConfig(
        vocab_size=vocabulary,
        bos_token_id=None,  # Llama's own, 1 and 2, are ordinary tokens here
        eos_token_id=end_of_text,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=mlp,
        max_position_embeddings=max(2048, length),
        tie_word_embeddings=tied,
        attention_dropout=wanted.dropout,
    )


def size(model: PreTrainedModel) -> int:
    """Ids that the model can embed."""
    table = model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table.shape[0]


def count(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters: all, and those that multiply (all but look-up tables that are not the head)."""
    every = {id(p): p.numel() for p in model.parameters()}
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    idle = {id(t) for t in tables if head is None or t is not head.weight}
    return sum(every.values()), sum(n for name, n in every.items() if name not in idle)


def cost(model: PreTrainedModel, length: int) -> float:
    """FLOPs of a trained token in windows of `length`."""
    (_, multiplying), (layers, width) = count(model), shape(model)
    return flops_per_token(multiplying, layers=layers, width=width, length=length)


def shape(model: PreTrainedModel) -> tuple[int, int]:
    """(layers, width)."""
    text = model.config.get_text_config()
    return int(text.num_hidden_layers), int(text.hidden_size)


def blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that transformers says must not be split."""
    names = set(model._no_split_modules or ())
    return [module for module in model.modules() if type(module).__name__ in names]


def _sizes(wanted: tables.Model) -> tuple[int, int, int, int, bool]:
    """(depth, width, heads, MLP, tied): the preset's, where the recipe does not say otherwise."""
    preset = PRESETS[wanted.preset] if wanted.preset else (0, 0, 0, 0, False)
    sizes = []
    given = (wanted.depth, wanted.width, wanted.heads)
    for name, number, usual in zip(("depth", "width", "heads"), given, preset[:3], strict=True):
        number = usual if number is None else number
        if number < 1:
            raise Invalid(f"model.{name} = {number}: give a positive number, or model.preset")
        sizes.append(number)
    depth, width, heads = sizes
    mlp = (preset[3] or 4 * width) if wanted.mlp is None else wanted.mlp
    if mlp < 1:
        raise Invalid(f"model.mlp = {mlp}: must be positive")
    return depth, width, heads, mlp, preset[4] if wanted.tied is None else wanted.tied
