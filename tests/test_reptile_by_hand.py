"""Reptile over scalars and quadratics, written out by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from updating import learned

from treering.batch import Batch, refs
from treering.methods.updates import Descent, Reptile
from treering.protocols import Applied, Metrics


class Functions:
    """A learner of one vector by plain SGD; the batch's step says which loss it descends."""

    def __init__(
        self,
        losses: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        begin: list[float],
        rate: float,
    ) -> None:
        self.losses, self.rate = losses, rate
        self.theta = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
        self.params: Sequence[torch.Tensor] = [self.theta]

    def backward(self, batch: Batch) -> Metrics:
        loss = self.losses[batch.step % len(self.losses)](self.theta)
        loss.backward()
        none = torch.full((), torch.nan)
        return Metrics(loss.detach(), loss.detach(), none, none, none, training_flops=0.0)

    def apply(self) -> Applied:
        assert self.theta.grad is not None
        gradient, self.theta.grad = self.theta.grad, None
        with torch.no_grad():
            self.theta -= self.rate * gradient
        return Applied(gradient.norm(), torch.zeros(()))


def steps(n: int) -> list[Batch]:
    empty = np.zeros((1, 2), np.int64)
    return [Batch(empty, refs([(0, i)]), np.zeros(1, bool), i, 0, False) for i in range(n)]


@pytest.mark.filterwarnings("ignore:update.rate = 0")
def test_the_scalar_example() -> None:
    """By hand: theta 1 -> 0.9 -> 0.92; Reptile at .5, .1 and 0 gives .96, .992 and 1."""
    losses = [lambda t: t[0] ** 2 / 2, lambda t: (t[0] - 1) ** 2]
    plain, path = Functions(losses, [1.0], 0.1), []
    for batch in steps(2):
        Descent()(plain, batch)
        path.append(float(plain.theta.detach()))
    assert path == pytest.approx([0.9, 0.92], abs=1e-15)
    for rate, expected in ((0.5, 0.96), (0.1, 0.992), (0.0, 1.0), (1.0, 0.92)):
        learner = Functions(losses, [1.0], 0.1)
        learned(learner, Reptile(every=2, rate=rate), steps(2))  # type: ignore[arg-type]
        assert float(learner.theta.detach()) == pytest.approx(expected, abs=1e-15)


def test_two_steps_on_quadratics_obey_their_identity_exactly() -> None:
    """(theta_2 - theta) / beta = -g_1 - g_2 + beta H_2 g_1; in the scalar example -0.8."""
    random, beta, rate = np.random.default_rng(0), 0.05, 0.3
    halves = [random.normal(size=(3, 3)) for _ in range(2)]
    hessians = [torch.from_numpy(half @ half.T) for half in halves]
    centres = [torch.from_numpy(random.normal(size=3)) for _ in range(2)]
    begin = [0.4, -1.1, 0.7]

    def loss(h: torch.Tensor, c: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda theta: (theta - c) @ h @ (theta - c) / 2

    pairs = zip(hessians, centres, strict=True)
    learner = Functions([loss(h, c) for h, c in pairs], begin, beta)
    learned(learner, Reptile(every=2, rate=rate), steps(2))  # type: ignore[arg-type]
    theta = torch.tensor(begin, dtype=torch.float64)
    g1, g2 = (h @ (theta - c) for h, c in zip(hessians, centres, strict=True))
    direction = (learner.theta.detach() - theta) / (beta * rate)
    assert torch.allclose(direction, -g1 - g2 + beta * hessians[1] @ g1, rtol=0, atol=1e-12)
    example = Functions([lambda t: t[0] ** 2 / 2, lambda t: (t[0] - 1) ** 2], [1.0], 0.1)
    learned(example, Reptile(every=2, rate=0.5), steps(2))  # type: ignore[arg-type]
    assert (float(example.theta.detach()) - 1) / (0.1 * 0.5) == pytest.approx(-0.8, abs=1e-12)


def test_the_direction_of_reptile_rewards_gradients_that_agree() -> None:
    """Nichol 2018, section 5.1. Three losses, plain SGD: the mean over an order and its reverse is
    -grad(sum L) + beta / 2 grad(sum g_i . g_j), with an error proportional to beta squared."""
    random = np.random.default_rng(1)
    mixes = [torch.from_numpy(random.normal(size=(4, 3))) for _ in range(3)]
    losses = [lambda t, m=m: (m @ t).exp().sum().log() + (t**4).sum() / 4 for m in mixes]
    begin, rate = [0.3, -0.4, 0.8], 0.5

    def direction(order: list[int], beta: float) -> torch.Tensor:
        learner = Functions([losses[i] for i in order], begin, beta)
        learned(learner, Reptile(every=3, rate=rate), steps(3))  # type: ignore[arg-type]
        start = torch.tensor(begin, dtype=torch.float64)
        return (learner.theta.detach() - start) / (beta * rate)

    theta = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
    gs = [torch.autograd.grad(loss(theta), theta, create_graph=True)[0] for loss in losses]
    [agreement] = torch.autograd.grad(gs[0] @ gs[1] + gs[0] @ gs[2] + gs[1] @ gs[2], theta)

    def error(beta: float) -> float:
        mean = (direction([0, 1, 2], beta) + direction([2, 1, 0], beta)) / 2
        return float((mean - (-sum(gs) + beta / 2 * agreement)).detach().norm())

    errors = [error(beta) for beta in (0.004, 0.002, 0.001)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)
    assert errors[2] < 1e-3 * float(agreement.norm())
