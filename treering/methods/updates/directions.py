"""Frequent Directions: a matrix of few columns for all gradients that were seen.

    B Bᵀ <= sum of G Gᵀ <= B Bᵀ + (what was cut off) I

A gradient's leading directions are kept, the energy of the first that is not is taken from each of
them; they join the sketch, which is cut in the same way (Liberty 2013; CoSO, arXiv 2505.11816).

Shapes: G is m x n, with singular vectors u [m, k] and values s [k]; the sketch B is m x size.
"""

from __future__ import annotations

import torch


def shrunk(u: torch.Tensor, s: torch.Tensor, size: int) -> torch.Tensor:
    """The `size` leading directions, float[m, size]; each one's energy s² less that of the next
    direction after them. Zeros where there are not as many."""
    next_energy = s[size] ** 2 if len(s) > size else torch.zeros_like(s[0])
    s = (s[:size] ** 2 - next_energy).clamp(min=0).sqrt()
    return padded(u[:, :size] * s, u.shape[0], size)


def absorbed(sketch: torch.Tensor, u: torch.Tensor, s: torch.Tensor, decay: float) -> torch.Tensor:
    """The sketch after one more gradient, whose singular vectors and values are u and s. The bound
    holds for a decay of 1."""
    size = sketch.shape[1]
    both = torch.cat([decay * sketch, shrunk(u, s, size)], dim=1)
    joined_u, joined_s, _ = torch.linalg.svd(both, full_matrices=False)
    return shrunk(joined_u, joined_s, size)


def leading(sketch: torch.Tensor, energy: float, most: int) -> torch.Tensor:
    """The fewest orthonormal directions with this share of the sketch's energy, at most `most`."""
    u: torch.Tensor
    u, s, _ = torch.linalg.svd(sketch, full_matrices=False)
    energies = s.double() ** 2
    if energy == 0 or not energies.sum() > 0:
        return u[:, :0]
    reached = energies.cumsum(0) / energies.sum()
    some = int((energies > 1e-12 * energies[0]).sum())
    count = int((reached < energy).sum()) + 1  # the released code stops one short of the share
    return u[:, : min(count, some, most)]


def padded(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The matrix as the upper left corner of a larger one of zeros."""
    full = matrix.new_zeros(rows, columns)
    full[: matrix.shape[0], : matrix.shape[1]] = matrix
    return full
