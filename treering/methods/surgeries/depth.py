"""Depth up-scaling: some layers are doubled.

    block   L[0:b] + copy(L[a:b]) + L[b:n]
    each    L[0:a] + (l, copy(l) for each l in L[a:b]) + L[b:n]

Yi-9B is Yi-6B, of 32 layers, by `block` with the window [12, 28] (arXiv 2403.04652, section 7.3).
SOLAR's L[0:24] + L[8:32] of 32 layers (arXiv 2312.15166) is `block` with the window [8, 24]; the
window [0, n] stacks the model on itself. With `identity` what the copies add to the residual stream
is zero at first (LLaMA Pro, arXiv 2401.02415): the model computes what it did before, bit for bit.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel

from treering.config import Invalid
from treering.methods.surgeries.rebuilt import rebuilt, tensors
from treering.model import blocks
from treering.protocols import Origin

# What transformers calls projections whose product is added to the residual stream.
WRITERS = {"o_proj", "out_proj", "c_proj", "dense", "down_proj", "dense_4h_to_h", "fc2", "fc_out",
           "wo", "w2"}  # fmt: skip


@dataclass(frozen=True)
class Depth:
    """`window` = [a, b]: the layers a to b - 1, counted from 0, are doubled."""

    window: tuple[int, ...]
    order: str = "block"
    identity: bool = False
    by_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.window) != 2 or not 0 <= self.window[0] < self.window[1]:
            raise Invalid(f"surgeries.window = {list(self.window)}: two numbers, as [12, 28]")
        if self.order not in ("block", "each"):
            raise Invalid(f"surgeries.order = {self.order!r}: must be 'block' or 'each'")

    def layers(self, count: int) -> list[tuple[int, bool]]:
        """For each layer of the deeper model: which of `count` it is, and whether as a copy."""
        a, b = self.window
        if b > count:
            raise Invalid(f"surgeries.window = [{a}, {b}]: the model has {count} layers")
        kept = [(i, False) for i in range(count)]
        copies = [(i, True) for i in range(a, b)]
        if self.order == "each":
            both = [one for pair in zip(kept[a:b], copies, strict=True) for one in pair]
            return kept[:a] + both + kept[b:]
        return kept[:b] + copies + kept[b:]

    def __call__(self, model: PreTrainedModel, origin: Origin) -> PreTrainedModel:
        """Raises Invalid for a model whose layers are not one list of one kind, or, with
        `identity`, whose copies cannot be made to add nothing."""
        old, place = tensors(model), _place(model)
        layers = self.layers(len(blocks(model)))
        settings = copy.deepcopy(model.config)
        text = settings.get_text_config()
        count = text.num_hidden_layers
        text.num_hidden_layers = len(layers)
        for key, value in text.to_dict().items():  # layer_types and the like
            if "layer" in key and isinstance(value, list) and len(value) == count:
                setattr(text, key, [value[i] for i, _ in layers])

        def weight(name: str) -> torch.Tensor:
            if not name.startswith(f"{place}."):
                return old[name]
            number, _, rest = name.removeprefix(f"{place}.").partition(".")
            i, copied = layers[int(number)]
            tensor = old[f"{place}.{i}.{rest}"]
            if copied and self.identity and WRITERS & set(rest.split(".")[-2:]):
                return torch.zeros_like(tensor)
            return tensor.clone() if copied else tensor

        made = rebuilt(model, settings, weight)
        some = next(made.parameters()).data
        if self.identity and not some.is_meta and type(some) is torch.Tensor:  # it has values
            _check(model, made)
        return made


def _place(model: PreTrainedModel) -> str:
    """The name of the list of layers."""
    every = {id(block) for block in blocks(model)}
    names = {name.rpartition(".")[0] for name, part in model.named_modules() if id(part) in every}
    if len(names) != 1 or len(every) != model.config.get_text_config().num_hidden_layers:
        raise Invalid(f"surgeries: the layers of {type(model).__name__} are not one list; "
                      "kind = 'depth' cannot double them")  # fmt: skip
    return str(names.pop())


@torch.no_grad()
def _check(model: PreTrainedModel, made: PreTrainedModel) -> None:
    """Raises Invalid where the deeper model has other logits: asked of both."""
    logits = []
    for each in (model, made):
        was = each.training
        logits.append(each.eval()(input_ids=torch.arange(8)[None], use_cache=False).logits)  # type: ignore[no-untyped-call]
        each.train(was)
    if not torch.equal(*logits):
        raise Invalid(f"surgeries.identity = true: with copied layers {type(model).__name__} does "
                      "not compute what it did before; use identity = false")  # fmt: skip
