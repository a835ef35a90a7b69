"""Dark experience replay: of a sample that is seen again, what was predicted when it was first seen
(DER and DER++, arXiv 2004.07211, equations 5 and 6).

The paper keeps all logits; of a language model's the likeliest are kept, and what all others had
together: KL(p || q) over K + 1 outcomes. Its gradient by the logits is softmax - target, where the
others' target is shared as softmax shares it. Where DER++ draws twice, one draw has both terms.

Shape suffixes: N positions, D width, V vocabulary, K tokens that are kept.
"""

from __future__ import annotations

from typing import Any

import torch

from treering.methods.objectives.chunks import add_product, cast, chunks, losses_of

Parts = tuple[torch.Tensor, ...]


def linear_der(
    hidden_ND: torch.Tensor,
    head_VD: torch.Tensor,
    targets_N: torch.Tensor,
    counts_2N: torch.Tensor,
    recorded: tuple[torch.Tensor, torch.Tensor],
    z: float,
) -> Parts:
    """(sum of counts[0] * (losses + z * logsumexp^2) + counts[1] * divergences, float32[]; losses
    in nats, float32[N]; ids int64[N, K] and log-chances float32[N, K] of now, as `recorded` are of
    then). Only the sum has a gradient."""
    args = hidden_ND, head_VD, targets_N, counts_2N, *recorded, z
    found: Parts = _Chunked.apply(*args)  # type: ignore[no-untyped-call]
    return found[:4]


def by_logits(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    counts_2N: torch.Tensor,
    recorded: tuple[torch.Tensor, torch.Tensor],
    z: float,
) -> Parts:
    """The same from whole logits, for models whose logits are not hidden states times head."""
    losses, normalizers = losses_of(logits_NV, targets_N)
    logs_NV = logits_NV.float() - normalizers[:, None]
    ids, chances, tail = outcomes(*recorded)
    total = (counts_2N[0] * (losses + z * normalizers**2)).sum()
    total = total + (counts_2N[1] * _divergences(logs_NV, ids, chances, tail)).sum()
    top = logs_NV.detach().topk(ids.shape[1], dim=1)
    return total, losses.detach(), top.indices, top.values


def outcomes(ids_NK: torch.Tensor, logs_NK: torch.Tensor) -> Parts:
    """(ids int64[N, K], their chances, that of all others float32[N]), which sum to 1 although what
    was recorded is rounded."""
    chances = logs_NK.float().exp()
    kept = chances.sum(1, keepdim=True)
    return ids_NK.long(), chances / kept.clamp(min=1), (1 - kept[:, 0]).clamp(min=0)


def _divergences(logs_NV: Any, ids: Any, chances: Any, tail: Any) -> torch.Tensor:
    """Of each position, float32[N]."""
    kept = logs_NV.gather(1, ids)
    others = logs_NV.scatter(1, ids, -torch.inf).logsumexp(1)  # 1 - the top's would round to 0
    p, q = torch.cat([chances, tail[:, None]], 1), torch.cat([kept, others[:, None]], 1)
    each: torch.Tensor = torch.special.xlogy(p, p) - p * q
    return each.sum(1)


def _slope(
    logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor, recorded: Any, z: float
) -> torch.Tensor:
    """The gradient of `by_logits`' sum by the logits."""
    ids, chances, tail = outcomes(*recorded)
    normalizers = logits.logsumexp(1, keepdim=True)
    now = (logits - normalizers).exp()
    others = now.scatter(1, ids, 0.0)
    shares = tail[:, None] * others / others.sum(1, keepdim=True).clamp(min=1e-37)
    is_target = torch.zeros_like(now).scatter(1, targets[:, None], 1.0)
    slope: torch.Tensor = counts[0][:, None] * (now * (1 + 2 * z * normalizers) - is_target)
    return slope + counts[1][:, None] * (now - shares.scatter(1, ids, chances))


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden_ND: torch.Tensor,
        head_VD: torch.Tensor,
        targets_N: torch.Tensor,
        counts_2N: torch.Tensor,
        ids_NK: torch.Tensor,
        logs_NK: torch.Tensor,
        z: float,
    ) -> Parts:
        kinds = hidden_ND.dtype, head_VD.dtype
        hidden_ND, head_VD = cast(hidden_ND, head_VD)
        to_head = torch.zeros(head_VD.shape, dtype=torch.float32, device=head_VD.device)
        found: list[Parts] = []
        with torch.autocast(hidden_ND.device.type, enabled=False):
            for rows in chunks(hidden_ND, head_VD):
                logits, wanted = (hidden_ND[rows] @ head_VD.t()).float(), targets_N[rows]
                then, counts = (ids_NK[rows], logs_NK[rows]), counts_2N[:, rows]
                total, *rest = by_logits(logits, wanted, counts, then, z)
                slope = _slope(logits, wanted, counts, then, z).to(head_VD.dtype)
                add_product(to_head, slope, hidden_ND[rows])
                found.append((total[None], *rest, slope @ head_VD))
        total, *rest, to_hidden = (torch.cat(parts) for parts in zip(*found, strict=True))
        return total.sum(), *rest, to_hidden.to(kinds[0]), to_head.to(kinds[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Parts) -> None:
        ctx.save_for_backward(*output[4:])
        ctx.mark_non_differentiable(*output[1:])

    @staticmethod
    def backward(ctx: Any, total: torch.Tensor, *_: torch.Tensor) -> tuple[Any, ...]:
        to_hidden, to_head = ctx.saved_tensors
        return total * to_hidden, total * to_head, None, None, None, None, None
