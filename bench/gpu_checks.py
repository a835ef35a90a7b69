"""What must hold in bf16, asked of the device itself, over real text.

The same as in `tests/test_reptile.py` and `tests/test_learner.py`, which ask it of a CPU.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import work
from arms import learner

from treering import tables
from treering.batch import Batch, refs
from treering.learner import Learner
from treering.methods.objectives.next_token import NextToken
from treering.methods.updates import Descent, Reptile
from treering.protocols import Update

STEPS, EVERY = 7, 3


def checks(rows: int) -> dict[str, bool]:
    """What was asked, with steps of so many rows, and whether it holds. To be asked first: what is
    deterministic is a switch of the process."""
    with tempfile.TemporaryDirectory() as folder:
        work.prepare(Path(folder), "3m", "bf16", STEPS)
        tokens = work.samples(Path(folder)).reshape(STEPS, work.ROWS, work.LENGTH + 1)[:, :rows]
    names, none = refs([(0, row) for row in range(rows)]), np.zeros(rows, bool)
    batches = [Batch(each, names, none, step, 0, False) for step, each in enumerate(tokens)]
    plain = trained(Descent(), batches)
    every = [tensor for tensors in plain.state().values() for tensor in tensors]
    device = trained(Reptile(EVERY, 0.5), batches)
    return {
        "the same steps give the same weights": same(plain, trained(Descent(), batches)),
        "Reptile at rate 1 is plain training": same(plain, trained(Reptile(EVERY, 1.0), batches)),
        "Reptile at rate 0.5 is not": not same(plain, device),
        "an anchor on the host equals one on the device": same(
            device, trained(Reptile(EVERY, 0.5, anchor="cpu"), batches)
        ),
        "after a meta-update a step at rate zero moves nothing": stays(batches),
        "weights and moments are fp32": {tensor.dtype for tensor in every} == {torch.float32},
        "the loss is fp32, the norm of the gradient finite": finite(plain, batches[0]),
        "chunked losses are those of whole logits": chunked(plain, batches[0]),
        "documents by blocks are those of a whole mask": blocked(batches[0]),
    }


def fresh(rows: int, *, documents: bool = False) -> Learner:
    """A small model, in bf16, uncompiled, deterministic."""
    compute = tables.Compute(compile=False, precision="bf16", deterministic=True)
    wanted = tables.Model(preset="1m")
    made = learner(wanted, compute, rows, work.LENGTH, documents=documents)
    made.set_rate(1e-3)
    return made


def trained(update: Update, batches: Sequence[Batch]) -> Learner:
    made = fresh(len(batches[0]))
    for batch in batches:
        update(made, batch)
    return made


def same(one: Learner, other: Learner) -> bool:
    """Bit for bit."""
    return all(torch.equal(a, b) for a, b in zip(one.params, other.params, strict=True))


def stays(batches: Sequence[Batch]) -> bool:
    """The interpolated weights are those that the optimizer owns."""
    update, made = Reptile(EVERY, 0.5), fresh(len(batches[0]))
    for batch in batches[:EVERY]:
        update(made, batch)
    before = [param.detach().clone() for param in made.params]
    made.set_rate(0.0)
    update(made, batches[EVERY])
    return all(torch.equal(a, b) for a, b in zip(before, made.params, strict=True))


def finite(made: Learner, batch: Batch) -> bool:
    """Nor was the loss rounded to bf16's three digits before."""
    metrics = Descent()(made, batch)
    exact = float(metrics.loss) != float(metrics.loss.to(torch.bfloat16))
    return metrics.loss.dtype == torch.float32 and exact and bool(metrics.grad_norm.isfinite())


@torch.no_grad()
def chunked(made: Learner, batch: Batch) -> bool:
    """Within the rounding of bf16's products."""
    root = made.forward.root
    given, losses = root.objective, []
    for root.objective in (given, NextToken(None)):
        losses.append(made.forward(batch.tokens, len(batch))[1])
    root.objective = given
    return torch.allclose(losses[0], losses[1], rtol=1e-3)


def blocked(batch: Batch) -> bool:
    """Losses and gradients, on a device by flex attention."""
    made = fresh(len(batch), documents=True)
    root = made.forward.root
    given = root.objective
    assert isinstance(given, NextToken)
    losses, norms = [], []
    for root.objective in (given, replace(given, blocks=False)):
        total, each = made.forward(batch.tokens, len(batch))
        total.backward()
        losses.append(each)
        found = [param.grad.norm() for param in made.params if param.grad is not None]
        norms.append(torch.stack(found))
        root.zero_grad()
    asked = given.blocks == torch.cuda.is_available()
    near = torch.allclose(losses[0], losses[1], rtol=1e-3)
    return asked and near and torch.allclose(norms[0], norms[1], rtol=1e-2)
