"""The infinite schedule: a rate to go on with for ever."""

from __future__ import annotations

from dataclasses import dataclass

from treering.config import Invalid
from treering.methods.schedules.decays import exponential, falling, rsqrt
from treering.methods.schedules.warmup import check, rising
from treering.protocols import Schedule


@dataclass(frozen=True)
class Infinite:
    """Warm-up, cooldown from the peak to `constant` times the peak, and that rate from there on
    (arXiv 2403.08763, section 7; 2503.02844). `warmup`, `cooldown` and `anneal` are where these end
    or begin, as shares of the span.

    With `span = "first"`, its default, later phases go on at the constant rate; it needs no total
    budget. What is annealed is then a branch beside the run, `[anneal]`. `anneal` below 1 is one
    within the span, for runs that end there: exponential, down to `floor` times the peak.

    `shape` of the cooldown: "cosine", "rsqrt" of a `steepness`, or "linear". Not the "cosine-inf"
    of the paper's code, which is a repeated cosine.
    """

    peak: float
    constant: float = 0.55
    floor: float = 0.1
    warmup: float = 0.01
    cooldown: float = 0.6
    anneal: float = 1.0
    shape: str = "cosine"
    steepness: float = 10.0

    def __post_init__(self) -> None:
        check(peak=self.peak, floor=self.floor, warmup=self.warmup)
        falling(self.shape, self.constant, "schedule")
        if not 0 < self.constant <= 1:
            raise Invalid(f"schedule.constant = {self.constant}: a share of the peak, in (0, 1]")
        if not self.warmup <= self.cooldown <= self.anneal <= 1:
            raise Invalid(
                f"schedule: warmup, cooldown, anneal = {self.warmup}, {self.cooldown}, "
                f"{self.anneal}: are where these end, so they must not fall, and be at most 1"
            )
        if self.anneal < 1 and not 0 < self.floor <= self.constant:
            raise Invalid(f"schedule.floor = {self.floor}: in (0, constant], to anneal down to it")
        if not self.steepness > 0:
            raise Invalid(f"schedule.steepness = {self.steepness}: must be positive")

    def over(self, steps: int) -> Schedule:
        """The rate at each step of a span of `steps`."""
        warm, cool = round(self.warmup * steps), round(self.cooldown * steps)
        hot = round(self.anneal * steps) if self.anneal < 1 else None

        def share(step: int) -> float:
            if step < warm:
                return rising(step, warm)
            if step < cool:
                return self._cooled((step - warm) / (cool - warm))
            if hot is None or step < hot:
                return self.constant
            x = min(1.0, (step - hot) / max(1, steps - hot))
            return self.constant * exponential(x, self.floor / self.constant)

        return lambda step: self.peak * share(step)

    def _cooled(self, x: float) -> float:
        if self.shape == "rsqrt":
            return rsqrt(x, self.constant, self.steepness)
        return falling(self.shape, self.constant, "schedule")(x, self.constant)
