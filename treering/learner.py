"""A model and its two verbs, backward and apply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import PreTrainedModel

from treering import groups, tables
from treering import optimizer as inner
from treering.batch import Batch
from treering.forward import Forward
from treering.guard import Guard
from treering.model import matrices
from treering.protocols import Applied, Known, Metrics, Objective, Penalty, PerRow, Update
from treering.rng import key
from treering.roles import taught_rows, weighted
from treering.spread import whole


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
        objective: tables.Objective | None = None,
        penalties: Sequence[Penalty] = (),
        flops_per_token: float,
    ) -> None:
        self.forward = forward
        self._objective = objective or tables.Objective()
        self.penalties = penalties
        every, found = forward.root.model.named_parameters(), matrices(forward.root.model)
        trained = {name: param for name, param in every if param.requires_grad}
        self.names, self.params = list(trained), list(trained.values())
        self.matrices = {name: found[name] for name in self.names if name in found}
        teacher = forward.root.teacher if self._objective.teacher.from_ == "phase" else None
        copies = {} if teacher is None else dict(teacher.model.named_parameters())
        self.taught = [copies[name] for name in self.names if name in copies]
        rates = groups.rates(forward.root.model, optimizer.groups)
        by = dict(zip(forward.root.model.parameters(), rates, strict=True))
        self.optimizer = inner.build([(param, by[param]) for param in self.params], optimizer)
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
        inner.set_rate(self.optimizer, rate)

    def backward(self, batch: Batch) -> Metrics:
        """Add the gradient of the mean loss over the batch's rows, weighted by their roles,
        micro-batch by micro-batch.

        Losses are summed over this rank's rows and divided by the count of the whole batch.
        """
        return self._backward(batch, self._objective)

    def _backward(self, batch: Batch, objective: tables.Objective) -> Metrics:
        forward = self.forward
        forward.root.train()
        recorded = batch.recorded
        counts, taught = weighted(objective, batch), taught_rows(objective, batch)
        kept, asked, together = [], 0, forward.rows * forward.mesh.world
        for at, (tokens, rows) in enumerate(forward.micro_batches(batch.tokens)):
            part = slice(at * together, (at + 1) * together)  # the rows of all ranks' calls
            asks, mine = recorded or taught[part].any(), forward.mesh.rows
            total, *each = forward(
                tokens, rows, counts[part][mine],
                taught[part][mine] if asks else None,
                recorded[part][mine] if recorded else None,
            )  # fmt: skip
            total.backward()  # type: ignore[no-untyped-call]
            kept.append(each)
            asked += bool(asks) * len(taught[part])
        losses, *predictions = (torch.cat(found) for found in zip(*kept, strict=True))
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
            training_flops=batch.predicted * self.flops_per_token + self._teaching(batch, asked),
            predictions=predictions or None,
        )

    def _teaching(self, batch: Batch, rows: int) -> float:
        """FLOPs of asking the teacher about so many rows."""
        teacher = self.forward.root.teacher
        return 0.0 if teacher is None else rows * (batch.tokens.shape[1] - 1) * teacher.flops

    def apply(self) -> Applied:
        """Add the penalties, clip by the global norm, step unless the guard refuses, clear the
        gradients."""
        held = [penalty(self) for penalty in self.penalties]
        norm = nn.utils.get_total_norm([p.grad for p in self.params if p.grad is not None])
        if self._clip:
            nn.utils.clip_grads_with_norm_(self.params, self._clip, norm)
        norm = whole(norm)
        refused = self.guard.refuses(self._loss, norm)
        inner.step(self.optimizer, refused)
        self.optimizer.zero_grad(set_to_none=True)
        return Applied(norm, refused, torch.stack(held).sum() if held else None)

    def gradient(self, batch: Batch) -> list[torch.Tensor]:
        """The gradient of the batch's mean loss, z-loss with it, but without weights by role or a
        teacher: one tensor for each parameter; nothing is kept of it. Only between steps, when no
        gradient waits to be applied."""
        self._backward(batch, tables.Objective())
        return self.take_gradient()

    def waiting_gradient(self) -> list[torch.Tensor]:
        """What `backward` added up, one tensor for each parameter: to be changed in place before
        `apply`. Zeros of their own where a weight has no part in the loss."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]

    def take_gradient(self) -> list[torch.Tensor]:
        """The same, taken away: nothing is left to apply."""
        found = self.waiting_gradient()
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def gradients(self, batch: Batch, of: PerRow, at: int) -> Iterator[list[torch.Tensor]]:
        """Of each row of the batch by itself the gradient of `of`, without dropout; random numbers
        are those of the key `at` and the row. Between steps, as `gradient`. Every rank makes each
        row's call, all but one for nothing: the sum over ranks is then that row's."""
        root = self.forward.root
        single, given = replace(self.forward, call=root, rows=1), root.objective
        root.eval()
        for row in range(len(batch)):
            torch.manual_seed(key(at, row) % 2**63)
            root.objective = PerRowObjective(given, of)
            with torch.compiler.set_stance("force_eager"):
                for tokens, rows in single.micro_batches(batch.tokens[row : row + 1]):
                    single(tokens, rows)[0].backward()  # type: ignore[no-untyped-call]
            root.objective = given
            yield [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
            self.optimizer.zero_grad(set_to_none=True)

    def dot(self, one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> torch.Tensor:
        """The inner product of two lists of tensors shaped like the parameters, float64[]."""
        return self.forward.mesh.dot(zip(one, other, strict=True))

    @contextmanager
    def standing_in(self, weights: Sequence[torch.Tensor]) -> Iterator[None]:
        """Other weights in the place of the trained ones for a while, to be scored or exported."""
        kept = [param.detach().clone() for param in self.params]
        self.put(weights)
        try:
            yield
        finally:
            self.put(kept)

    @torch.no_grad()
    def put(self, weights: Sequence[torch.Tensor]) -> None:
        """Write over the trained weights, in place."""
        for param, weight in zip(self.params, weights, strict=True):
            param.copy_(weight)

    def reset_optimizer(self, *, momentum_alone: bool = False) -> None:
        """Forget the optimizer's moments and steps, or its first moment alone."""
        inner.reset(self.optimizer, ("exp_avg",) if momentum_alone else None)

    def remember(self) -> None:
        """Between phases: a teacher of the last phase's end is what the model is now."""
        if self.forward.root.teacher is None or not self.taught:
            return
        self.forward.root.teacher.settle()
        with torch.no_grad():
            for known, param in zip(self.taught, self.params, strict=True):
                known.copy_(param)

    def state(self) -> dict[str, list[torch.Tensor]]:
        """Weights and optimizer state, one tensor for each parameter; load into them in place."""
        moments = inner.state(self.optimizer, self.params)
        weights = {"weights": [param.detach() for param in self.params]}
        if self.taught:
            weights["teacher"] = [param.detach() for param in self.taught]
        return weights | {f"optimizer.{name}": tensors for name, tensors in moments.items()}


@dataclass(frozen=True)
class PerRowObjective:
    """A function of a row's predictions in the place of its loss."""

    given: Objective
    of: PerRow

    def __call__(
        self,
        model: PreTrainedModel,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        known: Known | None = None,
        taught: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        values = self.of(self.logits(model, tokens), tokens[:, 1:])
        return (counts * values).sum(), values.detach()

    def logits(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        return self.given.logits(model, tokens)


def tensors(learner: Learner, update: Update) -> dict[str, torch.Tensor]:
    """All that learns, by name and parameter: weights/NAME, optimizer.exp_avg/NAME,
    update.anchor/NAME, penalty.0.anchor/NAME; and what the guard remembers, guard/NAME. They are
    the tensors themselves; load into them in place."""
    guard = {f"guard/{name}": tensor for name, tensor in learner.guard.state.items()}
    own = {f"update.{kind}": found for kind, found in update.state(learner).items()}
    for i, penalty in enumerate(learner.penalties):
        own |= {f"penalty.{i}.{kind}": found for kind, found in penalty.state(learner).items()}
    return guard | {
        f"{kind}/{name}": tensor
        for kind, found in (learner.state() | own).items()
        for name, tensor in zip(learner.names, found, strict=True)
    }
