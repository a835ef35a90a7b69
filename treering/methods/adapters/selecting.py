"""The proximal step of an adapter's gates: those that earn little become 0."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from treering.batch import Batch
from treering.methods.adapters.low_rank import LowRank
from treering.protocols import Learner, Metrics, Update
from treering.spread import fill, whole
from treering.wrapping import Wrapping


@dataclass
class Selecting(Wrapping):
    """The inner update, then the proximal step of the gates, unless the step was skipped."""

    inner: Update
    layers: Sequence[LowRank]
    kappa: Callable[[float, int, int], float]  # of a rate, a step of a phase, and its steps
    steps: Sequence[int]

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        metrics = self.inner(learner, batch)
        begun = [0, *accumulate(self.steps)][batch.phase]
        kappa = self.kappa(learner.rate, batch.step - begun, self.steps[batch.phase])
        with torch.no_grad():
            for layer in self.layers if kappa else ():
                assert layer.gate is not None
                shrink(layer.gate, kappa * (1 - metrics.skipped))
        return metrics


def shrink(gate: torch.Tensor, kappa: torch.Tensor) -> None:
    """The soft threshold, in place."""
    gates = whole(gate)
    fill(gate, gates.sign() * (gates.abs() - kappa).clamp(min=0))
