"""Memory aware synapses: weights to which the model's outputs are sensitive are held the firmer.

    weight / 2 * sum Omega * (theta - theta_k)^2,
    Omega = sum over phases of the mean over samples of |d ||logits||^2 / d theta|

Aljundi et al. 2018, arXiv 1711.09601, equations 2 to 4, whose lambda is half of `weight`. It
needs samples and no labels; of a sample the mean over its positions is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from treering.batch import Batch
from treering.methods.penalties import quadratic
from treering.protocols import Learner


@dataclass
class MAS:
    """Estimated after each phase by `samples` of its corpora, one backward pass each; before
    the first step by corpora that count as seen, where there are any."""

    weight: float
    samples: int = 256

    def __post_init__(self) -> None:
        quadratic.check(self.weight, self.samples)
        self._anchor: list[torch.Tensor] = []
        self._importance: list[torch.Tensor] = []
        self._holds, self._trace = False, 0.0

    def __call__(self, learner: Learner) -> torch.Tensor:
        if not self._holds:
            return quadratic.none(learner)
        return quadratic.pull(learner, self.weight, self._anchor, self._importance)

    def consolidate(self, learner: Learner, drawn: Callable[[int], Batch], at: int) -> float:
        self.state(learner)
        batch = drawn(self.samples)
        if not len(batch):
            return 0.0
        for gradient in learner.gradients(batch, squared_outputs, at):
            sizes = torch._foreach_abs(gradient)
            torch._foreach_add_(self._importance, sizes, alpha=1 / len(batch))
        quadratic.put(self._anchor, learner)
        self._trace = quadratic.trace(learner, self.weight, self._importance)
        self._holds = True
        return batch.predicted * learner.flops_per_token

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        if not self._anchor:
            self._anchor, self._importance = quadratic.copies(learner), quadratic.zeros(learner)
        return {"anchor": self._anchor, "importance": self._importance}

    def counters(self) -> dict[str, Any]:
        """`trace`: the weight times the sum of all importance."""
        return {"holds": self._holds, "trace": self._trace}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._holds, self._trace = bool(counters["holds"]), float(counters.get("trace", 0.0))


def squared_outputs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each row the mean over positions of the logits' squared norm, float32[n]."""
    return logits.square().sum(2).mean(1)
