"""Tokens and FLOPs, charged to what spent them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Ledger:
    """What a run has spent: predicted tokens (fresh, replayed) and FLOPs by purpose."""

    fresh_tokens: int = 0
    replayed_tokens: int = 0
    training_flops: float = 0.0
    meta_flops: float = 0.0
    evaluation_flops: float = 0.0

    @property
    def tokens(self) -> int:
        """All trained tokens."""
        return self.fresh_tokens + self.replayed_tokens

    @property
    def flops(self) -> float:
        """FLOPs of learning; evaluation is charged apart."""
        return self.training_flops + self.meta_flops

    def step(self, *, fresh: int, replayed: int, training: float, meta: float) -> Ledger:
        """The ledger after one more step."""
        return replace(
            self,
            fresh_tokens=self.fresh_tokens + fresh,
            replayed_tokens=self.replayed_tokens + replayed,
            training_flops=self.training_flops + training,
            meta_flops=self.meta_flops + meta,
        )

    def evaluation(self, flops: float) -> Ledger:
        """The ledger after one more evaluation."""
        return replace(self, evaluation_flops=self.evaluation_flops + flops)


def flops_per_token(parameters: int, *, layers: int, width: int, length: int) -> float:
    """Training FLOPs of one predicted token, forward and backward.

    6 for each parameter that multiplies (input embeddings only look up, unless they are tied to
    the head), and 12 * layers * width * length for attention counted in full, without halving
    for causality: the convention of PaLM's appendix B.
    """
    return 6.0 * parameters + 12.0 * layers * width * length
