"""At the end of each phase what was learned goes into the frozen weights, and adapters begin anew.

    W <- W + scaling * B diag(w) A;  A is drawn anew, B = 0, moments are forgotten

The outputs stay as they were, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from treering.batch import Batch
from treering.methods.adapters.low_rank import LowRank
from treering.protocols import Learner, Metrics, Update


@dataclass
class Merging:
    """The inner update, and a merge after each phase; `begin` makes adapters new for a phase.
    The inner update must not carry weights from one phase to another: they have other bases."""

    inner: Update
    layers: Sequence[LowRank]
    begin: Callable[[Sequence[LowRank], int], None]
    merged: list[dict[str, float]] = field(default_factory=list)  # what each phase has added

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        metrics = self.inner(learner, batch)
        if batch.ends_phase:
            self.merged.append(measured(self.layers))
            for layer in self.layers:
                layer.merge()
            self.begin(self.layers, batch.phase + 1)
            learner.reset_optimizer()
        return metrics

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]:
        """The merged weights, and gates that are not trained, each at the place of its A."""
        inner = {f"inner.{name}": found for name, found in self.inner.state(learner).items()}
        own = {
            kind: [tensors.get(name, torch.empty(0)) for name in learner.weights]
            for kind, tensors in held(self.layers).items()
        }
        return own | inner

    def counters(self) -> dict[str, Any]:
        return {"merged": [*self.merged], "inner": self.inner.counters()}

    def restore(self, counters: Mapping[str, Any]) -> None:
        self.merged = list(counters["merged"])
        self.inner.restore(counters["inner"])

    def branches(self) -> dict[str, list[torch.Tensor]]:
        return self.inner.branches()


def held(layers: Sequence[LowRank]) -> dict[str, dict[str, torch.Tensor]]:
    """What merges change of the weights that are not trained: kind -> name of A -> tensor."""
    masks = {layer.name: layer.gate for layer in layers if layer.gate is not None}
    masks = {name: gate for name, gate in masks.items() if not gate.requires_grad}
    bases = {"base": {layer.name: layer.base.detach() for layer in layers}}
    return bases | ({"mask": masks} if masks else {})


@torch.no_grad()
def measured(layers: Sequence[LowRank]) -> dict[str, float]:
    """The mean rank of the layers, and the norm of what they add; waits for the device."""
    deltas = [layer.delta() for layer in layers]
    norm = torch.stack([delta.double().square().sum() for delta in deltas]).sum().sqrt()
    ranks = [
        len(layer.down) if layer.gate is None else int((layer.gate != 0).sum()) for layer in layers
    ]
    return {"rank": sum(ranks) / len(ranks), "norm": float(norm)}
