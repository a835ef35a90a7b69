"""Attention within whole windows: by a kernel that knows what is causal, without a mask.

In a compiled graph transformers cannot see that positions do not begin anew within a row, and makes
a mask of length x length, with which there is no flash attention; out of a graph it looks, which
waits for the device. A model whose layers see all that came before needs neither. Of documents in a
window it is given the mask: on CUDA in blocks, of which flex attention leaves out the empty ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME, THEIRS = "treering", "sdpa"
NARROWEST = 16  # heads of flex attention's kernels


def attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None, **given: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """As transformers calls it: query float[n, heads, length, width of a head]."""
    of = module, query, key, value
    found: tuple[torch.Tensor, torch.Tensor | None]
    if isinstance(attention_mask, BlockMask):
        found = flex_attention_forward(*of, attention_mask, **given)
    else:
        found = sdpa_attention_forward(*of, attention_mask, **given)
    return found


AttentionInterface.register(NAME, attend)  # and no maker of masks of that name


def own(model: PreTrainedModel, length: int) -> bool:
    """Let a model attend so, if it may in windows of `length`: whether it does now."""
    if model.config._attn_implementation == THEIRS and sees_all(model, length):
        model.config._attn_implementation = NAME
    return is_own(model)


def is_own(model: PreTrainedModel) -> bool:
    """Whether a model attends so."""
    return bool(model.config._attn_implementation == NAME)


def back(model: PreTrainedModel) -> None:
    """Let a model attend as transformers has it."""
    if is_own(model):
        model.config._attn_implementation = THEIRS


@contextmanager
def theirs(model: PreTrainedModel) -> Iterator[None]:
    """As transformers has it for a while, for callers with masks of their own."""
    was = is_own(model)
    back(model)
    try:
        yield
    finally:
        if was:
            model.config._attn_implementation = NAME


def sees_all(model: PreTrainedModel, length: int) -> bool:
    """Whether every layer sees all that came before, in windows of `length`, by the config."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return set(kinds) == {"full_attention"}
    names = ("window", "chunk")  # sliding_window, attention_window, window_size, ...
    sizes = [v for name, v in text.to_dict().items() if any(part in name for part in names)]
    return not any(isinstance(size, int) and 0 < size < length for size in sizes)


def positions(inputs: torch.Tensor, document_end: int) -> torch.Tensor:
    """The position of each token in its document, which begins with the end of the one before;
    int64[n, length]. That of a row's first document is counted from the row's beginning."""
    index = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    begins = torch.where(inputs == document_end, index, 0).cummax(dim=1).values
    return index - begins


def within(inputs: torch.Tensor, document_end: int, *, blocks: bool) -> torch.Tensor | BlockMask:
    """What each token sees: those before it in its document, and itself; bool[n, 1, length,
    length], or as much in `blocks`."""
    number = (inputs == document_end).cumsum(1)
    if not blocks:
        same = number[:, None, :, None] == number[:, None, None, :]
        return same.tril()

    def sees(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (query >= key) & (number[row, query] == number[row, key])

    n, length = inputs.shape
    return create_block_mask(sees, n, None, length, length, device=inputs.device)


def by_blocks(model: PreTrainedModel, device: torch.device) -> bool:
    """Whether a model attends within documents by flex attention: on CUDA, as on a CPU it has no
    backward pass; where heads are wide enough for its kernels, and nothing is dropped out."""
    text = model.config.get_text_config()
    wide = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    dropped = [getattr(text, name, 0.0) for name in ("attention_dropout", "attn_pdrop")]
    return bool(
        device.type == "cuda"
        and model._supports_flex_attn
        and wide >= NARROWEST
        and not any(dropped)
    )
