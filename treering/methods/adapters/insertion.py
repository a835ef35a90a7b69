"""Low-rank layers beside frozen ones, made by peft: W x + scaling * B (w * A x)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from treering.config import Invalid
from treering.schema import near

ONLY = "default"  # peft's name of a model's only adapter


class Gated(nn.Module):
    """A, each of whose rows counts by its gate. `learns` = the gates are trained."""

    def __init__(self, weight: nn.Parameter, *, learns: bool) -> None:
        super().__init__()
        self.weight = weight
        self.gate = nn.Parameter(weight.new_ones(len(weight)), requires_grad=learns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = nn.functional.linear(x, self.weight)
        return hidden * self.gate.to(hidden.dtype)


def insert(
    model: PreTrainedModel,
    names: Sequence[str],
    rank: int,
    alpha: int | None,
    targets: Sequence[str],
    gates: bool | None = None,
) -> None:
    """Freeze the model and put low-rank layers beside those of the weights `names` that end with
    one of `targets` (none: all). `gates`: they are trained, or not; None = there are none. Raises
    Invalid for a target that is not there."""
    from peft import LoraConfig, inject_adapter_in_model

    known = [name.removesuffix(".weight") for name in names]
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in known):
            last = sorted({name.rpartition(".")[2] for name in known})
            raise Invalid(f"adapter.targets = {target!r}: no such layer{near(target, last)}")
    wanted = [n for n in known if not targets or any(f".{n}".endswith(f".{t}") for t in targets)]
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    how = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=wanted,
        fan_in_fan_out=turned,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers of both kinds in a model
        inject_adapter_in_model(how, model, ONLY)
    for layer in [] if gates is None else layers(model).values():
        layer.lora_A[ONLY] = Gated(layer.lora_A[ONLY].weight, learns=bool(gates))


def layers(model: PreTrainedModel) -> dict[str, Any]:
    """peft's layers in a model, by name."""
    from peft.tuners.lora import LoraLayer

    return {n: module for n, module in model.named_modules() if isinstance(module, LoraLayer)}
