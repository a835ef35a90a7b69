"""What `Reptile` and `Outer` share: a window of inner updates, and the weights before it."""

from __future__ import annotations

import torch

from treering.config import Invalid
from treering.protocols import Learner, Metrics


class Window:
    """`every` calls of an inner update, without those that were skipped, and the anchor: the
    weights before the first of them, on their device or on the "cpu" (`place`)."""

    def __init__(self, every: int, place: str) -> None:
        if every < 1:
            raise Invalid(f"update.every = {every}: must be at least 1 inner update")
        if place not in ("device", "cpu"):
            raise Invalid(f"update.anchor = {place!r}: must be 'device' or 'cpu'")
        self.calls = 0  # of the inner update since the last window ended
        self._every, self._place = every, place
        self._anchor: list[torch.Tensor] | None = None
        self._skipped: list[torch.Tensor] = []  # of these calls, those that may have been skipped

    @torch.no_grad()
    def opens(self, learner: Learner) -> None:
        """Said before each call."""
        if self.calls == 0:
            for weight, anchor in zip(learner.params, self.anchor(learner), strict=True):
                anchor.copy_(weight)

    def closes(self, metrics: Metrics, *, now: bool) -> bool:
        """Whether a call was the last of its window; `now`: it is, whatever was counted."""
        self.calls += 1
        self._skipped.append(metrics.skipped)
        if not now and (self.calls < self._every or self.counted() < self._every):
            return False
        self.calls = 0
        self._skipped = []
        return True

    def counted(self) -> int:
        """Calls of the window without those that changed nothing: waits for the device, once for a
        window."""
        if self._skipped:
            self.calls -= int(torch.stack(self._skipped).floor().sum())
            self._skipped = []
        return self.calls

    def anchor(self, learner: Learner) -> list[torch.Tensor]:
        """One tensor for each parameter; of the right shape also before there is one."""
        if self._anchor is None:
            device = torch.device("cpu") if self._place == "cpu" else None
            weights = [weight.detach() for weight in learner.params]
            self._anchor = [w.to(device or w.device, copy=True) for w in weights]
        return self._anchor
