"""What is known is to be held: penalties and teachers hear of it where a phase begins.

    the first one    of the corpora that count as seen before the run
    a later one      of the corpora of the phase before it

Before the phase's first step, so that what is trained beside the run at a phase's end is still of
that phase. Its FLOPs are charged to the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from treering.batch import Batch
from treering.build import Parts
from treering.loop import Trained, train
from treering.position import State
from treering.predictions import Predictions
from treering.rng import key


def learned(
    parts: Parts,
    batches: Iterable[tuple[Batch, State]],
    state: State,
    predictions: Predictions | None = None,
) -> Iterator[Trained]:
    """The steps of `train` from a State on, with what is done between phases. `predictions`: what
    is recorded of a batch is read before its step, and what it predicts is recorded after it."""
    flops = 0.0

    def told() -> Iterator[tuple[Batch, State]]:
        nonlocal flops
        before = state
        for batch, after in batches:
            flops = consolidate(parts, before, batch.phase) if batch.begins_phase else 0.0
            yield (predictions.known(batch) if predictions else batch), after
            before = after

    for done in train(parts.learner, parts.update, told(), parts.rules):
        if predictions:
            predictions.write(done.batch, done.metrics)
        metrics = replace(done.metrics, meta_flops=done.metrics.meta_flops + flops)
        yield replace(done, metrics=metrics)


def consolidate(parts: Parts, state: State, begins: int) -> float:
    """Tell all that hold something that a phase begins, at the State before it. FLOPs."""
    stream, past = parts.stream, begins - 1 if begins else None
    at = key(stream.planner.seed, "consolidate", state.step)

    def drawn(count: int) -> Batch:
        refs = stream.planner.learned(state, past, parts.earlier, count, at)
        tokens, every = stream.tokens(refs), np.ones(len(refs), bool)
        return Batch(tokens, refs, every, state.step, past or 0, False)

    learner = parts.learner
    if begins:
        learner.remember()
    return sum(penalty.consolidate(learner, drawn, at) for penalty in learner.penalties)
