"""An update around another that keeps nothing of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from treering.protocols import Learner, Update


class Wrapping:
    """What it saves, and the branches beside it, are its inner update's; it says how a batch is
    learned from."""

    inner: Update

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        return self.inner.state(learner)

    def counters(self) -> dict[str, Any]:
        return self.inner.counters()

    def restore(self, counters: Mapping[str, Any]) -> None:
        self.inner.restore(counters)

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return self.inner.branches()
