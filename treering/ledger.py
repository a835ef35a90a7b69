"""Tokens and FLOPs, charged to what spent them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from treering.batch import Batch
from treering.protocols import Metrics


@dataclass(frozen=True)
class Ledger:
    """What a run has spent: predicted tokens (fresh, replayed) and FLOPs by purpose."""

    fresh_tokens: int = 0
    replayed_tokens: int = 0
    training_flops: float = 0.0
    meta_flops: float = 0.0
    evaluation_flops: float = 0.0
    probe_flops: float = 0.0
    anneal_tokens: int = 0
    anneal_flops: float = 0.0

    @property
    def tokens(self) -> int:
        """All trained tokens."""
        return self.fresh_tokens + self.replayed_tokens

    @property
    def flops(self) -> float:
        """FLOPs of learning; evaluation, probes and annealed branches are charged apart."""
        return self.training_flops + self.meta_flops

    def passed(self, every: int | None, before: Ledger) -> bool:
        """Whether all trained tokens have passed a multiple of `every` since the ledger before."""
        return every is not None and self.tokens // every > before.tokens // every

    def purposes(self) -> dict[str, float]:
        """FLOPs by what they were spent on, as records have them."""
        return {name: value for name, value in asdict(self).items() if name.endswith("_flops")}

    def step(self, batch: Batch, metrics: Metrics) -> Ledger:
        """The ledger after one more step."""
        return replace(
            self,
            fresh_tokens=self.fresh_tokens + batch.predicted - batch.replayed_tokens,
            replayed_tokens=self.replayed_tokens + batch.replayed_tokens,
            training_flops=self.training_flops + metrics.training_flops,
            meta_flops=self.meta_flops + metrics.meta_flops,
        )

    def evaluation(self, flops: float) -> Ledger:
        """The ledger after one more evaluation."""
        return replace(self, evaluation_flops=self.evaluation_flops + flops)

    def probe(self, flops: float) -> Ledger:
        """The ledger after one more probe."""
        return replace(self, probe_flops=self.probe_flops + flops)

    def annealed(self, spent: Mapping[str, Any]) -> Ledger:
        """The ledger after one more branch, by what its scores say that it spent."""
        return replace(
            self,
            anneal_tokens=self.anneal_tokens + spent["tokens_beyond"],
            anneal_flops=self.anneal_flops + spent["flops_beyond"],
            evaluation_flops=self.evaluation_flops + spent["evaluation_flops_beyond"],
        )


def flops_per_token(parameters: int, *, layers: int, width: int, length: int) -> float:
    """Training FLOPs of one predicted token, forward and backward.

    6 for each parameter that multiplies (input embeddings only look up, unless they are tied to
    the head), and 12 * layers * width * length for attention counted in full, without halving
    for causality: the convention of PaLM's appendix B.
    """
    return 6.0 * parameters + 12.0 * layers * width * length
