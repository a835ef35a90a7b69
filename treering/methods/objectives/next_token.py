"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from treering.methods.objectives.cross_entropy import linear_cross_entropy

Chunked = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float],
    tuple[torch.Tensor, torch.Tensor],
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
    """

    chunked: Chunked | None = linear_cross_entropy
    document_end: int | None = None
    z: float = 0.0

    def __call__(
        self, model: PreTrainedModel, tokens: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets, length = tokens[:, 1:].flatten(), tokens.shape[1] - 1
        each = (counts / length).repeat_interleave(length)
        if self.chunked is not None:
            hidden = model.base_model(**self._given(tokens)).last_hidden_state
            head = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
            total, losses = self.chunked(hidden.flatten(0, 1), head, targets, each, self.z)
        else:
            logits = self.logits(model, tokens).flatten(0, 1)
            losses = functional.cross_entropy(logits, targets, reduction="none")
            total = (each * losses).sum()
            if self.z:
                total = total + self.z * (each * logits.logsumexp(1) ** 2).sum()
        return total, losses.detach().view(len(tokens), -1).mean(dim=1)

    def logits(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
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
