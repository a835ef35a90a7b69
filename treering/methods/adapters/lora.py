"""LoRA: two thin matrices beside each frozen one are all that is trained (arXiv 2106.09685).

W x + alpha / rank * B A x;  A drawn as a linear layer's weights are, B = 0
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from treering.config import Invalid
from treering.methods.adapters.insertion import insert
from treering.methods.adapters.low_rank import LowRank, low_rank
from treering.methods.adapters.merging import Merging
from treering.protocols import Update


@dataclass(frozen=True)
class LoRA:
    """`alpha` absent: the rank. `targets` are the last parts of layers' names, as "q_proj"; none
    stands for all linear layers but the head. What was learned is merged at the "end" of the run,
    in its export, or after each "phase", with new adapters for the next."""

    rank: int
    alpha: int | None = None
    targets: tuple[str, ...] = ()
    merge: str = "end"

    def __post_init__(self) -> None:
        check(self.rank, self.alpha, self.merge)

    def insert(self, model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
        """Into a model, the weights of whose linear layers are `names`."""
        insert(model, names, self.rank, self.alpha, self.targets)
        begin(low_rank(model), seed, 0)

    def around(
        self, inner: Update, layers: Sequence[LowRank], seed: int, steps: Sequence[int]
    ) -> Update:
        """The update of a run whose phases have so many steps."""
        if self.merge == "end":
            return inner
        return Merging(inner, layers, lambda each, phase: begin(each, seed, phase))


def begin(layers: Sequence[LowRank], seed: int, phase: int) -> None:
    """New adapters for a phase."""
    for layer in layers:
        layer.begin(seed, phase)


def check(rank: int, alpha: int | None, merge: str) -> None:
    """Raises Invalid where one of them is out of range."""
    if rank < 1:
        raise Invalid(
            f"adapter.rank = {rank}: must be at least 1; leave [adapter] out to train all weights"
        )
    if alpha is not None and alpha < 1:
        raise Invalid(
            f"adapter.alpha = {alpha}: must be at least 1, or nothing is added; leave it out for "
            "the rank"
        )
    if merge not in ("end", "phase"):
        raise Invalid(f"adapter.merge = {merge!r}: must be 'end' or 'phase'")
