"""CoSO: each matrix learns in a few directions of its gradient, none of them an earlier phase's.

    every K steps   u, s, v = svd(G - M Mᵀ G);  P <- u[:, :rank];  the sketch takes u, s
    each step       the optimizer's step on coordinates:  PᵀW, Pᵀ G -> D;  W <- W + P D
    phase end       M <- [M, leading directions of the sketch]; moments and sketch begin anew

Continuous subspace optimisation (arXiv 2505.11816); without M and turned moments it is GaLore. So
MᵀW stays as it was when the phase that M is of ended. Where this departs from the released code:

- The side can be chosen. Theirs is "out": the inner product of an old gradient and a step vanishes,
  but old inputs may come out otherwise. With "in", what W makes of the kept span of inputs stays;
  with "both", the moving directions are of the outputs, and what is kept is of either.
- Moments turn with the basis, a second moment by the squares of the cosines, simpler than LDAdam
  (arXiv 2410.16103) does it; in the code they stay, in directions that are there no more.
- `energy`, .98 there, is reached, not just missed, or one direction with most of it would be lost.
- M is made orthonormal again, and stays within `capacity`. Weight decay is within the subspace. All
  linear layers but the head are confined, theirs one of each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from treering.batch import Batch
from treering.config import Invalid
from treering.methods.updates.confined import consolidate, step, subspaces, turn
from treering.methods.updates.descent import Descent
from treering.methods.updates.subspace import Subspace
from treering.protocols import Learner, Metrics


@dataclass
class CoSO:
    """For the matrices of linear layers but the head; all other weights learn as ever. `rank`
    directions a step (0 is plain training, bit for bit), new ones every so many steps; `sketch`
    directions with which a phase is remembered, of which those with the share `energy` are kept.
    Before the phase `start` training is plain, but remembered.

    The optimizer's moments are of the size of the weights, and mostly zeros: they take no less
    memory than plain training. Whole matrices pass through each rank, one at a time.
    """

    rank: int
    sketch: int = 64
    every: int = 20
    energy: float = 0.5
    capacity: float = 0.5
    decay: float = 1.0
    side: str = "out"
    rotate: bool = True
    start: int = 0  # the phase's number; in a recipe its name

    def __post_init__(self) -> None:
        for name, least in (("rank", 0), ("sketch", 1), ("every", 1)):
            if getattr(self, name) < least:
                raise Invalid(f"update.{name} = {getattr(self, name)}: must be at least {least}")
        for name in ("energy", "capacity", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise Invalid(f"update.{name} = {getattr(self, name)}: must be in [0, 1]")
        if self.side not in ("in", "out", "both"):
            raise Invalid(f"update.side = {self.side!r}: must be 'in', 'out' or 'both'")
        self._spaces: dict[str, Subspace] = {}
        self._calls = 0  # since the phase began

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if self.rank == 0:
            return Descent()(learner, batch)
        metrics, confined = learner.backward(batch), batch.phase >= self.start
        self._begin(learner)
        flops = 0.0
        turned = True
        if self._calls % self.every == 0:
            rotate = confined and self.rotate
            cost, turned = turn(learner, self._spaces, self.decay, rotate=rotate)
            flops += cost
        self._calls += turned
        applied = step(learner, self._spaces) if confined else learner.apply()
        if confined:  # down twice and up once
            sizes = [learner.weights[name].numel() for name in self._spaces]
            flops += 6.0 * self.rank * sum(sizes)
        if batch.ends_phase:
            self._calls = 0
            begins = batch.phase + 1 >= self.start
            consolidate(learner, self._spaces, self.energy, anew=begins)
        flops += metrics.meta_flops
        return replace(metrics.stepped(applied), meta_flops=flops)

    def _begin(self, learner: Learner) -> None:
        if not self._spaces:
            self._spaces = subspaces(learner, self.side, self.rank, self.sketch, self.capacity)

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        """Bases and sketches; that of a weight without is empty."""
        if self.rank == 0:
            return {}
        self._begin(learner)
        named = {name: space.tensors for name, space in self._spaces.items()}
        kinds = dict.fromkeys(kind for tensors in named.values() for kind in tensors)
        return {
            kind: [named.get(name, {}).get(kind, torch.empty(0)) for name in learner.weights]
            for kind in kinds
        }

    def counters(self) -> dict[str, Any]:
        """`used`: the share of its rows' or columns' directions that each matrix has given up."""
        used = {
            name: [side.used / len(side.kept) for side in space.sides]
            for name, space in self._spaces.items()
        }
        return {"calls": self._calls, "used": used}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self._calls = int(counters["calls"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return {}
