"""Frequent Directions: what a sketch keeps of the gradients that it has seen."""

from __future__ import annotations

import pytest
import torch

from treering.methods.updates.directions import absorbed, leading, shrunk


def test_one_direction_with_all_but_a_little_is_kept() -> None:
    """At .9 of the energy the released code keeps none of them."""
    u = torch.linalg.qr(torch.randn(8, 3, generator=torch.Generator().manual_seed(1))).Q
    sketch = u * torch.tensor([10.0, 1.0, 0.5])
    assert leading(sketch, 0.9, 8).shape[1] == 1
    assert leading(sketch, 0.99, 8).shape[1] == 2
    assert leading(sketch, 1.0, 8).shape[1] == 3
    assert leading(sketch, 1.0, 2).shape[1] == 2
    assert leading(torch.zeros(8, 3), 0.9, 8).shape[1] == 0
    assert abs(float(leading(sketch, 0.9, 8)[:, 0] @ u[:, 0])) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_frequent_directions_keep_their_guarantee(seed: int) -> None:
    """0 <= GGᵀ - BBᵀ <= ||G - G_k||² / (size + 1 - k) for every k, of many gradients in turn."""
    luck = torch.Generator().manual_seed(seed)
    size, gradients = 5, []
    sketch = torch.zeros(12, size)
    for _ in range(6):
        shape = torch.randn(12, 3, generator=luck) @ torch.randn(3, 20, generator=luck)
        gradients.append(shape + 0.3 * torch.randn(12, 20, generator=luck))
        u, s, _ = torch.linalg.svd(gradients[-1], full_matrices=False)
        sketch = absorbed(sketch, u, s, 1.0)
    every = torch.cat(gradients, dim=1).double()
    left = torch.linalg.eigvalsh(every @ every.T - sketch.double() @ sketch.double().T)
    energies = torch.linalg.svdvals(every) ** 2
    bound = min(float(energies[k:].sum()) / (size + 1 - k) for k in range(size + 1))
    assert left.min() >= -1e-4 * energies[0] and left.max() <= bound


def test_few_directions_are_kept_whole() -> None:
    gradient = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0]))
    u, s, _ = torch.linalg.svd(gradient)
    block = shrunk(u, s, 2)
    assert torch.allclose(block @ block.T, gradient @ gradient.T)
    assert shrunk(u, s, 1).norm() ** 2 == pytest.approx(9 - 4)
