"""The scores of a run at a step, as records: held-out loss of corpora and branches, and tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from treering.build import Parts
from treering.evaluate import scores
from treering.interruption import Interruption
from treering.journal import Journal
from treering.learner import Learner
from treering.model import frozen
from treering.records import Record
from treering.report.live import Live


class Unscored(Exception):
    """An interruption was heard before all was scored."""


def score(
    parts: Parts, journal: Journal, live: Live, place: dict[str, Any], *, ends: bool,
    interruption: Interruption,
) -> float:  # fmt: skip
    """Write, at a place (step, phase), the record of the ranks since the last scoring and those of
    all scores; `ends`: of the phase's end, with branches. Returns the FLOPs. Raises Unscored
    between two corpora when all ranks must stop."""
    learner, step = parts.learner, place["step"]
    branches = parts.update.branches() if ends else {}
    losses: dict[str, float] = {}
    tokens = 0
    stop = _stopping(parts, interruption)
    if step:
        journal.write("ranks", place | parts.ranks.record())
    for text in parts.held_out:
        live.doing(f"step {step}: scoring {text.corpus}")
        for kind, found in scores(learner, branches, text):
            journal.write(kind, place | found)
            losses.setdefault(text.corpus, found["loss"])  # the weights as they stand first
            tokens += found["tokens"]
            interruption.alive()
        stop()
    live.scored(step, place["phase"], losses, journal.best)
    if ends or step == 0:
        live.doing(f"step {step}: scoring tasks")
        interruption.asleep()
        with learner.forward.lent() as model:
            tasks = parts.tasks.scores(model, stop)
        for task in tasks.scores:
            journal.write("task", place | dataclasses.asdict(task))
        tokens += tasks.tokens
    parts.ranks.begin()
    return tokens * forward_flops(learner)


def forward_flops(learner: Learner) -> float:
    """FLOPs of a token that is scored."""
    return (learner.flops_per_token + 2.0 * frozen(learner.forward.root.model)) / 3


def scored(found: list[Record]) -> list[str]:
    """The corpora of row 0."""
    return [r["corpus"] for r in found if r["kind"] == "score" and r["step"] == 0]


def late(parts: Parts, known: list[str]) -> list[tuple[str, Record]]:
    """Row 0 of corpora that are not yet known, by the weights that the run began with: to be made
    before a checkpoint is loaded."""
    place = {"step": 0, "phase": "base"}
    texts = [text for text in parts.held_out if text.corpus not in known]
    return [
        (kind, place | found) for text in texts for kind, found in scores(parts.learner, {}, text)
    ]


def _stopping(parts: Parts, interruption: Interruption) -> Callable[[], None]:
    def stop() -> None:
        if parts.learner.forward.mesh.any("stop", interruption.asked):
            raise Unscored

    return stop
