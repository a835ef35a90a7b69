"""Cosine decay after a linear warm-up."""

from __future__ import annotations

from dataclasses import dataclass

from treering.methods.schedules.decays import cosine
from treering.methods.schedules.warmup import check, rising
from treering.protocols import Schedule


@dataclass(frozen=True)
class Cosine:
    """From the peak to `floor` times the peak along half a cosine.

    eta(t) = floor + (peak - floor) / 2 * (1 + cos(pi * (t - warm) / (steps - warm))): the decay of
    GPT-NeoX, which reaches its floor; arXiv 2508.01908 lets it run over all phases.

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
            return self.peak * cosine(x, self.floor)

        return rate
