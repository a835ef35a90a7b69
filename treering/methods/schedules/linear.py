"""Linear decay after a linear warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from treering.methods.schedules.decays import linear
from treering.methods.schedules.warmup import check, rising
from treering.protocols import Schedule


@dataclass(frozen=True)
class Linear:
    """From the peak to `floor` times the peak.

    `warmup` is the share of the span in which the rate rises.
    """

    peak: float
    floor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check(peak=self.peak, floor=self.floor, warmup=self.warmup)

    def over(self, steps: int) -> Schedule:
        """The rate at each step of a span of `steps`."""
        warm = round(self.warmup * steps)

        def rate(step: int) -> float:
            if step < warm:
                return self.peak * rising(step, warm)
            x = min(1.0, (step - warm) / max(1, steps - warm))
            return self.peak * linear(x, self.floor)

        return rate
