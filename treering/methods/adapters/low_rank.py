"""The weights of low-rank layers beside frozen ones: drawn anew, measured, merged, taken away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from treering.methods.adapters.insertion import ONLY, Gated, layers
from treering.rng import key
from treering.spread import fill, whole


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
        for name, layer in layers(model).items()
    ]


def remove(model: PreTrainedModel) -> None:
    """Merge the layers and take them away, so that the model is an ordinary one of its family."""
    for layer in low_rank(model):
        layer.merge()
    for name, layer in layers(model).items():
        model.set_submodule(name, layer.base_layer)
    model.requires_grad_(True)
    del model.peft_config
