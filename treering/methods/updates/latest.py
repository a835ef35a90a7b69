"""Averages of the last k snapshots of the weights (LAWA, arXiv 2209.14981), scored beside them.

    sma             1 / k each: the default; where the rate stays constant, it replaces its decay
                    and leaves the last data their weight (arXiv 2511.18903)
    wma_linear      proportional to 1, 2, ..., k from the oldest to the newest
    ema_recursive   M <- alpha * snapshot + (1 - alpha) * M, begun with the oldest
    ema_geometric   proportional to alpha^0, alpha^1, ... from the newest to the oldest

That paper's EMA (alpha = 0.2) is described in both ways; so both are here. Training does not see
the averages: the run is its inner update, bit for bit. An average over all of it is `Average`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.descent import Descent
from treering.protocols import Learner, Metrics, Update

SHARES: dict[str, Callable[[int, int, float], float]] = {  # of the i-th of k, from the oldest
    "sma": lambda i, k, alpha: 1.0,
    "wma_linear": lambda i, k, alpha: i + 1.0,
    "ema_recursive": lambda i, k, alpha: (alpha if i else 1.0) * (1 - alpha) ** (k - 1 - i),
    "ema_geometric": lambda i, k, alpha: alpha ** (k - 1 - i),
}


def shares(kind: str, k: int, alpha: float) -> list[float]:
    """The weights of k snapshots in an average, from the oldest to the newest; their sum is 1."""
    found = [SHARES[kind](i, k, alpha) for i in range(k)]
    return [share / sum(found) for share in found]


@dataclass
class Latest:
    """A snapshot every `every` calls of the inner update, of which the last `last` are kept: as
    many fp32 copies of the weights, on their device or with `snapshots = "cpu"` on the host, and in
    every checkpoint. At phase ends each of `averages` is scored as the branch "KIND LAST", of what
    snapshots there are; meanwhile each takes one copy more on the device. Where `every` divides the
    steps up to the end of a phase, its last weights are the newest snapshot."""

    every: int
    last: int = 6
    averages: tuple[str, ...] = ("sma",)
    alpha: float = 0.2  # of the exponential ones
    inner: Update = field(default_factory=Descent)
    snapshots: str = "device"

    def __post_init__(self) -> None:
        for key, number in (("every", self.every), ("last", self.last)):
            if number < 1:
                raise Invalid(f"update.{key} = {number}: must be at least 1")
        if not self.averages or not all(kind in SHARES for kind in self.averages):
            raise Invalid(f"update.averages = {self.averages}: some of {tuple(SHARES)}")
        if not 0 < self.alpha < 1:
            raise Invalid(f"update.alpha = {self.alpha}: must lie between 0 and 1")
        if self.snapshots not in ("device", "cpu"):
            raise Invalid(f"update.snapshots = {self.snapshots!r}: must be 'device' or 'cpu'")
        self.names = [f"{kind} {self.last}" for kind in self.averages]
        self._ring: list[list[torch.Tensor]] = []
        self._devices: list[torch.device] = []
        self._calls = 0

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        metrics = self.inner(learner, batch)
        self._calls += 1
        if self._calls % self.every == 0:
            self._take(learner)
        return metrics

    @torch.no_grad()
    def _take(self, learner: Learner) -> None:
        place = self._begun(learner)[(self._calls // self.every - 1) % self.last]
        for snapshot, weight in zip(place, learner.params, strict=True):
            snapshot.copy_(weight)

    def _begun(self, learner: Learner) -> list[list[torch.Tensor]]:
        if not self._ring:
            weights = [weight.detach() for weight in learner.params]
            self._devices = [weight.device for weight in weights]
            host = torch.device("cpu") if self.snapshots == "cpu" else None
            for _ in range(self.last):
                self._ring.append([w.to(host or w.device, copy=True) for w in weights])
        return self._ring

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        own = {f"snapshot {i}": tensors for i, tensors in enumerate(self._begun(learner))}
        return own | {f"inner.{name}": each for name, each in self.inner.state(learner).items()}

    def counters(self) -> dict[str, Any]:
        return {"calls": self._calls, "inner": self.inner.counters()}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._calls = int(counters["calls"])
        self.inner.restore(counters["inner"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        taken = self._calls // self.every
        latest = [self._ring[i % self.last] for i in range(max(0, taken - self.last), taken)]
        own = {f"{kind} {self.last}": self._mean(kind, latest) for kind in self.averages if latest}
        return own | self.inner.branches()

    @torch.no_grad()
    def _mean(self, kind: str, latest: list[list[torch.Tensor]]) -> list[torch.Tensor]:
        """Interpolated from the oldest on, so that the mean of equals is exactly these."""
        first, *others = shares(kind, len(latest), self.alpha)
        means = []
        for device, oldest, *later in zip(self._devices, *latest, strict=True):
            mean, total = oldest.to(device, copy=True), first
            for snapshot, share in zip(later, others, strict=True):
                total += share
                mean.lerp_(snapshot.to(device), share / total)
            means.append(mean)
        return means
