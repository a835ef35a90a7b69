"""Do the gradients of new and of earlier samples agree? Measured, not assumed.

What replay and Reptile are said to do (arXiv 2508.01908, equation 1) is to raise the inner product
of gradients of new and old samples: > 0 is transfer, < 0 interference. The probe takes the gradient
of a step's fresh samples, and of two draws of as many samples from all that was seen before the
phase began, at the weights before the step. It changes nothing: a probed run is the plain run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from treering.batch import Batch
from treering.learner import Learner
from treering.position import State
from treering.protocols import Memory
from treering.rng import key
from treering.stream import Stream


@dataclass(frozen=True)
class Alignment:
    """Cosines between mean gradients: of fresh and earlier samples (the mean over two draws), and
    of the two draws with one another, which says how much of 1 the noise leaves. Inner product and
    norms in nats/token per unit of weight. `tokens` is what the probe cost, forward and backward.
    """

    cosine: float
    earlier_cosine: float
    dot: float
    fresh_norm: float
    earlier_norm: float
    tokens: int


def probing(
    batches: Iterator[tuple[Batch, State]],
    before: State,
    every: int | None,
    look: Callable[[Batch, State], None],
) -> Iterator[tuple[Batch, State]]:
    """The same batches; every so many steps `look` sees one, with the plan's state before it."""
    for batch, after in batches:
        if every is not None and batch.step % every == 0:
            look(batch, before)
        yield batch, after
        before = after


def probe(
    learner: Learner, stream: Stream, memory: Memory, batch: Batch, before: State
) -> Alignment | None:
    """Compare gradients at the weights before `batch` is learned from; `before` is the plan's state
    before it. None while no phase lies behind. `memory` draws uniformly from what was seen."""
    fresh = batch[: int((~batch.replayed).sum())]
    batches = [fresh, *_drawn(stream, memory, fresh, before)]
    if len(batches) < 3:
        return None
    gradients = [learner.gradient(each) for each in batches]

    def dot(one: int, other: int) -> float:
        return float(learner.dot(gradients[one], gradients[other]))

    new, old, other = (dot(i, i) ** 0.5 for i in range(3))
    products = dot(0, 1), dot(0, 2)
    return Alignment(
        cosine=_mean(products[0] / (new * old), products[1] / (new * other)),
        earlier_cosine=dot(1, 2) / (old * other),
        dot=_mean(*products),
        fresh_norm=new,
        earlier_norm=_mean(old, other),
        tokens=sum(each.predicted for each in batches),
    )


def _drawn(stream: Stream, memory: Memory, fresh: Batch, before: State) -> Iterator[Batch]:
    """Two batches of samples from before the phase, or none."""
    at = key(stream.planner.seed, "probe", fresh.step)
    before = stream.planner.entered(before, stream.steps)
    refs = stream.planner.earlier(before, memory, 2 * len(fresh), at)
    half = len(refs) // 2
    for rows in (slice(0, half), slice(half, 2 * half)) if half else ():
        tokens = stream.tokens(refs[rows])
        yield Batch(tokens, refs[rows], np.ones(half, bool), fresh.step, fresh.phase, False)


def _mean(one: float, other: float) -> float:
    return (one + other) / 2
