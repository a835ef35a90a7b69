"""Planning one step over 10^6 and over 10^12 tokens: `python bench/plan.py`."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

from common import alternate, ratio, report

from treering.lengths import lengths
from treering.methods.memories import Everything
from treering.plan import Planner, Stage
from treering.position import State

LENGTH, ROWS = 256, 16


def planner(tokens: int) -> Planner:
    """Two corpora of `tokens` each, one after the other, a quarter of replay."""
    samples = tokens // LENGTH
    stages = (Stage(samples, (1, 0)), Stage(samples, (0, 1)))
    return Planner(
        seed=0,
        names=("a", "b"),
        sizes=(samples, samples),
        past=(False, False),
        stages=stages,
        rows=ROWS,
        share=Fraction(1, 4),
        budget="total",
        memory=Everything(),
        over="all",
    )


def stepper(tokens: int) -> Callable[[], None]:
    """A function that plans the next step, from the second phase's start on."""
    rule = planner(tokens)
    steps = lengths(rule)
    seen = (tokens // LENGTH // 2, 0)
    state = [State(steps[0], 1, 0, seen, seen, {}, {})]

    def step() -> None:
        state[0] = rule.plan(state[0], steps).after

    return step


def main() -> None:
    small, large = stepper(10**6), stepper(10**12)
    took = alternate({"small": small, "large": large}, rounds=100)  # within one epoch of the small
    tracemalloc.start()
    peaks = {}
    for name, step in (("small", stepper(10**6)), ("large", stepper(10**12))):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step()
        peaks[name] = (tracemalloc.get_traced_memory()[1] - before) / 2**10
    report(
        "plan",
        {
            "planning a step over 10^6 tokens, us": statistics.median(took["small"]) * 1e6,
            "planning a step over 10^12 tokens, us": statistics.median(took["large"]) * 1e6,
            "ratio of the two": ratio(took, "large", "small"),
            "peak memory at 10^6 tokens, KiB": peaks["small"],
            "peak memory at 10^12 tokens, KiB": peaks["large"],
        },
    )


if __name__ == "__main__":
    main()
