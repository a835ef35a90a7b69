"""Divergence from a teacher's predictions beside the cross-entropy, chunk by chunk: as in
cross_entropy.py, no logits of a whole batch exist, neither the teacher's nor the model's, and the
model's are made once for both.

    T^2 * KL(p || q),  p = softmax(teacher's logits / T),  q = softmax(logits / T)

Its gradient by the logits is T * (q - p). The teacher comes first: it is what q must cover (TRACE's
LwF has the two the other way round).

Shape suffixes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from treering.methods.objectives.chunks import add_product, cast, chunks, losses_of

Pair = tuple[torch.Tensor, torch.Tensor]


def linear_distillation(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    counts_2N: torch.Tensor,
    known: Pair,
    temperature: float,
    z: float = 0.0,
) -> Pair:
    """(sum of counts[0] * (losses + z * logsumexp^2) + counts[1] * divergences, float32[]; losses
    in nats, float32[N], without gradient). `known`: the teacher's hidden states and head, which may
    have another width."""
    args = hidden_ND, head_VD, targets_N, counts_2N, *known, (temperature, z)
    total, losses, *_ = _Chunked.apply(*args)  # type: ignore[no-untyped-call]
    return total, losses


def by_logits(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    counts_2N: torch.Tensor,
    theirs_NV: torch.Tensor,
    temperature: float,
    z: float = 0.0,
) -> Pair:
    """The same from whole logits, for models whose logits are not hidden states times head."""
    losses, normalizers = losses_of(logits_NV, targets_N)
    ours = (logits_NV.float() / temperature).log_softmax(1)
    theirs = (theirs_NV.float() / temperature).log_softmax(1)
    divergences = temperature**2 * (theirs.exp() * (theirs - ours)).sum(1)
    total = (counts_2N[0] * (losses + z * normalizers**2)).sum()
    return total + (counts_2N[1] * divergences).sum(), losses.detach()


def _slope(
    logits: torch.Tensor,
    targets: torch.Tensor,
    counts: torch.Tensor,
    theirs: torch.Tensor,
    temperature: float,
    z: float,
) -> torch.Tensor:
    """The gradient of `by_logits`' sum by the logits."""
    normalizers = logits.logsumexp(1, keepdim=True)
    chances = (logits - normalizers).exp() * (1 + 2 * z * normalizers)
    is_target = (torch.arange(logits.shape[1], device=logits.device) == targets[:, None]).float()
    apart = (logits / temperature).softmax(1) - (theirs / temperature).softmax(1)
    slope: torch.Tensor = counts[0][:, None] * (chances - is_target)
    return slope + temperature * counts[1][:, None] * apart


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        targets_N: torch.Tensor,
        counts_2N: torch.Tensor,
        known_ND: torch.Tensor,
        their_head_VD: torch.Tensor,
        how: tuple[float, float],
    ) -> tuple[torch.Tensor, ...]:
        kinds, trained = (hidden_ND.dtype, head_VD.dtype), head_VD.requires_grad
        hidden_ND, head_VD, known_ND, their_head_VD = cast(
            hidden_ND, head_VD, known_ND, their_head_VD
        )
        totals, every, to_hidden = [], [], []
        shape = head_VD.shape if trained else (0,)  # a frozen head has no gradient
        to_head = torch.zeros(shape, dtype=torch.float32, device=head_VD.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for rows in chunks(hidden_ND, head_VD):
                logits = (hidden_ND[rows] @ head_VD.t()).float()
                theirs = (known_ND[rows] @ their_head_VD.t()).float()
                asked = logits, targets_N[rows], counts_2N[:, rows], theirs, *how
                total, losses = by_logits(*asked)
                totals.append(total)
                every.append(losses)
                slope = _slope(*asked).to(head_VD.dtype)
                to_hidden.append(slope @ head_VD)
                if trained:
                    add_product(to_head, slope, hidden_ND[rows])
        gradients = torch.cat(to_hidden).to(kinds[0]), to_head.to(kinds[1])
        return torch.stack(totals).sum(), torch.cat(every), *gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        ctx.save_for_backward(*output[2:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        to_hidden, to_head = ctx.saved_tensors
        found = total * to_head if len(to_head) else None
        return total * to_hidden, found, None, None, None, None, None
