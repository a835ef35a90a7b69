"""Next-token prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class NextToken:
    """Mean cross-entropy of each row's `length` predictions, in nats/token, in float32."""

    def __call__(self, model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits.float()
        losses = functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
        )
        return losses.view(len(tokens), -1).mean(dim=1)
