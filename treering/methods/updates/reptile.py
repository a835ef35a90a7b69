"""Reptile: after every k inner updates, keep only a share of the way gone.

    anchor <- theta;  k times: inner update;  theta <- anchor + rate * (theta - anchor)

With replay around it this is MER at scale (arXiv 2508.01908, Algorithm 2); nested, it is
Riemer's MER (ICLR 2019, Algorithm 1, whose s batches of one example are s examples here, as the
stream repeats none); without replay it is Lookahead (Zhang 2019).
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
from treering.methods.updates.window import Window
from treering.protocols import Learner, Metrics, Update


@dataclass
class Reptile:
    """`every` counts calls of the inner update, without those that were skipped. The anchor is the
    weights before the first of them, on the weights' device or, at the price of two copies per
    meta-update, on the host; it is taken anew each time, because an outer Reptile may have moved
    the weights since. `align` adds a meta-update at each phase's end. `start` names the phase with
    which the update begins; until then it is its inner update. `reset_moments` has the inner
    optimizer begin anew after each meta-update; by default it goes on, as in the paper's code.

    What is interpolated is `learner.params`, the fp32 weights that the optimizer owns: any other
    copy would be overwritten by the optimizer's next step. A rate of 1 is the inner update, bit
    for bit: no arithmetic is done and no anchor kept.
    """

    every: int
    rate: float
    inner: Update = field(default_factory=Descent)
    anchor: str = "device"
    align: bool = False
    start: int = 0  # the phase's number; in a recipe its name
    reset_moments: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise Invalid(f"update.rate = {self.rate}: must be in [0, 1]; 1 is plain training")
        if self.rate == 0:
            warnings.warn("update.rate = 0 undoes every window: nothing is learned", stacklevel=2)
        self._window = Window(self.every, self.anchor)

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if batch.phase < self.start or self.rate == 1:
            return self.inner(learner, batch)
        self._window.opens(learner)
        metrics = self.inner(learner, batch)
        if not self._window.closes(metrics, now=self.align and batch.ends_phase):
            return metrics
        return replace(metrics, meta_flops=metrics.meta_flops + self._meta_update(learner))

    @torch.no_grad()
    def _meta_update(self, learner: Learner) -> float:
        """Interpolate in place, so that the optimizer goes on with the same tensors. FLOPs."""
        for weight, anchor in zip(learner.params, self._window.anchor(learner), strict=True):
            weight.copy_(torch.lerp(anchor.to(weight.device), weight, self.rate))
        if self.reset_moments:
            learner.reset_optimizer()
        return 3.0 * sum(weight.numel() for weight in learner.params)

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        """The anchors, one tensor for each parameter; of the right shape also before there is one,
        so that a checkpoint can be loaded into them."""
        inner = {f"inner.{name}": tensors for name, tensors in self.inner.state(learner).items()}
        if self.rate == 1:
            return inner
        return {"anchor": self._window.anchor(learner), **inner}

    def counters(self) -> dict[str, Any]:
        return {"calls": self._window.counted(), "inner": self.inner.counters()}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._window.calls = int(counters["calls"])
        self.inner.restore(counters["inner"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return self.inner.branches()
