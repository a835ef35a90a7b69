"""A constant rate after a linear warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from treering.methods.schedules.warmup import check, rising
from treering.protocols import Schedule


@dataclass(frozen=True)
class Constant:
    """The rate stays at its peak: no decay to confound forgetting with.

    `warmup` is the share of the span in which the rate rises.
    """

    peak: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check(peak=self.peak, floor=1.0, warmup=self.warmup)

    def over(self, steps: int) -> Schedule:
        """The rate at each step of a span of `steps`."""
        warm = round(self.warmup * steps)

        def rate(step: int) -> float:
            return self.peak * (rising(step, warm) if step < warm else 1.0)

        return rate
