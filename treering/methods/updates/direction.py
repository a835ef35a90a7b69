"""Where an optimizer of `torch.optim` goes from a gradient, before its rate: for `Outer`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from treering.config import Invalid

FLOPS = {"sgd": 5.0, "nesterov": 7.0, "adam": 14.0}  # for each weight


@dataclass(frozen=True)
class Direction:
    """SGD's, where `moments` has no name if there is no momentum, Nesterov's (torch's form of it),
    or Adam's. Their weights move by -rate * direction."""

    optimizer: str
    momentum: float
    betas: tuple[float, ...]
    eps: float

    def __post_init__(self) -> None:
        if self.optimizer not in FLOPS:
            raise Invalid(f"update.optimizer = {self.optimizer!r}: one of {tuple(FLOPS)}")
        if not 0 <= self.momentum < 1:
            raise Invalid(f"update.momentum = {self.momentum}: must be in [0, 1)")
        if self.momentum and self.optimizer == "adam":
            raise Invalid(f"update.momentum = {self.momentum}: 'adam' has none; set betas")
        if not self.momentum and self.optimizer == "nesterov":
            raise Invalid("update.momentum = 0.0: 'nesterov' needs one, as 0.9")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise Invalid(f"update.betas = {self.betas}: two, in [0, 1)")
        if not self.eps > 0:
            raise Invalid(f"update.eps = {self.eps}: must be positive")

    @property
    def moments(self) -> tuple[str, ...]:
        """What it remembers, a tensor of zeros shaped like the gradient at first."""
        if self.optimizer == "adam":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum",) if self.momentum else ()

    @property
    def flops(self) -> float:
        """Of a step, for each weight."""
        return FLOPS[self.optimizer]

    def __call__(
        self, gradient: torch.Tensor, moments: list[torch.Tensor], step: int
    ) -> torch.Tensor:
        """At a step counted from 1; the moments are brought up to date in place."""
        if self.optimizer == "adam":
            (mean, square), (first, second) = moments, self.betas
            mean.lerp_(gradient, 1 - first)
            square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
            scale = (square / (1 - second**step)).sqrt() + self.eps
            return mean / (1 - first**step) / scale
        (velocity,) = moments
        velocity.mul_(self.momentum).add_(gradient)
        ahead = self.optimizer == "nesterov"
        return gradient + self.momentum * velocity if ahead else velocity
