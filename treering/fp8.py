"""Products of a model's layers in fp8, by torchao: each scaled by its largest number."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from treering.config import Invalid
from treering.model import blocks

MULTIPLE = 16  # of both sizes of a product, as the hardware asks
CAPABILITY = (8, 9)  # the first CUDA devices with fp8: Ada and Hopper


def check_extra(precision: str) -> None:
    """Raises Invalid where the precision needs torchao, which is not installed."""
    if precision == "fp8" and find_spec("torchao") is None:
        raise Invalid("compute.precision = 'fp8': pip install 'treering[fp8]'")


def check(device: torch.device) -> None:
    """Raises Invalid where a device has no fp8."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < CAPABILITY:
        raise Invalid("compute.precision = 'fp8': this device has no fp8; use 'bf16' or 'auto'")


def convert(model: PreTrainedModel, *, emulate: bool = False) -> int:
    """Let the linear layers of the blocks multiply in fp8, forward and backward, and return how
    many they are. Weights stay the parameters that they are, and the head stays as it is.
    `emulate` does the same arithmetic where the hardware cannot."""
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    def fits(layer: nn.Module, name: str) -> bool:
        assert isinstance(layer, nn.Linear)
        return layer.in_features % MULTIPLE == 0 == layer.out_features % MULTIPLE

    how = Float8LinearConfig(emulate=emulate)
    for block in blocks(model):
        convert_to_float8_training(block, module_filter_fn=fits, config=how)
    kind = "Float8Linear"
    return sum(type(part).__name__ == kind for block in blocks(model) for part in block.modules())
