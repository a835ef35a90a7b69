"""Activations that are made again in the backward pass: the same gradients, fewer of them kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from treering import config, model, tables
from treering.forward import Forward, forward
from treering.mesh import Mesh
from treering.methods.objectives import NextToken

KINDS = ("none", "selective", "full")


def call_of(recompute: str, *, compile: bool = False) -> Forward:
    shape = tables.Model(width=32, depth=3, heads=2, mlp=64, tied=True)
    made = model.fresh(model.llama(shape, 128, 64), seed=0)
    compute = tables.Compute(compile=compile, precision="fp32", recompute=recompute)
    return forward(model.Root(made, NextToken()), compute, 4, Mesh())


def gradients(call: Forward) -> tuple[list[torch.Tensor], int]:
    """And the bytes that the forward pass kept, weights apart."""
    kept: dict[int, int] = {}
    weights = {param.data_ptr() for param in call.root.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    tokens = np.random.default_rng(0).integers(0, 128, (4, 65))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = call(tokens, 4, 0.25)
    total.backward()  # type: ignore[no-untyped-call]
    found = [param.grad for param in call.root.parameters()]
    assert all(gradient is not None for gradient in found)
    return found, sum(kept.values())  # type: ignore[return-value]


def test_gradients_are_the_same_to_the_bit_and_less_is_kept() -> None:
    found = {kind: gradients(call_of(kind)) for kind in KINDS}
    for kind in KINDS[1:]:
        pairs = zip(found[kind][0], found["none"][0], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), kind
    assert found["full"][1] < 0.5 * found["none"][1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
@pytest.mark.parametrize("kind", KINDS[1:])
def test_compiled_they_are_the_same_to_rounding(kind: str) -> None:
    torch._dynamo.reset()
    found, _ = gradients(call_of(kind, compile=True))
    wanted, _ = gradients(call_of("none"))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_run_is_the_same_run(place: Path, tmp_path: Path, kind: str) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "plain")
    tiny.run(place / "recipe.toml", tmp_path / kind, f"compute.recompute='{kind}'")
    tiny.assert_same_run(tmp_path / kind, tmp_path / "plain")


def test_an_unknown_kind_is_refused(place: Path) -> None:
    with pytest.raises(config.Invalid, match=r"compute.recompute = 'some': one of"):
        config.load(place / "recipe.toml", sets=("compute.recompute='some'",))
