"""Frequent Directions: a matrix of few columns for all gradients that were seen.

    B Bᵀ <= sum of G Gᵀ <= B Bᵀ + (what was cut off) I

A gradient's leading directions are kept, the energy of the first that is not is taken from each of
them; they join the sketch, which is cut in the same way (Liberty 2013; CoSO, arXiv 2505.11816).

Shapes: G is m x n, with singular vectors u [m, k] and values s [k]; the sketch B is m x size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

BEYOND = 10  # directions that are tried beside those that are wanted
AGAIN = 2  # subspace iterations, for directions whose values are close


def singular(matrix: torch.Tensor, most: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The leading singular vectors and values, u[m, k], s[k], v[k, n], more than `most` of them:
    all of them exactly, or where `most` are few the first by a randomised subspace iteration (Halko
    et al. 2011, algorithm 4.4). Its random numbers are always the same, and nobody else's."""
    if not few(matrix.shape, most):
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u, s, v
    with torch.random.fork_rng([matrix.device] if matrix.device.type == "cuda" else []):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=most + 1 + BEYOND, niter=AGAIN)
    return u, s, v.mT


def few(shape: Sequence[int], most: int) -> bool:
    """Whether `most` directions are few of those of a matrix of this shape."""
    return 4 * (most + 1 + BEYOND) < min(shape)


def cost(shape: Sequence[int], most: int) -> float:
    """FLOPs of `singular`."""
    short, long = sorted(shape)
    if not few(shape, most):
        return 6.0 * long * short**2 + 20.0 * short**3  # Golub and Van Loan, table 8.6.1
    tried = most + 1 + BEYOND
    products, bases = 2 * AGAIN + 2, AGAIN + 1
    within = 6.0 * short * tried**2 + 20.0 * tried**3 + 2.0 * long * tried**2
    return 2.0 * short * long * tried * products + 4.0 * (short + long) * tried**2 * bases + within


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
