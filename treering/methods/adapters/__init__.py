"""Small weights that are trained beside frozen ones. `[adapter]` is a constructor call."""

from treering.methods.adapters.codyra import CoDyRA
from treering.methods.adapters.lora import LoRA

KINDS = {
    "codyra": CoDyRA,
    "lora": LoRA,
}
