"""A-GEM: the gradient of the fresh samples, without what would raise the loss of the replayed ones.

    g of the fresh rows, r of the replayed ones:  g <- g - (g . r / r . r) r  where g . r < 0

(Chaudhry 2019, arXiv 1812.00420, equation 11.) Replayed samples are a reference: they are not
trained on. The products are over all weights at once and over all ranks. What is projected is the
gradient: the step that AdamW makes of it may still raise the reference's loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from treering.batch import Batch
from treering.methods.updates.descent import Descent
from treering.protocols import Learner, Metrics


@dataclass(frozen=True)
class AGEM:
    """A second gradient is held beside the first while a step lasts. Where the two agree it is
    plain training on the fresh rows, bit for bit. Steps without replayed rows, or with no others,
    are plain steps."""

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if batch.replayed.all() or not batch.replayed.any():
            return Descent()(learner, batch)
        old = learner.backward(batch.only(batch.replayed))
        reference = learner.take_gradient()
        new = learner.backward(batch.only(~batch.replayed))  # the last: its loss is the guard's
        gradient = learner.waiting_gradient()
        with torch.no_grad():
            product, square = learner.dot(gradient, reference), learner.dot(reference, reference)
            agree = (product >= 0) & square.isfinite()  # else what is not finite is the guard's
            for g, r in zip(gradient, reference, strict=True):
                projected = g - (product / square).to(g.dtype) * r
                g.copy_(torch.where(agree, g, projected))
        return stepped(learner, batch, new, old, products=2)

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        return {}

    def counters(self) -> dict[str, Any]:
        return {}

    def restore(self, counters: Mapping[str, Any]) -> None:
        pass

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return {}


def stepped(
    learner: Learner, batch: Batch, new: Metrics, old: Metrics, *, products: int
) -> Metrics:
    """Let the optimizer step; what the step was over the fresh rows and the replayed ones, of whose
    gradients there were so many inner products and, at most, as many sums."""
    share = float(batch.replayed.mean())
    return replace(
        new.stepped(learner.apply()),
        loss=(1 - share) * new.loss + share * old.loss,
        replayed_loss=old.loss,
        training_flops=new.training_flops + old.training_flops,
        meta_flops=4.0 * products * sum(weight.numel() for weight in learner.params),
    )
