"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from treering import attention
from treering.methods.objectives import der, divergence
from treering.methods.objectives.cross_entropy import linear_cross_entropy
from treering.methods.objectives.divergence import Pair, linear_distillation
from treering.protocols import Known

Chunked = Callable[[Tensor, Tensor, Tensor, Tensor, float], Pair]

Distilled = Callable[[Tensor, Tensor, Tensor, Tensor, Pair, float, float], Pair]


@dataclass(frozen=True)
class NextToken:
    """Mean cross-entropy of each row's `length` predictions, in nats/token, in float32.

    `chunked` takes hidden states and head, so that the logits of a whole batch never exist. None is
    for models whose logits are not just their product; `objective` finds out which.

    With `document_end`, the id that ends a document, each document of a row is by itself: positions
    begin anew, and nothing is seen of another. The end of one is the beginning of the next, from
    which its first token is predicted, so that a document's loss does not depend on its neighbours.
    `blocks`: the mask of documents is one of blocks (`attention.by_blocks`).

    `z` * logsumexp(logits)^2 is added to what is minimised, not to the losses: it keeps logits from
    drifting (PaLM, arXiv 2204.02311, section 5, with 1e-4).

    A teacher adds T^2 * KL(teacher || model), both at the `temperature` T (learning without
    forgetting, arXiv 1606.09282, and Hinton et al. 2015, whose T^2 this is); see also der.py.
    """

    chunked: Chunked | None = linear_cross_entropy
    document_end: int | None = None
    z: float = 0.0
    temperature: float = 1.0
    distilled: Distilled = linear_distillation
    blocks: bool = False

    def __call__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        counts: Tensor,
        known: Known | None = None,
        taught: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        targets, rows, length = tokens[:, 1:].flatten(), len(tokens), tokens.shape[1] - 1
        each = (counts / length).repeat_interleave(length)
        taught = None if taught is None else (taught / length).repeat_interleave(length)
        given = self._given(model, tokens)
        found, head = self._called(model, given)
        now: list[Tensor] = []
        if taught is None or known is None:
            total, losses = self._alone(found, head, targets, each)
        elif isinstance(known, tuple):
            then = known[0].flatten(0, 1), known[1].flatten(0, 1)
            asked = targets, torch.stack([each, taught]), then, self.z
            if head is None:
                total, losses, *now = der.by_logits(found, *asked)
            else:
                total, losses, *now = der.linear_der(found, head, *asked)
        else:
            theirs, their_head = known(given, head is None)
            theirs, counts = theirs.flatten(0, 1), torch.stack([each, taught])
            how = self.temperature, self.z
            if head is None:
                total, losses = divergence.by_logits(found, targets, counts, theirs, *how)
            else:
                pair = theirs, their_head
                total, losses = self.distilled(found, head, targets, counts, pair, *how)
        now = [part.view(rows, length, -1) for part in now]
        return total, losses.detach().view(rows, -1).mean(1), *now

    def _alone(self, found: Tensor, head: Tensor | None, targets: Tensor, counts: Tensor) -> Pair:
        """(sum of counts * (losses + z * logsumexp^2); losses) without a teacher."""
        if self.chunked and head is not None:
            return self.chunked(found, head, targets, counts, self.z)
        losses = functional.cross_entropy(found.float(), targets, reduction="none")
        total = (counts * losses).sum()
        if self.z:
            total = total + self.z * (counts * found.float().logsumexp(1) ** 2).sum()
        return total, losses

    def _called(
        self, model: PreTrainedModel, given: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """(hidden states [N, D], head [V, D]), or (logits [N, V], None)."""
        if self.chunked is None:
            return model(**given).logits.flatten(0, 1), None
        hidden = model.base_model(**given).last_hidden_state.flatten(0, 1)
        return hidden, model.get_output_embeddings().weight  # type: ignore[no-untyped-call]

    def logits(self, model: PreTrainedModel, tokens: Tensor) -> Tensor:
        """The logits of all predictions, float32[n, length, vocabulary]."""
        logits: Tensor = model(**self._given(model, tokens)).logits
        return logits.float()

    def _given(self, model: PreTrainedModel, tokens: Tensor) -> dict[str, Any]:
        """What the model is called with."""
        inputs = tokens[:, :-1]
        given = {"input_ids": inputs, "use_cache": False}
        if self.document_end is not None:  # else transformers masks by positions that begin anew
            given["position_ids"] = attention.positions(inputs, self.document_end)
            if attention.is_own(model):
                mask = attention.within(inputs, self.document_end, blocks=self.blocks)
                given["attention_mask"] = mask
        return given
