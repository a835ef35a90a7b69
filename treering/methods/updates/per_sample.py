"""One step of the inner update for each sample, in the batch's order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.agem import AGEM
from treering.methods.updates.descent import Descent
from treering.methods.updates.gem import GEM
from treering.protocols import Learner, Metrics, Update
from treering.wrapping import Wrapping

MEANS = ("loss", "fresh_loss", "replayed_loss", "grad_norm", "skipped")


@dataclass
class PerSample(Wrapping):
    """The innermost loop of Riemer's MER (ICLR 2019, Algorithm 1): online learning, one example
    at a time. Fresh samples come first, then replayed ones."""

    inner: Update = field(default_factory=Descent)

    def __post_init__(self) -> None:
        if isinstance(self.inner, AGEM | GEM):
            raise Invalid(
                "update.inner.kind: 'agem' and 'gem' compare the rows of a step, of which "
                "'per_sample' gives them one at a time; use them alone"
            )

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        parts = [self.inner(learner, batch[row : row + 1]) for row in range(len(batch))]

        def mean(name: str) -> torch.Tensor:
            return torch.stack([getattr(part, name) for part in parts]).nanmean()

        penalised = ("penalty",) if parts[0].penalty is not None else ()
        means: dict[str, Any] = {name: mean(name) for name in (*MEANS, *penalised)}
        return replace(
            parts[0],
            **means,
            training_flops=sum(part.training_flops for part in parts),
            meta_flops=sum(part.meta_flops for part in parts),
        )
