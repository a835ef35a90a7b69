"""Longer contexts: another base of RoPE, its positions interpolated, and the length that the config
names. Nothing is done to the weights.

    theta              adjusted base frequency, ABF (arXiv 2309.16039): theta_j = b^(-2j/d)
    scaling "linear"   positions divided by length / original (arXiv 2306.15595)
    scaling "yarn"     by parts, with attention scaled (arXiv 2309.00071)

The arithmetic is that of transformers' own `rope_parameters`. Of a model that has a base for each
type of layer, that of full attention is changed alone: a window that slides stays as long as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PreTrainedModel

from treering.config import Invalid
from treering.methods.surgeries.rebuilt import rebuilt, tensors
from treering.protocols import Origin


@dataclass(frozen=True)
class Context:
    """`length` in tokens that the model shall read; `original`, that it was trained at (absent:
    what its config says, which may be more)."""

    length: int
    theta: float | None = None
    scaling: str = "none"
    original: int | None = None
    by_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise Invalid(f"surgeries.length = {self.length}: must be at least 1 token")
        if self.theta is not None and self.theta <= 1:
            raise Invalid(f"surgeries.theta = {self.theta}: must be more than 1, as 500_000")
        if self.scaling not in ("none", "linear", "yarn"):
            raise Invalid(f"surgeries.scaling = {self.scaling!r}: must be 'none', 'linear', 'yarn'")
        if self.original is not None and self.original < 1:
            raise Invalid(f"surgeries.original = {self.original}: must be at least 1 token")

    def __call__(self, model: PreTrainedModel, origin: Origin) -> PreTrainedModel:
        """Raises Invalid for a model without RoPE, or whose RoPE is scaled in another way."""
        settings = copy.deepcopy(model.config)
        text = settings.get_text_config()
        rope = text.to_dict().get("rope_parameters")
        if not rope:
            raise Invalid(f"surgeries: {type(model).__name__} has no RoPE; kind = 'context' "
                          "cannot make its positions reach further")  # fmt: skip
        positions = text.max_position_embeddings
        if "rope_theta" in rope:
            text.rope_parameters = self._changed(rope, positions)
        elif "full_attention" in rope:  # by type of layer
            full = self._changed(rope["full_attention"], positions)
            text.rope_parameters = rope | {"full_attention": full}
        else:
            raise Invalid(
                f"surgeries: the RoPE of {type(model).__name__} is by {sorted(rope)}; "
                "kind = 'context' changes that of all layers, or of full_attention"
            )
        text.max_position_embeddings = self.length
        return rebuilt(model, settings, tensors(model).__getitem__)

    def _changed(self, rope: dict[str, Any], positions: int) -> dict[str, Any]:
        changed = rope | {"rope_theta": rope["rope_theta"] if self.theta is None else self.theta}
        if self.scaling == "none":
            return changed
        if rope["rope_type"] not in ("default", self.scaling):
            raise Invalid(f"surgeries.scaling = {self.scaling!r}: the model's RoPE is of type "
                          f"{rope['rope_type']!r} already; set theta alone")  # fmt: skip
        usual = rope.get("original_max_position_embeddings", positions / rope.get("factor", 1))
        original = self.original or int(usual)
        if self.length <= original:
            raise Invalid(f"surgeries.length = {self.length}: not beyond {original}; give "
                          "`original`, the length that the model was trained at")  # fmt: skip
        changed |= {"rope_type": self.scaling, "factor": self.length / original}
        if self.scaling == "yarn":
            changed["original_max_position_embeddings"] = original
        return changed
