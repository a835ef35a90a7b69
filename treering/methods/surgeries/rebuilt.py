"""What the surgeries share: a model made anew by its own class from another config, so that what
is trained is what `from_pretrained` will make of the exported folder."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from treering.config import Invalid
from treering.weights import left_out


def tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, a tied one once."""
    return {name: tensor.detach() for name, tensor in model.named_parameters()} | dict(
        model.named_buffers()
    )


def rebuilt(
    model: PreTrainedModel, settings: PreTrainedConfig, weight: Callable[[str], torch.Tensor]
) -> PreTrainedModel:
    """A model of the same class with other settings; `weight` gives each tensor of it by name and
    raises KeyError for one that it does not know.

    No number is copied or drawn here. A model whose parameters have no memory gives another such.
    Raises Invalid where class, settings and weights do not go together.
    """
    who = type(model).__name__
    try:
        type(settings).from_dict(settings.to_dict())  # as the exported one will be opened
        with left_out():
            made: PreTrainedModel = type(model)(settings)
    except Exception as error:  # a class that nobody here knows refuses in a way of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Invalid(f"surgeries: {who} cannot be made so ({reason}); leave it out") from error
    kept = made.state_dict().keys()
    params = {id(old): _taken(weight, name, old, who) for name, old in made.named_parameters()}
    for name, buffer in made.named_buffers():
        if name in kept:
            buffer.copy_(_taken(weight, name, buffer, who))
    for part in made.modules():
        for name, old in part._parameters.items():
            if old is not None:
                part._parameters[name] = params[id(old)]
    if model.can_generate():
        made.generation_config = model.generation_config
    if "_weight_conversions" in vars(model):  # how transformers names the weights in its files
        vars(made)["_weight_conversions"] = vars(model)["_weight_conversions"]
    made.train(model.training)
    return made


def _taken(
    weight: Callable[[str], torch.Tensor], name: str, wanted: torch.Tensor, who: str
) -> nn.Parameter:
    try:
        found = weight(name)
    except KeyError:
        raise Invalid(f"surgeries: {who} would need a weight {name!r} that it has not") from None
    if found.shape != wanted.shape:
        raise Invalid(
            f"surgeries: {name} of {who} would be {list(wanted.shape)}, but is "
            f"{list(found.shape)}; this model cannot be changed so"
        )
    return nn.Parameter(found, requires_grad=wanted.requires_grad)
