"""Causal language models from Hugging Face folders, and to them."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from treering import weights
from treering.config import Invalid
from treering.mesh import Mesh
from treering.spread import whole
from treering.tokenizer import is_folder, save

FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*"]


def load(source: str, *, dropout: float = 0.0, remote_code: bool = False) -> PreTrainedModel:
    """A causal language model from a folder or the hub, safetensors only, in fp32.

    Raises Invalid where there is none, or not all of it. Dropout is set in the model, whatever its
    config says.
    """
    with _naming(source):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=_settings(source, dropout, remote_code),
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=remote_code,
            output_loading_info=True,
        )
        model: PreTrainedModel = loaded[0]
        missing = sorted(loaded[1]["missing_keys"])
        if missing:  # transformers would make them up
            raise Invalid(f"model {source!r}: has no weight {missing[0]!r} "
                          f"({len(missing)} are missing)")  # fmt: skip
        return model


def described(source: str, *, dropout: float = 0.0, remote_code: bool = False) -> PreTrainedModel:
    """As `load`, but with its parameters on the meta device; errors as there.

    A model whose files have other names for its weights, because transformers converts them, is
    read whole on every rank; a warning says so.
    """
    with _naming(source):
        settings = _settings(source, dropout, remote_code)
        with weights.left_out():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                settings, dtype=torch.float32, trust_remote_code=remote_code
            )
        if weights.holds(folder(source), [*weights.stored(model)]):
            if model.can_generate() and (folder(source) / "generation_config.json").exists():
                model.generation_config = GenerationConfig.from_pretrained(source)
            return model
    warnings.warn(f"model {source!r}: its files must be converted, so that every process reads "
                  "the whole model", stacklevel=2)  # fmt: skip
    return load(source, dropout=dropout, remote_code=remote_code)


def folder(source: str) -> Path:
    """Where a model's files lie: the folder itself, or that of a hub id, fetched if need be. Raises
    Invalid where there is neither."""
    if is_folder(source, f"model {source!r}"):
        return Path(source)
    try:
        return Path(snapshot_download(source, allow_patterns=FILES))
    except Exception as error:  # of the hub, of the net, of the name
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise Invalid(f"model {source!r}: no such folder, nor on the hub ({reason})") from error


def _settings(source: str, dropout: float, remote_code: bool) -> PreTrainedConfig:
    settings: PreTrainedConfig = AutoConfig.from_pretrained(source, trust_remote_code=remote_code)
    for name in _dropouts(settings):
        setattr(settings, name, dropout)
    return settings


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Whatever hinders a model from being loaded is said with its name."""
    is_folder(source, f"model {source!r}")
    try:
        yield
    except Invalid:
        raise
    except Exception as error:  # a damaged config.json makes transformers fail in any way
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise Invalid(f"model {source!r}: no model could be loaded ({reason})") from error


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


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    *,
    card: str,
    spread: Mapping[str, torch.Tensor] | None = None,
    mesh: Mesh | None = None,
) -> None:
    """Write a folder that `AutoModelForCausalLM.from_pretrained` opens: weights as they stand, in
    fp32, tokenizer, model card. Written beside and renamed; an older export is replaced.

    spread: the weights of a model that is spread over the ranks of `mesh`; all ranks must call.
    """
    mesh = mesh or Mesh()
    beside = out.with_name(f".{out.name}.{mesh.told(lambda: uuid.uuid4().hex)}.tmp")

    def begin() -> None:
        for leftover in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):  # of one killed
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir()

    def end() -> None:
        save(tokenizer, beside)
        (beside / "README.md").write_text(card, encoding="utf-8")
        older = out.with_name(f"{beside.name.removesuffix('.tmp')}.older.tmp")
        if out.exists():
            out.rename(older)  # a removal that is broken off would leave half a model
        beside.rename(out)
        shutil.rmtree(older, ignore_errors=True)

    try:
        mesh.told(begin)
        mesh.together(lambda: _write(model, beside, spread, mesh))
        mesh.told(end)
    except SafetensorError as error:  # how it says that a disk is full
        raise OSError(f"{out}: {error}") from error
    finally:
        if mesh.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)


def _write(
    model: PreTrainedModel, into: Path, spread: Mapping[str, torch.Tensor] | None, mesh: Mesh
) -> None:
    if spread is None:
        model.save_pretrained(into, safe_serialization=True)
    elif vars(model).get("_weight_conversions"):  # its files are converted back by transformers
        state = {name: whole(tensor.detach()).cpu() for name, tensor in spread.items()}
        if mesh.rank == 0:
            model.save_pretrained(into, state_dict=state, safe_serialization=True)
    else:
        weights.write(into, spread, mesh)
        if mesh.rank == 0:
            model.config.save_pretrained(into)
            if model.can_generate():
                model.generation_config.save_pretrained(into)


def _dropouts(settings: PreTrainedConfig) -> list[str]:
    """GPT-2 calls them attn_pdrop, Llama attention_dropout, others hidden_dropout."""
    fields: dict[str, Any] = settings.to_dict()
    return [n for n, v in fields.items() if "drop" in n and isinstance(v, float | int)]
