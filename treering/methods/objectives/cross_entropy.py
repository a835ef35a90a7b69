"""Cross-entropy of a linear head, chunk by chunk: the logits of a whole batch never exist.

Each chunk's gradient is made in the forward pass, while its logits are at hand, so nothing is
computed twice; this needs to know beforehand what each position counts in the total. It is the way
of Liger's fused kernel (arXiv 2410.10989, section 3.2), in plain PyTorch that compiles.

Shape suffixes: N positions, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch

from treering.methods.objectives.chunks import add_product, cast, chunks, losses_of


def linear_cross_entropy(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    counts_N: torch.Tensor,
    z: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of counts * (losses + z * logsumexp^2), float32[]; losses in nats, float32[N], without
    gradient).

    Products are in autocast's precision, the losses and the sum over positions of the head's
    gradient in fp32.
    """
    if torch.is_grad_enabled():
        found: tuple[torch.Tensor, torch.Tensor] = _Chunked.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head_VD, targets_N, counts_N, z
        )
        return found
    hidden_ND, head_VD = cast(hidden_ND, head_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        parts = [
            losses_of(hidden_ND[rows] @ head_VD.t(), targets_N[rows])
            for rows in chunks(hidden_ND, head_VD)
        ]
    losses, normalizers = (torch.cat(found) for found in zip(*parts, strict=True))
    return _total(counts_N, losses, normalizers, z), losses


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        targets_N: torch.Tensor,
        counts_N: torch.Tensor,
        z: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kinds = hidden_ND.dtype, head_VD.dtype
        hidden_ND, head_VD = cast(hidden_ND, head_VD)
        ids_V = torch.arange(head_VD.shape[0], device=head_VD.device)
        all_losses, normalizers, to_hidden = [], [], []
        trained = ctx.needs_input_grad[1]
        shape = head_VD.shape if trained else (0,)  # a frozen head has no gradient
        to_head = torch.zeros(shape, dtype=torch.float32, device=head_VD.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for rows in chunks(hidden_ND, head_VD):
                logits = (hidden_ND[rows] @ head_VD.t()).float()
                losses, normalizer = losses_of(logits, targets_N[rows])
                all_losses.append(losses)
                normalizers.append(normalizer)
                chances = torch.exp(logits - normalizer[:, None])
                if z:
                    chances = chances * (1 + 2 * z * normalizer[:, None])
                is_target = (ids_V == targets_N[rows, None]).float()
                slope = ((chances - is_target) * counts_N[rows, None]).to(head_VD.dtype)
                to_hidden.append(slope @ head_VD)
                if trained:
                    add_product(to_head, slope, hidden_ND[rows])
        losses = torch.cat(all_losses)
        ctx.save_for_backward(torch.cat(to_hidden).to(kinds[0]), to_head.to(kinds[1]))
        ctx.mark_non_differentiable(losses)
        return _total(counts_N, losses, torch.cat(normalizers), z), losses

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        to_hidden, to_head = ctx.saved_tensors
        found = total * to_head if len(to_head) else None
        return total * to_hidden, found, None, None, None


def _total(
    counts: torch.Tensor, losses: torch.Tensor, normalizers: torch.Tensor, z: float
) -> torch.Tensor:
    total = (counts * losses).sum()
    return total + z * (counts * normalizers**2).sum() if z else total
