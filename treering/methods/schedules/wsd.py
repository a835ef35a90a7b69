"""Warm-up, stable, decay."""

from __future__ import annotations

from dataclasses import dataclass

from treering.config import Invalid, exact
from treering.methods.schedules.decays import falling
from treering.methods.schedules.warmup import check, rising
from treering.protocols import Schedule


@dataclass(frozen=True)
class WSD:
    """The rate rises in the first `warmup` of the span, stays at its peak, and falls in the last
    `decay` of it to `floor` times the peak, by `shape`: "linear", "cosine", "1-sqrt",
    "exponential" or "rsqrt" (arXiv 2511.18903; a floor of a third is its moderate decay).

    To decay beside a run that goes on at its peak, take a constant rate and `[anneal]`.
    """

    peak: float
    floor: float = 0.1
    warmup: float = 0.0
    decay: float = 0.2
    shape: str = "1-sqrt"

    def __post_init__(self) -> None:
        check(peak=self.peak, floor=self.floor, warmup=self.warmup)
        falling(self.shape, self.floor, "schedule")
        left = 1 - exact(self.warmup)
        if not 0 <= self.decay <= 1 or exact(self.decay) > left:
            raise Invalid(
                f"schedule.decay = {self.decay}: a share of the span; with the warm-up of "
                f"{self.warmup} at most {float(left):g}"
            )

    def over(self, steps: int) -> Schedule:
        """The rate at each step of a span of `steps`."""
        warm, fall = round(self.warmup * steps), falling(self.shape, self.floor, "schedule")
        stable = max(warm, steps - round(self.decay * steps))  # as both may be rounded up

        def rate(step: int) -> float:
            if step < warm:
                return self.peak * rising(step, warm)
            if step < stable or stable == steps:
                return self.peak
            return self.peak * fall(min(1.0, (step - stable) / (steps - stable)), self.floor)

        return rate
