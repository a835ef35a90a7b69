"""Updates around another: one that keeps nothing of its own, and the names of branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from treering.config import Invalid
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


def alone(names: list[str], inner: Any) -> list[str]:
    """Names of branches. Raises Invalid where an update further in has one of them, too."""
    while inner is not None:
        for name in getattr(inner, "names", ()):
            if name in names:
                raise Invalid(f"update.inner: has a branch called {name!r}, too; keep one of them")
        inner = getattr(inner, "inner", None)
    return names
