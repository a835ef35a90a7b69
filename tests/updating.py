"""What an update made of a learner, for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from treering.batch import Batch
from treering.learner import Learner
from treering.protocols import Metrics, Update

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
Tensors = list[torch.Tensor]


def weights(learner: Learner) -> Tensors:
    return [param.detach().clone() for param in learner.params]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def near(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], atol: float = 1e-6) -> bool:
    """Within a few roundings: norms have weights of 1, whose last digit is 1.2e-7."""
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in zip(a, b, strict=True))


def learned(learner: Learner, update: Update, batches: Sequence[Batch]) -> list[Metrics]:
    return [update(learner, batch) for batch in batches]
