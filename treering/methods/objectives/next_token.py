"""Next-token prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from treering.methods.objectives.cross_entropy import linear_cross_entropy

Chunked = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]
]


@dataclass(frozen=True)
class NextToken:
    """Mean cross-entropy of each row's `length` predictions, in nats/token, in float32.

    `chunked` takes hidden states and head, so that the logits of a whole batch never exist. That is
    right for a model whose logits are their product and nothing else; None is for the others, and
    `build` finds out which are.
    """

    chunked: Chunked | None = linear_cross_entropy

    def __call__(
        self, model: PreTrainedModel, tokens: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = tokens[:, :-1], tokens[:, 1:].flatten()
        each = (counts / inputs.shape[1]).repeat_interleave(inputs.shape[1])
        if self.chunked is not None:
            hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
            head = model.get_output_embeddings().weight  # type: ignore[no-untyped-call]
            total, losses = self.chunked(hidden.flatten(0, 1), head, targets, each)
        else:
            logits = model(input_ids=inputs, use_cache=False).logits.float()
            losses = functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none")
            total = (each * losses).sum()
        return total, losses.detach().view(len(tokens), -1).mean(dim=1)
