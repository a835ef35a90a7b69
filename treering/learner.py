"""A model and its two verbs, backward and apply."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from treering import optimizer as inner
from treering import tables
from treering.batch import Batch
from treering.forward import Forward
from treering.guard import Guard
from treering.mesh import whole
from treering.model import matrices
from treering.protocols import Applied, Metrics, Update


class Learner:
    """A forward pass and the optimizer of its weights.

    `params` is taken once: the fp32 tensors that the optimizer owns and updates in place, all of
    the model's that are not frozen.
    """

    def __init__(
        self,
        forward: Forward,
        optimizer: tables.Optimizer,
        guard: tables.Guard,
        *,
        flops_per_token: float,
    ) -> None:
        self.forward = forward
        trained = [(n, p) for n, p in forward.root.model.named_parameters() if p.requires_grad]
        self.names = [name for name, _ in trained]
        self.params: list[nn.Parameter] = [param for _, param in trained]
        found = matrices(forward.root.model)
        self.matrices = {name: found[name] for name in self.names if name in found}
        self.optimizer = inner.build(self.params, optimizer)
        self._clip = optimizer.clip
        self.guard = Guard(guard, forward.mesh.device)
        self._loss = torch.zeros((), device=forward.mesh.device)  # of the last batch
        self.flops_per_token = flops_per_token
        self.rate = 0.0

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """`params` by their names in the model."""
        return dict(zip(self.names, self.params, strict=True))

    def set_rate(self, rate: float) -> None:
        """The learning rate of the next `apply`."""
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def backward(self, batch: Batch) -> Metrics:
        """Add the gradient of the mean loss over the batch's rows, micro-batch by micro-batch.

        Losses are summed over this rank's rows and divided by the count of the whole batch.
        """
        forward = self.forward
        forward.root.train()
        kept = []
        for tokens, rows in forward.micro_batches(batch.tokens):
            total, losses = forward(tokens, rows, 1 / len(batch))
            total.backward()  # type: ignore[no-untyped-call]
            kept.append(losses)
        losses = torch.cat(kept)
        own = int((~batch.replayed[forward.mesh.rows]).sum())  # fresh rows come first
        sums = forward.mesh.sum(torch.stack([losses[:own].sum(), losses[own:].sum()]))
        replayed = int(batch.replayed.sum())
        self.guard.begin(batch.phase)
        self._loss = sums.sum() / len(batch)
        return Metrics(
            loss=self._loss,
            fresh_loss=sums[0] / (len(batch) - replayed),  # NaN where there are none
            replayed_loss=sums[1] / replayed,
            grad_norm=torch.full_like(sums[0], math.nan),
            skipped=torch.full_like(sums[0], math.nan),
            training_flops=batch.predicted * self.flops_per_token,
        )

    def apply(self) -> Applied:
        """Clip by the global norm, step unless the guard refuses, clear the gradients."""
        norm = nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        if self._clip:
            nn.utils.clip_grads_with_norm_(self.params, self._clip, norm)
        norm = whole(norm)
        refused = self.guard.refuses(self._loss, norm)
        inner.step(self.optimizer, refused)
        self.optimizer.zero_grad(set_to_none=True)
        return Applied(norm, refused)

    def gradient(self, batch: Batch) -> list[torch.Tensor]:
        """The gradient of the batch's mean loss, one tensor for each parameter; nothing is kept of
        it. Only between steps, when no gradient waits to be applied."""
        self.backward(batch)
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def dot(self, one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inner product of two lists of tensors shaped like the parameters, float64[]."""
        return self.forward.mesh.dot(zip(one, other, strict=True))

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


def tensors(learner: Learner, update: Update) -> dict[str, torch.Tensor]:
    """All that learns, by name and parameter: weights/NAME, optimizer.exp_avg/NAME,
    update.anchor/NAME; and what the guard remembers, guard/NAME. They are the tensors themselves;
    load into them in place."""
    guard = {f"guard/{name}": tensor for name, tensor in learner.guard.state.items()}
    own = {f"update.{kind}": found for kind, found in update.state(learner).items()}
    return guard | {
        f"{kind}/{name}": tensor
        for kind, found in (learner.state() | own).items()
        for name, tensor in zip(learner.names, found, strict=True)
    }
