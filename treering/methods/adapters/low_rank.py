"""Low-rank layers beside frozen ones, made by peft: W x + scaling * B (w * A x)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from treering.config import Invalid
from treering.mesh import fill, whole
from treering.rng import key
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


@dataclass(frozen=True)
class LowRank:
    """A layer's weights, as the optimizer has them. base [out, in], of GPT-2 [in, out]; down, the A
    of the paper, [rank, in]; up, its B, [out, rank]; gate [rank]. `name` is that of down."""

    name: str
    base: torch.Tensor
    down: torch.Tensor
    up: torch.Tensor
    gate: torch.Tensor | None
    scaling: float
    transposed: bool

    def delta(self) -> torch.Tensor:
        """What it adds to its base, whole."""
        down = whole(self.down.detach())
        if self.gate is not None:
            down = whole(self.gate.detach())[:, None] * down
        found = self.scaling * whole(self.up.detach()) @ down
        return found.T if self.transposed else found

    @torch.no_grad()
    def merge(self) -> None:
        """Add it to its base, in place."""
        fill(self.base, whole(self.base.detach()) + self.delta())

    @torch.no_grad()
    def begin(self, seed: int, phase: int) -> None:
        """As new: A is drawn as a linear layer's weights are, B is zero, gates are 1."""
        luck = torch.Generator().manual_seed(key(seed, "adapter", phase, self.name) % 2**63)
        bound = self.down.shape[1] ** -0.5
        drawn = torch.empty(self.down.shape).uniform_(-bound, bound, generator=luck)
        fill(self.down, drawn.to(self.down.device))
        fill(self.up, torch.zeros(self.up.shape, device=self.up.device))
        if self.gate is not None:
            fill(self.gate, torch.ones(self.gate.shape, device=self.gate.device))


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

    layers = [name.removesuffix(".weight") for name in names]
    for target in targets:
        if not any(f".{layer}".endswith(f".{target}") for layer in layers):
            known = sorted({layer.rpartition(".")[2] for layer in layers})
            raise Invalid(f"adapter.targets = {target!r}: no such layer{near(target, known)}")
    wanted = [n for n in layers if not targets or any(f".{n}".endswith(f".{t}") for t in targets)]
    turned = any(isinstance(module, Conv1D) for module in model.modules())
    how = LoraConfig(
        r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=wanted,
        fan_in_fan_out=turned,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layers of both kinds in a model
        inject_adapter_in_model(how, model, ONLY)
    for layer in [] if gates is None else _layers(model).values():
        layer.lora_A[ONLY] = Gated(layer.lora_A[ONLY].weight, learns=bool(gates))


def low_rank(model: PreTrainedModel) -> list[LowRank]:
    """The layers that were put into a model."""
    return [
        LowRank(
            f"{name}.lora_A.{ONLY}.weight",
            layer.base_layer.weight,
            layer.lora_A[ONLY].weight,
            layer.lora_B[ONLY].weight,
            layer.lora_A[ONLY].gate if isinstance(layer.lora_A[ONLY], Gated) else None,
            layer.scaling[ONLY],
            layer.fan_in_fan_out,
        )
        for name, layer in _layers(model).items()
    ]


def remove(model: PreTrainedModel) -> None:
    """Merge the layers and take them away, so that the model is an ordinary one of its family."""
    for layer in low_rank(model):
        layer.merge()
    for name, layer in _layers(model).items():
        model.set_submodule(name, layer.base_layer)
    model.requires_grad_(True)
    del model.peft_config


def _layers(model: PreTrainedModel) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {n: module for n, module in model.named_modules() if isinstance(module, LoraLayer)}
