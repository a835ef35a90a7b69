"""A learner over random tokens, and its steps: what the benches of overheads train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from common import VOCABULARY, synthetic
from torch import nn

from treering import attention, model, tables
from treering.forward import forward
from treering.learner import Learner
from treering.lengths import lengths
from treering.loop import Rules, Trained, train
from treering.mesh import Mesh
from treering.methods.memories import Everything
from treering.methods.objectives.next_token import NextToken
from treering.plan import Planner, Stage
from treering.protocols import Update
from treering.stream import Stream


@dataclass(frozen=True)
class Arm:
    """Steps that go on for ever: of one learner there may be several arms."""

    learner: Learner
    update: Update
    steps: Iterator[Trained]

    def train(self, steps: int = 1) -> float:
        """The loss of the last of so many steps more, for which the device is waited for."""
        for _ in range(steps):
            done = next(self.steps)
        return done.metrics.loss.item()


def learner(
    wanted: tables.Model,
    compute: tables.Compute,
    rows: int,
    length: int,
    *,
    vocabulary: int = VOCABULARY,
    documents: bool = False,
    change: Callable[[nn.Module], object] | None = None,
) -> Learner:
    """A fresh model, changed, with its optimizer, on the device if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    begun = model.fresh(model.llama(wanted, vocabulary, length), seed=0)
    cost = model.cost(begun, length)
    if change is not None:
        change(begun)
    attention.own(begun, length)
    blocks = attention.by_blocks(begun, device)
    root = model.Root(begun, NextToken(document_end=0 if documents else None, blocks=blocks))
    call = forward(root, compute, rows, Mesh(device=device))
    return Learner(call, tables.Optimizer(), tables.Guard(), flops_per_token=cost)


def arm(
    learner: Learner, folder: Path, update: Update, *, share: str = "0", rows: int, length: int
) -> Arm:
    """The learner in steps of rows * length tokens, `share` of them replayed."""
    folder.mkdir(exist_ok=True)
    store = synthetic(folder, f"tokens {share}", 2_000_000)
    rule = Planner(
        seed=0,
        names=("a",),
        sizes=(store.samples(length),),
        past=(False,),
        stages=(Stage(10**9, (1,)),),
        rows=rows,
        share=Fraction(share),
        budget="total",
        memory=Everything(),
        over="all",
    )
    batches = Stream(rule, [store], lengths(rule), length, VOCABULARY).batches(rule.start())
    return Arm(learner, update, train(learner, update, batches, Rules(0, lambda step: 1e-4)))
