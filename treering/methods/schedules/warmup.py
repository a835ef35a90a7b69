"""What the schedules share: the checked fields, a linear warm-up, and `join`."""

from __future__ import annotations

from collections.abc import Sequence

from treering.config import Invalid
from treering.protocols import Schedule


def check(*, peak: float, floor: float, warmup: float) -> None:
    """Raises Invalid for a rate or share out of range."""
    if not peak >= 0:
        raise Invalid(f"schedule.peak = {peak}: must not be negative")
    if not 0 <= floor <= 1:
        raise Invalid(f"schedule.floor = {floor}: a share of the peak, in [0, 1]")
    if not 0 <= warmup <= 1:
        raise Invalid(f"schedule.warmup = {warmup}: a share of the span, in [0, 1]")


def rising(step: int, steps: int) -> float:
    """Share of the peak in a warm-up of `steps`: (step + 1) / steps, so that none is wasted."""
    return (step + 1) / steps


def join(parts: Sequence[tuple[Schedule, int]]) -> Schedule:
    """Schedules one after another, each over its number of steps and counting from its own 0.

    Past the end the last one goes on.
    """

    def rate(step: int) -> float:
        for schedule, steps in parts[:-1]:
            if step < steps:
                return schedule(step)
            step -= steps
        return parts[-1][0](step)

    return rate
