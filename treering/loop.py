"""train(): takes a batch, learns from it, yields what happened. Its caller decides the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from treering.batch import Batch
from treering.learner import Learner
from treering.position import State
from treering.protocols import Metrics, Schedule, Update
from treering.rng import key


@dataclass(frozen=True)
class Rules:
    """What a run does at each step beside its update."""

    seed: int
    schedule: Schedule
    dropout: bool = False  # reseeded at each step, so that its history does not matter
    at_phase: str = "keep"  # what becomes of the optimizer's moments where a phase begins


@dataclass(frozen=True)
class Trained:
    """One step that was done: the plan's State after it is what a checkpoint saves."""

    batch: Batch
    after: State
    rate: float
    metrics: Metrics


def train(
    learner: Learner, update: Update, batches: Iterable[tuple[Batch, State]], rules: Rules
) -> Iterator[Trained]:
    """Learn from the batches, one step for each."""
    for batch, after in batches:
        rate = rules.schedule(batch.step)
        learner.set_rate(rate)
        if rules.dropout:
            torch.manual_seed(key(rules.seed, "dropout", batch.step) % 2**63)
        if batch.begins_phase and rules.at_phase != "keep":
            learner.reset_optimizer(momentum_alone=rules.at_phase == "reset-momentum")
        metrics = update(learner, batch)
        yield Trained(batch, after, rate, metrics)
