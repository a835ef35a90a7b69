"""In which directions a weight may move: a moving few, and none of those of earlier phases."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from treering.methods.updates.directions import absorbed, leading, padded, singular

NONE = 1e-6  # of the largest singular value: a direction that is rounding alone


@dataclass(frozen=True)
class Side:
    """The directions of a weight's rows, or of its columns, m of either; changed in place.

    kept float32[m, room]: orthonormal ones of earlier phases, then zeros. basis float32[m, rank]:
    those of the present steps, orthogonal to the kept ones; a rank of 0 stands for all but these.
    sketch float32[m, size]: what the phase's gradients were (directions.py).
    """

    kept: torch.Tensor
    basis: torch.Tensor
    sketch: torch.Tensor

    def free(self, gradient: torch.Tensor) -> torch.Tensor:
        """A gradient [m, n] without what lies in the kept directions."""
        return gradient - self.kept @ (self.kept.T @ gradient)

    def down(self, matrix: torch.Tensor) -> torch.Tensor:
        """Coordinates [rank, n] of a matrix [m, n]; without a basis what of it is free."""
        return self.basis.T @ matrix if self.basis.shape[1] else self.free(matrix)

    def up(self, coordinates: torch.Tensor) -> torch.Tensor:
        """The matrix [m, n] of coordinates."""
        return self.basis @ coordinates if self.basis.shape[1] else self.free(coordinates)

    def turn(self, u: torch.Tensor, s: torch.Tensor, decay: float) -> torch.Tensor | None:
        """Take the leading ones of a free gradient's directions for the basis, and all into the
        sketch. What takes coordinates in the old basis to the new one, float32[rank, rank]."""
        self.sketch.copy_(absorbed(self.sketch, u, s, decay))
        real = s > NONE * s[0]  # others may be any directions, the kept ones, too
        found = self.free(torch.where(real, u, 0.0)[:, : self.basis.shape[1]])
        found = padded(found, *self.basis.shape)
        turned = found.T @ self.basis
        self.basis.copy_(found)
        return turned if len(turned) else None

    @property
    def used(self) -> int:
        """How many directions are kept; waits for the device."""
        return int(self.kept.any(dim=0).sum())

    def keep(self, energy: float) -> None:
        """A phase has ended: keep the leading directions of its sketch, and forget the others."""
        used, room = self.used, self.kept.shape[1]
        new = self.free(leading(self.sketch, energy, room - used))
        both = torch.cat([self.kept[:, :used], new], dim=1)
        self.kept.copy_(padded(torch.linalg.qr(both).Q, *self.kept.shape))
        self.basis.zero_()
        self.sketch.zero_()


@dataclass(frozen=True)
class Subspace:
    """Where a weight W [m, n] may move: by `rows.basis` D, or D `columns.basis`ᵀ, D being its
    coordinates; and by nothing in what either side keeps. One of the sides has a basis."""

    rows: Side | None
    columns: Side | None

    @property
    def sides(self) -> list[Side]:
        """Those that there are."""
        return [side for side in (self.rows, self.columns) if side is not None]

    @property
    def most(self) -> int:
        """How many directions of a gradient are asked for."""
        return max(max(side.basis.shape[1], side.sketch.shape[1]) for side in self.sides)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All there are, by name."""
        both = ("rows", self.rows), ("columns", self.columns)
        return {
            f"{which}.{field.name}": getattr(side, field.name)
            for which, side in both
            for field in (() if side is None else fields(side))
        }

    def down(self, matrix: torch.Tensor) -> torch.Tensor:
        """The coordinates of a matrix shaped like the weight."""
        if self.rows is not None:
            matrix = self.rows.down(matrix)
        return matrix if self.columns is None else self.columns.down(matrix.T).T

    def up(self, coordinates: torch.Tensor) -> torch.Tensor:
        """The matrix with these coordinates."""
        if self.rows is not None:
            coordinates = self.rows.up(coordinates)
        return coordinates if self.columns is None else self.columns.up(coordinates.T).T

    def turn(
        self, gradient: torch.Tensor, decay: float
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """New bases from a gradient. For rows and columns, how coordinates turn with them."""
        if self.rows is not None:
            gradient = self.rows.free(gradient)
        if self.columns is not None:
            gradient = self.columns.free(gradient.T).T
        u, s, v = singular(gradient, self.most)
        return (
            None if self.rows is None else self.rows.turn(u, s, decay),
            None if self.columns is None else self.columns.turn(v.T, s, decay),
        )
