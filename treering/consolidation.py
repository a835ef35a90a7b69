"""What is known is to be held: penalties and teachers hear of it where a phase ends.

    run begins    of the corpora that count as seen before
    phase ends    of the phase's corpora

After the last step of a phase, before it is scored and saved: a checkpoint holds what came of it.
Its FLOPs are charged to that step, those of the beginning to the first one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from treering.batch import Batch
from treering.build import Parts
from treering.loop import Trained, train
from treering.position import State
from treering.rng import key


def learned(
    parts: Parts, batches: Iterable[tuple[Batch, State]], state: State
) -> Iterator[Trained]:
    """The steps of `train` from a State on, with what is done between phases."""
    flops = consolidate(parts, state, None) if state.step == 0 else 0.0
    for done in train(parts.learner, parts.update, batches, parts.rules):
        if done.batch.ends_phase:
            flops += consolidate(parts, done.after, done.batch.phase)
        metrics = replace(done.metrics, meta_flops=done.metrics.meta_flops + flops)
        flops = 0.0
        yield replace(done, metrics=metrics)


def consolidate(parts: Parts, state: State, phase: int | None) -> float:
    """Tell all that hold something that a phase has ended, or (None) that the run begins. FLOPs."""
    stream = parts.stream
    at = key(stream.planner.seed, "consolidate", state.step)

    def drawn(count: int) -> Batch:
        refs = stream.planner.learned(state, phase, parts.earlier, count, at)
        tokens, every = stream.tokens(refs), np.ones(len(refs), bool)
        return Batch(tokens, refs, every, state.step, phase or 0, False)

    learner = parts.learner
    if phase is not None:
        learner.remember()
    return sum(penalty.consolidate(learner, drawn, at) for penalty in learner.penalties)
