"""Plans for tests: of a few numbers, drawn at random, walked to their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from hypothesis import strategies as st

from treering.lengths import lengths
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.plan import Plan, Planner, Stage
from treering.position import State
from treering.protocols import Memory

LARGE = 10**6
Pair = tuple[int, int]


def planner(
    sizes: Sequence[int],
    *stages: tuple[int, tuple[int, ...]],
    rows: int = 4,
    share: Fraction | str = "0",
    budget: str = "total",
    memory: Memory | None = None,
    over: str = "all",
    past: Sequence[int] = (),
    seed: int = 0,
) -> Planner:
    """`stages` are (samples, weights of the corpora)."""
    return Planner(
        seed=seed,
        names=tuple("abcdef"[: len(sizes)]),
        sizes=tuple(sizes),
        past=tuple(i in past for i in range(len(sizes))),
        stages=tuple(Stage(samples, weights) for samples, weights in stages),
        rows=rows,
        share=Fraction(share),
        budget=budget,
        memory=memory or Everything(),
        over=over,
    )


def walk(plan: Planner, state: State | None = None) -> list[Plan]:
    """All steps from a State to the end."""
    steps, state, found = lengths(plan), state or plan.start(), []
    while plan.entered(state, steps).phase < len(steps):
        found.append(plan.plan(state, steps))
        state = found[-1].after
    return found


def fresh(plan: Plan) -> list[Pair]:
    return plan.refs[~plan.replayed].pairs()


def replayed(plan: Plan) -> list[Pair]:
    return plan.refs[plan.replayed].pairs()


def equal(a: Plan, b: Plan) -> bool:
    def states(x: State, y: State) -> bool:
        arrays = all(
            (m[name] == n[name]).all()
            for m, n in ((x.memory, y.memory), (x.drawn, y.drawn))
            for name in m.keys() | n.keys()
        )
        return arrays and replace(x, memory={}, drawn={}) == replace(y, memory={}, drawn={})

    return (
        a.refs.pairs() == b.refs.pairs()
        and (a.replayed == b.replayed).all()
        and (a.step, a.phase, a.ends_phase) == (b.step, b.phase, b.ends_phase)
        and states(a.after, b.after)
    )


@st.composite
def planners(draw: st.DrawFn, *, budget: str | None = None, over: str | None = None) -> Planner:
    """Recipes of one to four corpora, mostly tiny, so that epochs turn and memories run short."""
    n = draw(st.integers(1, 4))
    sizes = draw(st.lists(st.one_of(st.integers(1, 30), st.just(LARGE)), min_size=n, max_size=n))
    weights = st.lists(st.integers(0, 5), min_size=n, max_size=n).filter(any).map(tuple)
    stages = draw(st.lists(st.tuples(st.integers(1, 60), weights), min_size=1, max_size=3))
    rows, share = draw(st.integers(1, 8)), draw(st.integers(0, 17).map(lambda k: Fraction(k, 20)))
    spare = draw(st.integers(0, 10))
    largest = rows + ceil(rows * share / (1 - share))  # of a step, as build.py demands of samples
    memories = [Everything(), Balanced(), Reservoir(largest + spare)]
    return planner(
        sizes,
        *stages,
        rows=rows,
        share=share,
        budget=budget or draw(st.sampled_from(["total", "fresh", "batch"])),
        memory=draw(st.sampled_from(memories)),
        over=over or draw(st.sampled_from(["all", "past"])),
        past=draw(st.sets(st.integers(0, n - 1))),
        seed=draw(st.integers(0, 3)),
    )
