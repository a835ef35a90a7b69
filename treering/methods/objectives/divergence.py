"""Divergence from a teacher's predictions, chunk by chunk: as in cross_entropy.py, no logits of a
whole batch exist, neither the teacher's nor the model's.

    T^2 * KL(p || q),  p = softmax(teacher's logits / T),  q = softmax(logits / T)

Its gradient by the logits is T * (q - p). The teacher comes first: it is what q must cover.

Shape suffixes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from treering.methods.objectives.chunks import add_product, cast, chunks


def linear_divergence(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    known_ND: torch.Tensor,
    their_head_VD: torch.Tensor,
    counts_N: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Sum of counts * divergences, float32[]; `known_ND` are the teacher's hidden states, which may
    have another width."""
    total: torch.Tensor = _Chunked.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_VD, known_ND, their_head_VD, counts_N, temperature
    )
    return total


def divergences(logits: torch.Tensor, theirs: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of each position, float32[N], from whole logits float32[N, V]."""
    ours, theirs = (logits / temperature).log_softmax(1), (theirs / temperature).log_softmax(1)
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        known_ND: torch.Tensor,
        their_head_VD: torch.Tensor,
        counts_N: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        kinds = hidden_ND.dtype, head_VD.dtype
        hidden_ND, head_VD, known_ND, their_head_VD = cast(
            hidden_ND, head_VD, known_ND, their_head_VD
        )
        found, to_hidden = [], []
        trained = ctx.needs_input_grad[1]
        shape = head_VD.shape if trained else (0,)  # a frozen head has no gradient
        to_head = torch.zeros(shape, dtype=torch.float32, device=head_VD.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for rows in chunks(hidden_ND, head_VD):
                logits = (hidden_ND[rows] @ head_VD.t()).float() / temperature
                theirs = (known_ND[rows] @ their_head_VD.t()).float() / temperature
                ours, theirs = logits.log_softmax(1), theirs.log_softmax(1)
                chances = theirs.exp()
                found.append((chances * (theirs - ours)).sum(1))
                slope = temperature * (ours.exp() - chances) * counts_N[rows, None]
                slope = slope.to(head_VD.dtype)
                to_hidden.append(slope @ head_VD)
                if trained:
                    add_product(to_head, slope, hidden_ND[rows])
        ctx.save_for_backward(torch.cat(to_hidden).to(kinds[0]), to_head.to(kinds[1]))
        return temperature**2 * (counts_N * torch.cat(found)).sum()

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor) -> tuple[Any, ...]:
        to_hidden, to_head = ctx.saved_tensors
        found = total * to_head if len(to_head) else None
        return total * to_hidden, found, None, None, None, None
