"""Exponential moving averages of the weights, kept beside them and scored beside them.

    average <- average + (1 - decay) / (1 - decay^t) * (theta - average),  t = 1, 2, ...

The average is that of (1 - decay) * decay^(t - i) over theta_i, i = 1 to t, divided by the sum of
these weights, so that the model before training has no part in it (Polyak 1992; the correction is
Adam's). Training does not see the averages: the run is its inner update, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.descent import Descent
from treering.protocols import Learner, Metrics, Update


@dataclass
class Average:
    """One average in fp32 for each of `decays`; a decay of d looks back about 1 / (1 - d) calls of
    the inner update. At phase ends each is scored as the branch "average DECAY"."""

    decays: tuple[float, ...]
    inner: Update = field(default_factory=Descent)

    def __post_init__(self) -> None:
        if not self.decays:
            raise Invalid("update.decays = (): name at least one, as [0.99]")
        for decay in self.decays:
            if not 0 <= decay < 1:
                raise Invalid(f"update.decays = {decay}: each must be in [0, 1)")
        self.names = [f"average {decay:g}" for decay in self.decays]
        for i, name in enumerate(self.names):
            if name in self.names[:i]:
                raise Invalid(f"update.decays = {self.decays}: two are called {name}; keep one")
        self._averages: dict[float, list[torch.Tensor]] = {}
        self._calls = 0

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        metrics = self.inner(learner, batch)
        self._begin(learner)
        self._calls += 1
        self._take(learner)
        own = 3.0 * sum(weight.numel() for weight in learner.params) * len(self.decays)
        return replace(metrics, meta_flops=metrics.meta_flops + own)

    @torch.no_grad()
    def _take(self, learner: Learner) -> None:
        for decay, average in self._averages.items():
            share = (1 - decay) / (1 - decay**self._calls)
            torch._foreach_lerp_(average, [p.detach() for p in learner.params], share)

    def _begin(self, learner: Learner) -> None:
        for decay in self.decays:
            if decay not in self._averages:
                self._averages[decay] = [p.detach().clone() for p in learner.params]

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        self._begin(learner)
        own = dict(zip(self.names, self._averages.values(), strict=True))
        inner = self.inner.state(learner)
        return own | {f"inner.{name}": tensors for name, tensors in inner.items()}

    def counters(self) -> dict[str, Any]:
        return {"calls": self._calls, "inner": self.inner.counters()}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._calls = int(counters["calls"])
        self.inner.restore(counters["inner"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        own = dict(zip(self.names, self._averages.values(), strict=False))  # none at first
        return own | self.inner.branches()
