"""The root module as it is called: on its device, sharded, compiled, in the run's precision."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from transformers import PreTrainedModel

from treering import attention, fp8, tables
from treering.batch import Recorded
from treering.config import Invalid
from treering.mesh import Mesh
from treering.model import Root, blocks

Call = Callable[..., tuple[torch.Tensor, ...]]  # of Root's arguments


@dataclass(frozen=True)
class Forward:
    """The root module as it is called: compiled or not, in the run's precision, on its device.

    `rows` is the micro-batch: every call has exactly that many rows, so that shapes stay static.
    """

    root: Root
    call: Call
    mesh: Mesh
    dtype: torch.dtype | None  # of autocast; None is fp32 throughout
    rows: int

    def __call__(
        self,
        tokens: NDArray[np.int64],
        counted: int,
        counts: float | NDArray[np.float32] = 1.0,
        taught: NDArray[np.float32] | None = None,
        recorded: Recorded | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """int64[rows, length + 1] -> (the sum of counts * losses of the first `counted` rows, with
        gradient; loss of each of these in nats/token, float32[counted], without). counts
        float32[counted], or one number for all. `taught` float32[counted]: what each divergence
        from the teacher counts, or from what is `recorded`; None: it is not asked. With `recorded`
        come also ids and log-chances of now."""
        assert len(tokens) == self.rows
        device = self.mesh.device
        filled = np.zeros((1 if taught is None else 2, self.rows), np.float32)
        for row, given in zip(filled, (counts, taught), strict=False):
            row[:counted] = given
        arrays: list[NDArray[Any]] = [tokens, *filled]
        for found in (recorded.ids, recorded.logs) if recorded else ():
            none = np.zeros((self.rows - counted, *found.shape[1:]), found.dtype)
            arrays.append(np.concatenate([found, none]))
        tensors = [torch.from_numpy(a) for a in arrays]
        if device.type == "cuda":  # from memory that is not pinned a copy may wait for the device
            tensors = [tensor.pin_memory() for tensor in tensors]
        tensors = [tensor.to(device, non_blocking=True) for tensor in tensors]
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            total, *each = self.call(*tensors)
        return total, *(own[:counted] for own in each)

    def settle(self) -> None:
        """After calls without a backward pass: let the root go of the weights that it gathered.
        Else `model.parameters()` were these, and what is written meanwhile would not be seen."""
        if isinstance(self.root, FSDPModule):
            self.root.reshard()

    @contextmanager
    def lent(self) -> Iterator[PreTrainedModel]:
        """The model itself, for others to call without the root and with masks of their own; see
        `gathered`."""
        with self.gathered() as model, attention.theirs(model):
            yield model

    @contextmanager
    def gathered(self) -> Iterator[PreTrainedModel]:
        """The model, to be called without the root. Of one that is spread over ranks each call
        gathers the root's weights, and all ranks must make the same calls."""
        root = self.root
        if not isinstance(root, FSDPModule):
            yield root.model
            return
        hook = root.model.register_forward_pre_hook(lambda *_: root.unshard() and None)
        try:
            yield root.model
        finally:
            hook.remove()
            self.settle()

    def micro_batches(self, tokens: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], int]]:
        """This rank's rows cut into micro-batches, each with its number of true rows; what is left
        is filled up with copies of the first row, which get weight 0. Every rank has as many."""
        mine = tokens[self.mesh.rows]
        for start in range(0, self.mesh.most(len(tokens)), self.rows):
            part = mine[start : start + self.rows]
            filled = np.concatenate([part, np.repeat(tokens[:1], self.rows - len(part), axis=0)])
            yield filled, len(part)


def forward(root: Root, compute: tables.Compute, rows: int, mesh: Mesh) -> Forward:
    """Put the root module on its device, spread over the ranks, callable as the recipe says.

    Deterministic algorithms are a switch of the whole process in torch; it is set here.
    """
    on_cpu = mesh.device.type == "cpu"
    deterministic = on_cpu if compute.deterministic is None else compute.deterministic
    if deterministic and not on_cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)
    dtype = precision(compute.precision, mesh.device)
    if compute.precision == "fp8":
        fp8.check(mesh.device)
        fp8.convert(root.model)
    for layer in blocks(root.model) if compute.recompute != "none" else ():
        recompute(layer, selective=compute.recompute == "selective")
    call: Call = root
    if mesh.grid is None:
        root.to(mesh.device)
        call = torch.compile(root, dynamic=False) if compute.compile else root
    else:  # what gathers weights lies between the blocks, so each is a graph of its own
        layers = blocks(root.model)
        frozen = [] if root.teacher is None else blocks(root.teacher.model)
        for layer in (*layers, *frozen) if compute.compile else ():
            layer.compile(dynamic=False)
        if root.teacher is not None:
            mesh.shard(root.teacher, frozen, None, stays=True)
        mesh.shard(root, layers, dtype)
    return Forward(root, call, mesh, dtype, rows)


def recompute(layer: nn.Module, *, selective: bool) -> None:
    """Do the layer's forward pass again in the backward pass, all of it or all but what is KEPT.
    Its own forward is replaced, so that hooks, such as FSDP's, are called once."""
    once = layer.forward
    contexts = partial(create_selective_checkpoint_contexts, _kept)

    def forward(*args: Any, **named: Any) -> Any:
        if selective:
            return checkpoint(once, *args, use_reentrant=False, context_fn=contexts, **named)
        return checkpoint(once, *args, use_reentrant=False, **named)

    layer.forward = forward


def _kept(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
    """Products and attention are kept: the rest costs little to do again."""
    keep = operation in KEPT
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


aten = torch.ops.aten
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
}


def precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """Of autocast: bf16 (also around fp8), or None for fp32 throughout. Raises Invalid where a
    device has none."""
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:  # without AVX-512 BF16 or AMX the CPU emulates bf16, slower than fp32
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if wanted == "fp32" or (wanted == "auto" and not able):
        return None
    if device.type == "cuda" and not able:
        raise Invalid("compute.precision = 'bf16': this device has no bf16; use 'fp32' or 'auto'")
    return torch.bfloat16


def name(wanted: str, dtype: torch.dtype | None) -> str:
    """What `precision` made of a wish, as records have it: fp32, bf16 or fp8."""
    return "fp8" if wanted == "fp8" else "fp32" if dtype is None else "bf16"
