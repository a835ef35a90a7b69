"""CoDyRA: LoRA whose rank directions are weighed by gates, and thinned out.

    delta = B diag(w) A;  after each step  w <- sign(w) * max(|w| - kappa, 0)

The proximal step of lambda * ||w||_1 (arXiv 2412.01004). In the first half of a phase kappa is 0,
then it rises in 50 stages. At the phase's end directions whose gate is 0 add nothing to what is
merged, and adapters begin anew. Where this departs from the released code, and why:

- Its threshold is three edits in place, of which the later see what the earlier wrote: all within
  2 kappa becomes 0. Here it is the formula.
- kappa follows the learning rate, as a proximal step's does; `prox = "fixed"` is theirs.
- Gates begin at 1. Theirs, from N(0, 1), are `gates = "normal"`.

An Adam step is no longer than the rate. A threshold above 1 outruns it: which gates stay is then
decided by where they began, and of theirs, with no signal at all, about half do. So a null control
belongs to each result: `kept` directions a layer on average, drawn at random, without gates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from treering.config import Invalid
from treering.methods.adapters.insertion import insert
from treering.methods.adapters.lora import check
from treering.methods.adapters.low_rank import LowRank, low_rank
from treering.methods.adapters.merging import Merging
from treering.methods.adapters.selecting import Selecting
from treering.protocols import Update
from treering.rng import generator
from treering.spread import fill

STAGES = 50  # in which the threshold rises


@dataclass(frozen=True)
class CoDyRA:
    """`threshold` is what a gate loses at a step at most, times the learning rate: lambda (0 is
    LoRA, bit for bit); no gate loses any in the share `dense` of a phase. For the rest see LoRA."""

    rank: int
    threshold: float
    alpha: int | None = None
    targets: tuple[str, ...] = ()
    merge: str = "phase"
    dense: float = 0.5
    prox: str = "rate"
    gates: str = "ones"
    kept: float | None = None

    def __post_init__(self) -> None:
        check(self.rank, self.alpha, self.merge)
        if self.threshold < 0:
            raise Invalid(f"adapter.threshold = {self.threshold}: must not be negative (0 = off)")
        if not 0 <= self.dense <= 1:
            raise Invalid(f"adapter.dense = {self.dense}: must be in [0, 1]")
        if self.prox not in ("rate", "fixed"):
            raise Invalid(f"adapter.prox = {self.prox!r}: must be 'rate' or 'fixed'")
        if self.gates not in ("ones", "normal"):
            raise Invalid(f"adapter.gates = {self.gates!r}: must be 'ones' or 'normal'")
        if self.kept is not None and not 0 < self.kept <= self.rank:
            raise Invalid(f"adapter.kept = {self.kept}: must be above 0, and at most the rank")

    def insert(self, model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
        """Into a model, the weights of whose linear layers are `names`."""
        gates = None if self.threshold == 0 and self.kept is None else self.kept is None
        insert(model, names, self.rank, self.alpha, self.targets, gates)
        self.begin(low_rank(model), seed, 0)

    def begin(self, layers: Sequence[LowRank], seed: int, phase: int) -> None:
        """New adapters for a phase, and which of their directions count."""
        mask = generator(seed, "kept", phase).permutation(self.rank * len(layers))
        for place, layer in enumerate(layers):
            layer.begin(seed, phase)
            if layer.gate is None:
                continue
            if self.kept is not None:
                own = mask[place * self.rank : (place + 1) * self.rank]
                gates = (own < round(self.kept * len(layers))).astype(np.float64)
            elif self.gates == "normal":
                gates = generator(seed, "gates", phase, layer.name).standard_normal(self.rank)
            else:
                continue
            with torch.no_grad():
                fill(layer.gate, torch.tensor(gates).to(layer.gate))

    def around(
        self, inner: Update, layers: Sequence[LowRank], seed: int, steps: Sequence[int]
    ) -> Update:
        """The update of a run whose phases have so many steps."""
        if self.threshold and self.kept is None:
            inner = Selecting(inner, layers, self.kappa, steps)
        if self.merge == "end":
            return inner
        return Merging(inner, layers, lambda each, phase: self.begin(each, seed, phase))

    def kappa(self, rate: float, step: int, steps: int) -> float:
        """What a gate loses after a phase's step, counted from 0."""
        sparse = steps * (1 - self.dense)
        stage = int(STAGES * max(0.0, step - steps * self.dense) / sparse) if sparse else 0
        highest = self.threshold * (rate if self.prox == "rate" else 1.0)
        return highest * min(stage / (STAGES - 1), 1.0)
