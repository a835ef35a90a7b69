"""A learner's step where some of its weights move in subspaces alone (coso.py)."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from treering.methods.updates.directions import cost, padded
from treering.methods.updates.subspace import Side, Subspace
from treering.protocols import Applied, Learner
from treering.spread import fill, whole

MOMENTS = "optimizer.exp_avg", "optimizer.exp_avg_sq"
Turned = tuple[torch.Tensor | None, torch.Tensor | None]


def subspaces(
    learner: Learner, which: str, rank: int, size: int, capacity: float
) -> dict[str, Subspace]:
    """The empty ones of a learner's matrices, of whose outputs ("out"), inputs ("in") or both the
    share `capacity` may be kept."""

    def side(weight: torch.Tensor, axis: int, role: str) -> Side | None:
        m = weight.shape[axis]
        if which not in (role, "both"):
            return None
        moves = role == ("out" if which == "both" else which)
        sizes = int(capacity * m), min(rank, m) if moves else 0, min(size, m)
        return Side(*(torch.zeros(m, columns, device=weight.device) for columns in sizes))

    found = {}
    for name, rows in learner.matrices.items():
        weight, columns = learner.weights[name], "in" if rows == "out" else "out"
        found[name] = Subspace(side(weight, 0, rows), side(weight, 1, columns))
    return found


@torch.no_grad()
def step(learner: Learner, spaces: Mapping[str, Subspace]) -> Applied:
    """Let the optimizer step while these weights are their coordinates, in the upper left corner of
    their tensors; then move each weight as its coordinates moved. A step that is refused changes
    nothing."""
    before, began = {}, {}
    for name, space in spaces.items():
        weight = learner.weights[name]
        if weight.grad is not None:
            before[name] = weight.detach().clone()
            began[name] = space.down(whole(before[name]))
            fill(weight, padded(began[name], *weight.shape))
            fill(weight.grad, padded(space.down(whole(weight.grad)), *weight.shape))
    applied = learner.apply()
    for name, coordinates in began.items():
        weight, (rows, columns) = learner.weights[name], coordinates.shape
        moved = whole(weight.detach())[:rows, :columns] - coordinates
        fill(weight, spaces[name].up(moved))
        weight.add_(before[name])
    return applied


@torch.no_grad()
def turn(
    learner: Learner, spaces: Mapping[str, Subspace], decay: float, *, rotate: bool
) -> tuple[float, bool]:
    """New bases from the gradients that wait to be applied, but from none that is not finite.
    `rotate` the moments with them. FLOPs, and whether all were finite."""
    flops, every, state = 0.0, True, learner.state()
    moments = [state[kind] for kind in MOMENTS if kind in state and rotate]
    for place, (name, weight) in enumerate(learner.weights.items()):
        if name not in spaces or weight.grad is None:
            continue
        gradient = whole(weight.grad)
        if not gradient.isfinite().all():
            every = False
            continue
        turned = spaces[name].turn(gradient, decay)
        for power, tensors in enumerate(moments, 1):
            fill(tensors[place], _turned(whole(tensors[place]), turned, power))
        flops += cost(gradient.shape, spaces[name].most)
    return flops, every


@torch.no_grad()
def consolidate(
    learner: Learner, spaces: Mapping[str, Subspace], energy: float, *, anew: bool
) -> None:
    """A phase has ended: keep its directions, and begin the moments and steps of these weights
    `anew`."""
    for space in spaces.values():
        for one in space.sides:
            one.keep(energy)
    for kind, tensors in learner.state().items() if anew else ():
        for name, tensor in zip(learner.weights, tensors, strict=True):
            if kind.startswith("optimizer.") and name in spaces:
                tensor.zero_()


def _turned(moment: torch.Tensor, turned: Turned, power: int) -> torch.Tensor:
    """A moment [m, n] in coordinates of the new bases; the second by the squares of the cosines."""
    rows, columns = (None if each is None else each**power for each in turned)
    corner = moment if rows is None else rows @ moment[: len(rows)]
    corner = corner if columns is None else corner[:, : len(columns)] @ columns.T
    return padded(corner, *moment.shape)
