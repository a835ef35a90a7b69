"""Parameter groups and the inner optimizer."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from treering import tables

Optimizer = torch.optim.AdamW | torch.optim.SGD


def build(own: Sequence[tuple[nn.Parameter, float]], wanted: tables.Optimizer) -> Optimizer:
    """Fused AdamW, or fused SGD without momentum, of parameters and what the rate of each is
    multiplied with. Weight decay is for matrices only.

    AdamW's state is made at once, not at the first step, so that a checkpoint can be loaded into
    it and a reset is a filling with zeros.
    """
    alike: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for param, rate in own:
        alike.setdefault((param.ndim >= 2, rate), []).append(param)
    groups = [
        {"params": found, "weight_decay": wanted.decay if matrices else 0.0, "multiplier": rate}
        for (matrices, rate), found in alike.items()
    ]
    if wanted.kind == "sgd":
        spread = any(isinstance(param, DTensor) for param, _ in own)  # for which none is fused
        return torch.optim.SGD(groups, lr=0.0, fused=not spread)
    betas = (wanted.betas[0], wanted.betas[1])
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=wanted.eps, fused=True)
    for param, _ in own:
        optimizer.state[param] = {
            "step": torch.zeros((), dtype=torch.float32, device=param.device),
            "exp_avg": torch.zeros_like(param, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(param, memory_format=torch.preserve_format),
        }
    return optimizer


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """The rate of the next step, multiplied for each group of parameters with its own."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def state(optimizer: Optimizer, params: Sequence[nn.Parameter]) -> dict[str, list[torch.Tensor]]:
    """The optimizer's own tensors by name, one for each parameter; load into them in place."""
    names = optimizer.state[params[0]] if params else {}
    return {name: [optimizer.state[param][name] for param in params] for name in names}


def step(optimizer: Optimizer, refused: torch.Tensor) -> None:
    """Step, but change nothing where `refused` is 1.0. A fused optimizer is told as by a gradient
    scaler, so that nobody waits for the device."""
    if optimizer.param_groups[0]["fused"]:
        optimizer.found_inf = refused  # type: ignore[union-attr]
        optimizer.step()
    elif not refused.item():
        optimizer.step()


def reset(optimizer: Optimizer, names: Container[str] | None = None) -> None:
    """Forget all moments and steps, as if the optimizer were new, or those of its state named."""
    for tensors in optimizer.state.values():
        for name, tensor in tensors.items():
            if names is None or name in names:
                tensor.zero_()
