"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from treering.methods.objectives.cross_entropy import linear_cross_entropy
from treering.methods.objectives.divergence import divergences, linear_divergence
from treering.protocols import Teacher

Chunked = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float],
    tuple[torch.Tensor, torch.Tensor],
]

Divergence = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor
]


@dataclass(frozen=True)
class NextToken:
    """Mean cross-entropy of each row's `length` predictions, in nats/token, in float32.

    `chunked` takes hidden states and head, so that the logits of a whole batch never exist. That is
    right for a model whose logits are their product and nothing else; None is for the others, and
    `build` finds out which are.

    With `document_end`, the id that ends a document, each document of a row is by itself: positions
    begin anew, and nothing is seen of another. The end of one is the beginning of the next, from
    which its first token is predicted, so that a document's loss does not depend on its neighbours.

    `z` * logsumexp(logits)^2 is added to what is minimised, not to the losses: it keeps logits from
    drifting (PaLM, arXiv 2204.02311, section 5, with 1e-4).

    A teacher adds T^2 * KL(teacher || model), both at the `temperature` T (learning without
    forgetting, arXiv 1606.09282, and Hinton et al. 2015, whose T^2 this is).
    """

    chunked: Chunked | None = linear_cross_entropy
    document_end: int | None = None
    z: float = 0.0
    temperature: float = 1.0
    divergence: Divergence = linear_divergence

    def __call__(
        self,
        model: PreTrainedModel,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        teacher: Teacher | None = None,
        taught: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets, length = tokens[:, 1:].flatten(), tokens.shape[1] - 1
        each = (counts / length).repeat_interleave(length)
        given = self._given(tokens)
        if self.chunked is not None:
            hidden = model.base_model(**given).last_hidden_state.flatten(0, 1)
            head = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
            total, losses = self.chunked(hidden, head, targets, each, self.z)
        else:
            logits = model(**given).logits.float().flatten(0, 1)
            losses = functional.cross_entropy(logits, targets, reduction="none")
            total = (each * losses).sum()
            if self.z:
                total = total + self.z * (each * logits.logsumexp(1) ** 2).sum()
        if teacher is not None and taught is not None:
            known, their_head = teacher(given, self.chunked is None)
            known, each = known.flatten(0, 1), (taught / length).repeat_interleave(length)
            if self.chunked is not None:
                more = self.divergence(hidden, head, known, their_head, each, self.temperature)
            else:
                more = (each * divergences(logits, known.float(), self.temperature)).sum()
            total = total + more
        return total, losses.detach().view(len(tokens), -1).mean(dim=1)

    def logits(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of all predictions, float32[n, length, vocabulary]."""
        logits: torch.Tensor = model(**self._given(tokens)).logits
        return logits.float()

    def _given(self, tokens: torch.Tensor) -> dict[str, Any]:
        """What the model is called with."""
        inputs = tokens[:, :-1]
        given = {"input_ids": inputs, "use_cache": False}
        if self.document_end is not None:  # transformers masks by positions that begin anew
            given["position_ids"] = positions(inputs, self.document_end)
        return given


def positions(inputs: torch.Tensor, document_end: int) -> torch.Tensor:
    """The position of each token in its document, which begins with the end of the one before;
    int64[n, length]. That of a row's first document is counted from the row's beginning."""
    index = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    begins = torch.where(inputs == document_end, index, 0).cummax(dim=1).values
    return index - begins
