"""Frequent Directions: what a sketch keeps of the gradients that it has seen."""

from __future__ import annotations

import pytest
import torch

from treering.methods.updates.directions import absorbed, cost, few, leading, shrunk, singular
from treering.methods.updates.subspace import Side, Subspace


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


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_few_directions_of_many_are_found_without_the_others(shape: tuple[int, int]) -> None:
    """Values that fall by a tenth; what is found is orthonormal, and the same each time."""
    size = 12
    luck = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(n, 200, generator=luck)).Q for n in shape)
    matrix = left * (0.9 ** torch.arange(200.0)) @ right.T
    assert few(shape, size) and not few((64, 64), size)
    u, s, v = singular(matrix, size)
    assert size < len(s) < 30
    torch.testing.assert_close(s[: size + 1], 0.9 ** torch.arange(size + 1.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(u.T @ u, torch.eye(len(s)), rtol=0, atol=1e-5)
    torch.testing.assert_close(v @ v.T, torch.eye(len(s)), rtol=0, atol=1e-5)
    for found, wanted in ((u[:, :size], left[:, :size]), (v[:size].T, right[:, :size])):
        cosines = (found * wanted).sum(0).abs()
        assert cosines.min() > 0.99
    again = singular(matrix, size)
    assert all(torch.equal(one, other) for one, other in zip((u, s, v), again, strict=True))
    assert cost(shape, size) < 0.1 * cost(shape, 200)


def test_a_basis_of_a_large_matrix_has_nothing_of_what_is_kept() -> None:
    luck = torch.Generator().manual_seed(5)
    kept = torch.linalg.qr(torch.randn(200, 40, generator=luck)).Q
    rows = Side(kept, torch.zeros(200, 6), torch.zeros(200, 12))
    space = Subspace(rows, None)
    assert few((200, 300), space.most)
    for _ in range(2):
        space.turn(torch.randn(200, 300, generator=luck), 1.0)
        torch.testing.assert_close(rows.basis.T @ rows.basis, torch.eye(6), rtol=0, atol=1e-5)
        assert float((kept.T @ rows.basis).abs().max()) < 1e-5
        assert float((kept.T @ rows.sketch).abs().max()) < 1e-5 * float(rows.sketch.norm())
