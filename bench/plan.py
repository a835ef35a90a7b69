"""Planning a step over 10^6 to 10^12 tokens, over 1 to 1,000 corpora: `python bench/plan.py`."""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable, Mapping
from fractions import Fraction

from common import alternate, ratio, report

from treering.lengths import lengths
from treering.methods.memories import Everything
from treering.plan import Planner, Stage
from treering.position import State

LENGTH, ROWS = 256, 16
TOKENS = tuple(10**n for n in range(6, 13, 2))
CORPORA = (1, 10, 100, 1000)


def planner(samples: int, *weights: tuple[int, ...]) -> Planner:
    """A phase for each row of weights, a quarter of replay; every corpus has as many samples."""
    corpora = len(weights[0])
    return Planner(
        seed=0,
        names=tuple(str(number) for number in range(corpora)),
        sizes=(samples,) * corpora,
        past=(False,) * corpora,
        stages=tuple(Stage(samples, each) for each in weights),
        rows=ROWS,
        share=Fraction(1, 4),
        budget="total",
        memory=Everything(),
        over="all",
    )


def stepper(rule: Planner, seen: tuple[int, ...]) -> Callable[[], None]:
    """A function that plans the next step of the last phase."""
    steps = lengths(rule)
    last = len(steps) - 1
    state = [State(sum(steps[:last]), last, 0, seen, seen, {}, {})]

    def step() -> None:
        state[0] = rule.plan(state[0], steps).after

    return step


def grown(tokens: int) -> Callable[[], None]:
    """Two corpora of `tokens` each, one after the other, in the second."""
    samples = tokens // LENGTH
    return stepper(planner(samples, (1, 0), (0, 1)), (samples // 2, 0))


def mixed(corpora: int) -> Callable[[], None]:
    """A mixture of so many corpora, of unequal weights, each half seen."""
    samples = 10**9 // LENGTH
    weights = tuple(range(1, corpora + 1))
    return stepper(planner(samples, weights), (samples // 2,) * corpora)


def figures(arms: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Times of the arms, also as ratios to the first one, and the peaks of their memory."""
    took = alternate(arms, rounds)
    plain = next(iter(arms))
    found: dict[str, float] = {}
    for name in arms:
        found[f"planning a step over {name}, us"] = statistics.median(took[name]) * 1e6
        if name != plain:
            found[f"{name} / {plain}"] = ratio(took, name, plain)
    tracemalloc.start()
    for name, step in arms.items():
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        step()
        found[f"peak memory over {name}, KiB"] = (
            tracemalloc.get_traced_memory()[1] - before
        ) / 2**10
    tracemalloc.stop()
    return found


def main() -> None:
    sizes = {f"10^{len(str(tokens)) - 1} tokens": grown(tokens) for tokens in TOKENS}
    corpora = {f"{n:,} corpora": mixed(n) for n in CORPORA}
    # 100 steps lie within one epoch of the smallest
    report("plan", {**figures(sizes, 100), **figures(corpora, 100)})


if __name__ == "__main__":
    main()
