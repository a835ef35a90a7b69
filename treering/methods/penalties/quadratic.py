"""weight / 2 * sum of importance * (theta - centre)^2: what all penalties here come to.

Its gradient meets the optimizer as any other does. Adam divides it by the size of all gradients, so
a weight means something else at each parameter, and does not carry over from one optimizer, model
or data set to another: tune it on a logarithmic grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from treering.config import Invalid
from treering.protocols import Learner

Tensors = Sequence[torch.Tensor]


@torch.no_grad()
def pull(
    learner: Learner, weight: float, centre: Tensors, importance: Tensors | None = None
) -> torch.Tensor:
    """Add the gradient to that of the parameters which have one; the value, float64[]. Tensors of
    one parameter alone are made at a time. Without `importance` it is 1 everywhere."""

    def away() -> Iterator[torch.Tensor]:
        return (p.detach() - c for p, c in zip(learner.params, centre, strict=True))

    def slope() -> Iterator[torch.Tensor]:
        if importance is None:
            return away()
        return (part * each for part, each in zip(importance, away(), strict=True))

    for param, pulled in zip(learner.params, slope(), strict=True):
        if param.grad is not None:
            param.grad.add_(pulled, alpha=weight)
    return weight / 2 * learner.dot(slope(), away())


@torch.no_grad()
def trace(learner: Learner, weight: float, importance: Tensors) -> float:
    """weight * the sum of all importance: how strong the pull is in all; waits for the device."""
    ones = (torch.ones_like(part) for part in importance)
    return weight * float(learner.dot(importance, ones))


def none(learner: Learner) -> torch.Tensor:
    """The value while nothing is held, float64[]."""
    return torch.zeros((), dtype=torch.float64, device=learner.params[0].device)


def copies(learner: Learner) -> list[torch.Tensor]:
    """The parameters as they stand."""
    return [param.detach().clone() for param in learner.params]


def zeros(learner: Learner) -> list[torch.Tensor]:
    """A zero for each parameter's numbers."""
    return [torch.zeros_like(param.detach()) for param in learner.params]


@torch.no_grad()
def put(tensors: Tensors, learner: Learner) -> None:
    """The parameters as they stand into tensors that are there."""
    for tensor, param in zip(tensors, learner.params, strict=True):
        tensor.copy_(param)


def check(weight: float, samples: int = 1) -> None:
    """Raises Invalid for what no penalty can be."""
    if weight < 0:
        raise Invalid(f"penalties.weight = {weight}: must not be negative (0 = off)")
    if samples < 1:
        raise Invalid(f"penalties.samples = {samples}: must be at least 1")
