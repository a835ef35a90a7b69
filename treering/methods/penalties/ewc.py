"""Elastic weight consolidation: weights that mattered to what was learned are held the firmer.

    weight / 2 * sum over phases k of F_k * (theta - theta_k)^2         (Kirkpatrick et al. 2017,
                                                                         arXiv 1612.00796, eq. 3)
    weight / 2 * F~_k * (theta - theta_k)^2,  F~_k = gamma * F~_(k-1) + F_k        (online: Schwarz
                                                                   et al. 2018, arXiv 1805.06370)

The sum of the first is one quadratic, with the F_k's sum and the theta_k's mean by them, and a
constant: so any number of phases takes two copies of the weights.

F is the diagonal of the Fisher information of a predicted token: the mean over samples of length *
g^2, where g is the gradient of one sample's mean loss. The square of a batch's mean gradient is not
that, and understates it by about the batch's size (van de Ven 2025, arXiv 2502.11756): Avalanche's
does so; TRACE sums squares while the weights move, the penalty's own among them. The exact F, a
backward pass for each token of the vocabulary at each position, is out of reach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.penalties import quadratic
from treering.protocols import Learner


@dataclass
class EWC:
    """Estimated after each phase by `samples` of its corpora, one backward pass each, with
    labels drawn from the model at each position (`fisher` = "sample": unbiased, as the scores of
    positions have mean 0 and do not correlate) or with those of the text ("empirical": what matters
    to the loss that is left, and not the Fisher information). Before the first step by corpora that
    count as seen, where there are any."""

    weight: float
    samples: int = 256
    fisher: str = "sample"
    online: bool = False
    gamma: float = 1.0

    def __post_init__(self) -> None:
        quadratic.check(self.weight, self.samples)
        if self.fisher not in ("sample", "empirical"):
            raise Invalid(f"penalties.fisher = {self.fisher!r}: must be 'sample' or 'empirical'")
        if not 0 <= self.gamma <= 1 or (self.gamma < 1 and not self.online):
            raise Invalid(f"penalties.gamma = {self.gamma}: must be in [0, 1], and 1 if not online")
        self._centre: list[torch.Tensor] = []
        self._importance: list[torch.Tensor] = []
        self._holds = False
        self._least = 0.0  # of the sum over phases, which is not 0 anywhere
        self._trace = 0.0

    def __call__(self, learner: Learner) -> torch.Tensor:
        if not self._holds:
            return quadratic.none(learner)
        value = quadratic.pull(learner, self.weight, self._centre, self._importance)
        return value + self.weight / 2 * self._least

    def consolidate(self, learner: Learner, drawn: Callable[[int], Batch], at: int) -> float:
        self.state(learner)
        batch = drawn(self.samples)
        if not len(batch):
            return 0.0
        self._hold(learner, self._fisher(learner, batch, at))
        self._trace = quadratic.trace(learner, self.weight, self._importance)
        return batch.predicted * learner.flops_per_token

    def _fisher(self, learner: Learner, batch: Batch, at: int) -> list[torch.Tensor]:
        of = own_labels if self.fisher == "sample" else true_labels
        found, share = quadratic.zeros(learner), batch.predicted / len(batch) ** 2
        for gradient in learner.gradients(batch, of, at):
            torch._foreach_addcmul_(found, gradient, gradient, share)
        return found

    @torch.no_grad()
    def _hold(self, learner: Learner, fisher: list[torch.Tensor]) -> None:
        self._holds = True
        if self.online:
            torch._foreach_mul_(self._importance, self.gamma)
            torch._foreach_add_(self._importance, fisher)
            return quadratic.put(self._centre, learner)
        each = zip(learner.params, self._centre, self._importance, fisher, strict=True)
        for param, centre, importance, new in each:
            share = torch.nan_to_num(new / (importance + new))  # 0 where nothing matters
            away = param.detach() - centre
            self._least += float(learner.dot([importance * share], [away * away]))
            centre.lerp_(param.detach(), share)
            importance.add_(new)

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        if not self._centre:
            self._centre, self._importance = quadratic.copies(learner), quadratic.zeros(learner)
        return {"centre": self._centre, "importance": self._importance}

    def counters(self) -> dict[str, Any]:
        """`trace`: the weight times the trace of F, which compares models and data sets."""
        return {"holds": self._holds, "least": self._least, "trace": self._trace}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._holds, self._least = bool(counters["holds"]), float(counters["least"])
        self._trace = float(counters.get("trace", 0.0))


def true_labels(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean loss of each row, float32[n]."""
    losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view(targets.shape).mean(1)


def own_labels(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As `true_labels`, for labels that the model draws."""
    chances = logits.detach().softmax(-1).flatten(0, 1)
    return true_labels(logits, torch.multinomial(chances, 1).view(targets.shape))
