"""A model and its two verbs, backward and apply."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from treering import config
from treering import optimizer as inner
from treering.batch import Batch
from treering.config import Invalid
from treering.model import Root
from treering.protocols import Metrics, Update


@dataclass(frozen=True)
class Forward:
    """The root module as it is called: compiled or not, in the run's precision, on its device.

    `rows` is the micro-batch: every call has exactly that many rows, so that shapes stay static.
    """

    root: Root
    call: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    dtype: torch.dtype | None  # of autocast; None is fp32 throughout
    rows: int

    def __call__(self, tokens: NDArray[np.int64]) -> torch.Tensor:
        """int64[rows, length + 1] -> loss of each row in nats/token, float32[rows]."""
        assert len(tokens) == self.rows
        on_device = torch.from_numpy(tokens).to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.call(on_device)

    def micro_batches(self, tokens: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int]]:
        """Rows cut into micro-batches, each with its number of true rows; the last is filled up
        with copies of its first row, which get weight 0."""
        parts = []
        for start in range(0, len(tokens), self.rows):
            part = tokens[start : start + self.rows]
            filled = np.concatenate([part, np.repeat(part[:1], self.rows - len(part), axis=0)])
            parts.append((filled, len(part)))
        return parts


def forward(root: Root, compute: config.Compute, rows: int) -> Forward:
    """Put the root module on the machine's device and make it callable as the recipe says.

    Deterministic algorithms are a switch of the whole process in torch; it is set here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = device.type == "cpu"
    deterministic = on_cpu if compute.deterministic is None else compute.deterministic
    if deterministic and not on_cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic)
    root.to(device)
    call = torch.compile(root, dynamic=False) if compute.compile else root
    return Forward(root, call, device, _precision(compute.precision, device), rows)


def _precision(wanted: str, device: torch.device) -> torch.dtype | None:
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
    else:  # without AVX-512 BF16 or AMX the CPU emulates bf16, slower than fp32
        able = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if wanted == "fp32" or (wanted == "auto" and not able):
        return None
    if device.type == "cuda" and not able:
        raise Invalid("compute.precision = 'bf16': this device has no bf16; use 'fp32' or 'auto'")
    return torch.bfloat16


class Learner:
    """A forward pass and the optimizer of its weights.

    `params` is taken once: the fp32 tensors that the optimizer owns and updates in place.
    """

    def __init__(
        self, forward: Forward, optimizer: config.Optimizer, *, flops_per_token: float
    ) -> None:
        self.forward = forward
        self.names = [name for name, _ in forward.root.model.named_parameters()]
        self.params: list[nn.Parameter] = list(forward.root.model.parameters())
        self.optimizer = inner.build(self.params, optimizer)
        self._clip = optimizer.clip
        self.flops_per_token = flops_per_token

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next `apply`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, batch: Batch) -> Metrics:
        """Add the gradient of the mean loss over the batch's rows, micro-batch by micro-batch.

        Losses are summed over rows and divided by the count of the whole batch.
        """
        self.forward.root.train()
        kept = []
        for tokens, rows in self.forward.micro_batches(batch.tokens):
            losses = self.forward(tokens)[:rows]
            (losses.sum() / len(batch)).backward()  # type: ignore[no-untyped-call]
            kept.append(losses.detach())
        losses = torch.cat(kept)
        fresh = int((~batch.replayed).sum())  # fresh rows come first
        return Metrics(
            loss=losses.mean(),
            fresh_loss=losses[:fresh].mean() if fresh else self._nan(),
            replayed_loss=losses[fresh:].mean() if fresh < len(batch) else self._nan(),
            grad_norm=self._nan(),
            training_flops=batch.predicted * self.flops_per_token,
        )

    def apply(self) -> torch.Tensor:
        """Clip by the global norm, step, clear the gradients. Returns the norm before clipping."""
        norm = nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        if self._clip:
            nn.utils.clip_grads_with_norm_(self.params, self._clip, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def gradient(self, batch: Batch) -> list[torch.Tensor]:
        """The gradient of the batch's mean loss, one tensor for each parameter; nothing is kept of
        it. Only between steps, when no gradient waits to be applied."""
        self.backward(batch)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def dot(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inner product of two lists of tensors shaped like the parameters, float64[]."""
        pairs = zip(one, other, strict=True)
        return torch.stack([torch.sum(a.double() * b.double()) for a, b in pairs]).sum()

    @contextmanager
    def standing_in(self, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        """Other weights in the place of the trained ones for a while, to be scored or exported."""
        kept = [param.detach().clone() for param in self.params]
        self._put(weights)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, weights: Sequence[torch.Tensor]) -> None:
        for param, weight in zip(self.params, weights, strict=True):
            param.copy_(weight)

    def reset_optimizer(self) -> None:
        """Forget the optimizer's moments."""
        inner.reset(self.optimizer)

    def state(self) -> dict[str, list[torch.Tensor]]:
        """Weights and optimizer state, one tensor for each parameter; load into them in place."""
        moments = inner.state(self.optimizer, self.params)
        weights = {"weights": [param.detach() for param in self.params]}
        return weights | {f"optimizer.{name}": tensors for name, tensors in moments.items()}

    def _nan(self) -> torch.Tensor:
        return torch.full((), math.nan, device=self.forward.device)


def tensors(learner: Learner, update: Update) -> dict[str, torch.Tensor]:
    """All that learns, by name and parameter: weights/NAME, optimizer.exp_avg/NAME,
    update.anchor/NAME. They are the tensors themselves; load into them in place."""
    own = {f"update.{kind}": found for kind, found in update.state(learner).items()}
    return {
        f"{kind}/{name}": tensor
        for kind, found in (learner.state() | own).items()
        for name, tensor in zip(learner.names, found, strict=True)
    }
