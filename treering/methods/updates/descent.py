"""Plain training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from treering.batch import Batch
from treering.protocols import Learner, Metrics


@dataclass(frozen=True)
class Descent:
    """One gradient of the whole batch, one step of the optimizer."""

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        metrics = learner.backward(batch)
        return metrics.stepped(learner.apply())

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        return {}

    def counters(self) -> dict[str, Any]:
        return {}

    def restore(self, counters: Mapping[str, Any]) -> None:
        pass

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return {}
