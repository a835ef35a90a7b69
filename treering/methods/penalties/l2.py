"""Squared distance from weights that were.

    weight / 2 * sum (theta - anchor)^2

L2-SP (Li et al. 2018, arXiv 1802.01483) for the weights that training starts from. No data is
needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.penalties import quadratic
from treering.protocols import Learner


@dataclass
class L2:
    """`anchor` = "start", the weights that the run began with, or "phase", those of the last
    phase's end; until there is one nothing is held."""

    weight: float
    anchor: str = "phase"

    def __post_init__(self) -> None:
        quadratic.check(self.weight)
        if self.anchor not in ("start", "phase"):
            raise Invalid(f"penalties.anchor = {self.anchor!r}: must be 'start' or 'phase'")
        self._anchor: list[torch.Tensor] = []
        self._heard = 0  # how often of what is to be held: at the run's start, then of phase ends

    def __call__(self, learner: Learner) -> torch.Tensor:
        if self._heard < (1 if self.anchor == "start" else 2):
            return quadratic.none(learner)
        return quadratic.pull(learner, self.weight, self._anchor)

    def consolidate(self, learner: Learner, drawn: Callable[[int], Batch], at: int) -> float:
        if (self._heard == 0) == (self.anchor == "start"):
            quadratic.put(self.state(learner)["anchor"], learner)
        self._heard += 1
        return 0.0

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        self._anchor = self._anchor or quadratic.copies(learner)
        return {"anchor": self._anchor}

    def counters(self) -> dict[str, Any]:
        return {"heard": self._heard}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._heard = int(counters["heard"])
