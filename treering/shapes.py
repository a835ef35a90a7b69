"""Shapes of fresh models: presets, what a recipe's table says, and how many parameters that is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log, sqrt

from treering import tables
from treering.schema import Invalid, near


@dataclass(frozen=True)
class Shape:
    """Of a Llama: `mlp` is the width between, `tied` whether head and embedding are one."""

    depth: int
    width: int
    heads: int
    mlp: int
    tied: bool

    @property
    def layers(self) -> int:
        """Parameters of the layers' matrices: neither embedding nor head, which say little of a
        small model's size."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.mlp)

    def multiplying(self, vocabulary: int) -> int:
        """Parameters that multiply: layers, norms and the head, but no look-up table."""
        return self.layers + (2 * self.depth + 1) * self.width + vocabulary * self.width

    def scaled(self, layers: float) -> Shape:
        """The shape of about so many parameters in its layers that is most like this one: near it
        in depth to width, in the width of a head, and in the widths' ratio."""
        part, head, aspect = self.mlp / self.width, self.width / self.heads, self.width / self.depth

        def unlike(shape: Shape) -> float:
            return (
                10 * abs(log(shape.layers / layers))
                + abs(log(shape.width / shape.depth / aspect))
                + abs(log(shape.width / shape.heads / head)) / 2
            )

        found, of_one = [], layers / (4 + 3 * part)  # depth * width^2
        for depth in _around((of_one / aspect**2) ** (1 / 3)):
            width = sqrt(of_one / depth)
            for heads in _around(width / head):
                for half in _around(width / heads / 2, within=0):  # a head's width is even
                    wide = 2 * half * heads
                    mlp = 8 * ceil(part * wide / 8)
                    found.append(Shape(depth, wide, heads, mlp, self.tied))
        return min(found, key=unlike)


def _around(x: float, within: float = 0.4) -> range:
    """The whole numbers from 1 on that are near a number."""
    return range(max(1, floor(x * (1 - within))), ceil(x * (1 + within)) + 1)


# From 99m on: arXiv 2508.01908, released configs.
PRESETS = {
    "1m": Shape(4, 128, 4, 344, True),
    "3m": Shape(4, 192, 6, 512, True),
    "10m": Shape(8, 288, 6, 768, True),
    "99m": Shape(16, 512, 8, 1280, False),
    "560m": Shape(24, 1024, 16, 2560, False),
    "1b": Shape(24, 1792, 28, 5120, False),
    "6b": Shape(30, 3072, 24, 9216, False),
}


def shape(wanted: tables.Model) -> Shape:
    """The preset's, where the recipe does not say otherwise. Raises Invalid for what is none."""
    if wanted.preset is not None and wanted.preset not in PRESETS:
        raise Invalid(f"model.preset = {wanted.preset!r}" + near(wanted.preset, list(PRESETS)))
    usual = PRESETS[wanted.preset] if wanted.preset else Shape(0, 0, 0, 0, False)
    sizes = []
    for name in ("depth", "width", "heads"):
        given = getattr(wanted, name)
        number = getattr(usual, name) if given is None else given
        if number < 1:
            raise Invalid(f"model.{name} = {number}: give a positive number, or model.preset")
        sizes.append(number)
    depth, width, heads = sizes
    if width % heads or (width // heads) % 2:
        raise Invalid(f"model.heads = {heads}: width {width} must split into heads of even width")
    mlp = (usual.mlp or 4 * width) if wanted.mlp is None else wanted.mlp
    if mlp < 1:
        raise Invalid(f"model.mlp = {mlp}: must be positive")
    return Shape(depth, width, heads, mlp, usual.tied if wanted.tied is None else wanted.tied)
