"""Causal language models: fresh, pretrained, exported.

Shape suffixes: B rows, L length, V vocabulary.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from treering import config
from treering.config import Invalid
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

    def forward(self, tokens_BL1: torch.Tensor) -> torch.Tensor:
        """int64[B, L + 1] -> loss of each row in nats/token, float32[B]."""
        return self.objective(self.model, tokens_BL1)


def build(recipe: config.Recipe, vocabulary: int, end_of_text: int) -> PreTrainedModel:
    """The model that a recipe starts from, in fp32, on the CPU, with its dropout set."""
    wanted = recipe.model
    if wanted.from_ is None:
        settings = llama(wanted, vocabulary, recipe.length, end_of_text)
        return fresh(settings, recipe.seed)
    model = pretrained(wanted.from_, dropout=wanted.dropout, remote_code=wanted.remote_code)
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
    wanted: config.Model, vocabulary: int, length: int, end_of_text: int | None = None
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


def pretrained(source: str, *, dropout: float = 0.0, remote_code: bool = False) -> PreTrainedModel:
    """A causal language model from a folder or the hub, safetensors only, in fp32.

    Raises Invalid where there is none. Dropout is set in the model, whatever its config says.
    """
    try:
        settings = AutoConfig.from_pretrained(source, trust_remote_code=remote_code)
        for name in _dropouts(settings):
            setattr(settings, name, dropout)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source,
            config=settings,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=remote_code,
        )
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise Invalid(f"model.from = {source!r}: no model could be loaded ({reason})") from error
    return model


def fingerprint(source: str | None) -> str | None:
    """A digest of a model folder's config and weights (sizes, first and last MiB of each file), so
    that a run is resumed with the model that it began with. None for a hub id or a fresh model."""
    if source is None or not (Path(source) / "config.json").is_file():
        return None
    digest = hashlib.sha256((Path(source) / "config.json").read_bytes())
    for path in sorted(Path(source).glob("*.safetensors")):
        with open(path, "rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(0)
            digest.update(str(length).encode() + file.read(2**20))
            file.seek(max(0, length - 2**20))
            digest.update(file.read())
    return digest.hexdigest()


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


def shape(model: PreTrainedModel) -> tuple[int, int]:
    """(layers, width)."""
    text = model.config.get_text_config()
    return int(text.num_hidden_layers), int(text.hidden_size)


def export(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, card: str
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` opens: weights as they stand, in
    fp32, tokenizer, model card. Written beside and renamed; an older export is replaced."""
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.*.tmp"):  # of one killed
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        model.save_pretrained(beside, safe_serialization=True)
        tokenizer.save_pretrained(beside)
        (beside / "README.md").write_text(card, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    except SafetensorError as error:  # how it says that a disk is full
        raise OSError(f"{folder}: {error}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sizes(wanted: config.Model) -> tuple[int, int, int, int, bool]:
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
    mlp = wanted.mlp or preset[3] or 4 * width
    return depth, width, heads, mlp, preset[4] if wanted.tied is None else wanted.tied


def _dropouts(settings: PreTrainedConfig) -> list[str]:
    """GPT-2 calls them attn_pdrop, Llama attention_dropout, others hidden_dropout."""
    fields: dict[str, Any] = settings.to_dict()
    return [n for n, v in fields.items() if "drop" in n and isinstance(v, float | int)]
