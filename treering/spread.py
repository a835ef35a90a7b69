"""Tensors that lie on several ranks, each of which has a part of them."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def materialize(module: nn.Module, device: torch.device) -> None:
    """Memory, not yet values, for parameters on the meta device; those that are one stay one."""
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, param in part._parameters.items():
            if param is not None and param.is_meta:
                if id(param) not in made:
                    empty = torch.empty_like(param, device=device)
                    made[id(param)] = nn.Parameter(empty, requires_grad=param.requires_grad)
                part._parameters[name] = made[id(param)]


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies on this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from all ranks, which all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Write a value, whole and the same on all ranks, into a tensor that may be spread."""
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)
