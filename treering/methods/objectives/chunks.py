"""A linear head taken chunk by chunk: what every objective over logits needs for it.

Shape suffixes: N positions, D width, V vocabulary, n the positions of a chunk.
"""

from __future__ import annotations

import torch

ON_CPU, ON_DEVICE = 2**22, 2**27  # logits of a chunk: what a cache holds; what fills a device
LEAST = 256  # positions of a chunk: of fewer, adding the head's gradient up takes longer


def cast(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As autocast would have them."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def chunks(hidden_ND: torch.Tensor, head_VD: torch.Tensor) -> list[slice]:
    """Slices of positions, as many as fit."""
    logits = ON_CPU if hidden_ND.device.type == "cpu" else ON_DEVICE
    size = max(LEAST, logits // head_VD.shape[0])
    return [slice(at, at + size) for at in range(0, hidden_ND.shape[0], size)]


def losses_of(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(losses, log of the sum of exponentials), float32[chunk] each."""
    logits = logits.float()
    normalizer = logits.logsumexp(1)
    return normalizer - logits.gather(1, targets[:, None])[:, 0], normalizer


@torch.library.custom_op("treering::add_product", mutates_args={"to_VD"})
def add_product(to_VD: torch.Tensor, slope_nV: torch.Tensor, hidden_nD: torch.Tensor) -> None:
    """Add a chunk's part to the head's gradient, float32, at once and in place. A compiler that
    saw what this does would keep the products of all chunks, to add them all at the end."""
    to_VD.add_(slope_nV.t() @ hidden_nD)
