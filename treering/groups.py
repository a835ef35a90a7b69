"""Parameters by role and depth, and the rate of each: `[[optimizer.groups]]`.

    embeddings   look-up tables, of tokens and of positions
    head         what makes logits; in a tied model it is the table of tokens
    norms        their scales and shifts, within layers and after them
    layers       all of a layer, its norms too
    rest         what no other group matches

Roles are asked of the model's structure, not of its names. What is frozen keeps its bits, and has
neither a gradient nor moments, and is charged 4 FLOPs a token, not 6. A slow learner (SLCA, arXiv
2303.05118, section 3.2) is a "rest" of rate 0.01 beside a "head" of rate 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from treering.config import Invalid
from treering.model import blocks
from treering.tables import Group


def rates(model: PreTrainedModel, groups: Sequence[Group]) -> list[float]:
    """What each parameter's rate is multiplied with. Raises Invalid for a group that matches
    nothing, or what another does, for layers that there are not, and if nothing is left to train.
    """
    names = {param: name for name, param in model.named_parameters()}
    found: dict[nn.Parameter, int] = {}
    for i, group in enumerate(groups):
        where = f"optimizer.groups[{i}].match = {group.match!r}"
        matched = [param for param in _matched(model, group, i) if param in names]
        if not matched and group.match != "rest":
            raise Invalid(f"{where}: this model has none; leave the group out")
        for param in matched:
            other = found.setdefault(param, i)
            if other != i:
                raise Invalid(
                    f"{where}: {names[param]} is in optimizer.groups[{other}] "
                    f"({groups[other].match!r}) already; a parameter has one rate"
                )
    rest = [group.rate for group in groups if group.match == "rest"]
    usual = rest[0] if rest else 1.0
    own = [groups[found[param]].rate if param in found else usual for param in names]
    if not any(rate for rate, param in zip(own, names, strict=True) if param.requires_grad):
        raise Invalid("optimizer.groups: every rate is 0, nothing is left to train; raise one")
    return own


def frozen(model: PreTrainedModel, groups: Sequence[Group]) -> PreTrainedModel:
    """The model, whose parameters of rate 0 get no gradient: before it is spread over ranks."""
    for param, rate in zip(model.parameters(), rates(model, groups), strict=True):
        param.requires_grad_(param.requires_grad and rate > 0)
    return model


def _matched(model: PreTrainedModel, group: Group, i: int) -> list[nn.Parameter]:
    parts: list[nn.Module] = list(model.modules())
    if group.match == "layers":
        layers = blocks(model)
        parts = list(layers[_span(group, len(layers), i)])
        return [param for layer in parts for param in layer.parameters()]
    if group.match == "embeddings":
        table = model.get_input_embeddings()
        parts = [part for part in parts if part is table or isinstance(part, nn.Embedding)]
    elif group.match == "head":
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        parts = [] if head is None else [head]
    elif group.match == "norms":
        parts = [part for part in parts if _is_norm(part)]
    else:
        parts = []
    return [param for part in parts for param in part.parameters()]


def _is_norm(part: nn.Module) -> bool:
    """Of all modules these alone have a vector of weights."""
    scale = part._parameters.get("weight")
    return scale is not None and scale.ndim == 1 and not list(part.children())


def _span(group: Group, depth: int, i: int) -> slice:
    first = 0 if group.first is None else group.first
    last = -1 if group.last is None else group.last
    begin, end = (at + depth if at < 0 else at for at in (first, last))
    if not 0 <= begin <= end < depth:
        raise Invalid(
            f"optimizer.groups[{i}] = {{ first = {first}, last = {last} }}: this model has the "
            f"layers 0 to {depth - 1}, from the top -1 to -{depth}"
        )
    return slice(begin, end + 1)
