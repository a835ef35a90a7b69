"""An outer optimizer, whose gradient is the way back from k inner updates.

    anchor <- theta;  k times: inner update;  theta <- anchor - rate * direction(anchor - theta)

`direction` is that of SGD with or without momentum, of Nesterov's SGD, or of Adam, as `torch.optim`
has them. SGD without momentum is Reptile, and Lookahead (Zhang 2019); Nesterov is the outer step of
DiLoCo (arXiv 2311.08105: momentum 0.9, rate 0.7) on one worker.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.descent import Descent
from treering.methods.updates.direction import Direction
from treering.methods.updates.window import Window
from treering.protocols import Learner, Metrics, Schedule, Update


@dataclass
class Outer:
    """There is an outer step after `every` calls of the inner update, without those that were
    skipped, and with `align` at each phase's end. `rate` is a number or a schedule of the run's
    steps, in a recipe a table as `[schedule]`. The inner optimizer is not touched.

    The anchor and the moments are fp32 and shaped like the weights; all lie on their device, or
    with `anchor = "cpu"` on the host. `start` names the phase with which the update begins. SGD at
    a rate of 1 without momentum is the inner update, bit for bit: nothing is kept.
    """

    every: int
    rate: float | Schedule
    optimizer: str = "sgd"
    momentum: float = 0.0  # of sgd and nesterov
    betas: tuple[float, ...] = (0.9, 0.999)  # of adam
    eps: float = 1e-8
    inner: Update = field(default_factory=Descent)
    anchor: str = "device"
    align: bool = False
    start: int = 0  # the phase's number; in a recipe its name
    reset_moments: bool = False  # of the inner optimizer, after each outer step

    def __post_init__(self) -> None:
        if not callable(self.rate) and not 0 <= self.rate < float("inf"):
            raise Invalid(f"update.rate = {self.rate}: must not be negative; 1 keeps the way gone")
        if self.rate == 0:
            warnings.warn("update.rate = 0 undoes every window: nothing is learned", stacklevel=2)
        self._window = Window(self.every, self.anchor)
        self._direction = Direction(self.optimizer, self.momentum, self.betas, self.eps)
        self._off = self.rate == 1 and not self._direction.moments
        self._moments: dict[str, list[torch.Tensor]] = {}
        self._steps = 0

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if batch.phase < self.start or self._off:
            return self.inner(learner, batch)
        self._window.opens(learner)
        metrics = self.inner(learner, batch)
        if not self._window.closes(metrics, now=self.align and batch.ends_phase):
            return metrics
        return replace(metrics, meta_flops=metrics.meta_flops + self._step(learner, batch))

    @torch.no_grad()
    def _step(self, learner: Learner, batch: Batch) -> float:
        """In place; what lies on the host is fetched one tensor after another. FLOPs."""
        rate = self.rate(batch.step) if callable(self.rate) else self.rate
        self._steps += 1
        names, state = self._direction.moments, self._own(learner)
        for i, weight in enumerate(learner.params):
            anchor = state["anchor"][i].to(weight.device)
            if not names:  # without a rounding more than Reptile's
                weight.copy_(torch.lerp(anchor, weight, rate))
                continue
            moments = [state[name][i].to(weight.device) for name in names]
            weight.copy_(anchor - rate * self._direction(anchor - weight, moments, self._steps))
            for name, moment in zip(names, moments, strict=True):
                state[name][i].copy_(moment)
        if self.reset_moments:
            learner.reset_optimizer()
        each = self._direction.flops if names else 3.0
        return each * sum(weight.numel() for weight in learner.params)

    def _own(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        anchor = self._window.anchor(learner)
        for name in self._direction.moments:
            if name not in self._moments:
                self._moments[name] = [torch.zeros_like(each) for each in anchor]
        return {"anchor": anchor, **self._moments}

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        inner = {f"inner.{name}": tensors for name, tensors in self.inner.state(learner).items()}
        return inner if self._off else self._own(learner) | inner

    def counters(self) -> dict[str, Any]:
        inner = self.inner.counters()
        return {"calls": self._window.counted(), "steps": self._steps, "inner": inner}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._window.calls = int(counters["calls"])
        self._steps = int(counters["steps"])
        self.inner.restore(counters["inner"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return self.inner.branches()
