"""A compiled run is one graph for training and one for scoring, and waits for no device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from treering import build, config
from treering.evaluate import score
from treering.loop import Trained, train
from treering.mesh import Mesh, device

# torch's own, where it compiles
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
SETS = {
    "replay and Reptile": (),
    "documents": ("model.attention='document'",),
    "recomputation": ("compute.recompute='selective'",),
    "spikes": ("guard.spike=6.0",),
}


def begun(place: Path, there: torch.device, *sets: str) -> tuple[build.Parts, Iterator[Trained]]:
    recipe = config.load(place / "recipe.toml", sets=("compute.compile=true", *sets))
    data = build.data(recipe, place / "cache")
    parts = build.parts(recipe, data, Mesh(device=there))
    batches = parts.stream.batches(data.planner.start())
    return parts, train(parts.learner, parts.update, batches, parts.rules)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts what is compiled, and does not spend time on making it fast."""
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda module, **named: compile_(module, backend=counter, **named)
    )
    torch.compiler.reset()
    counters.clear()
    return counter


@pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
def test_a_run_is_two_graphs_without_a_break(
    place: Path, graphs: CompileCounterWithBackend, sets: tuple[str, ...]
) -> None:
    parts, steps = begun(place, torch.device("cpu"), *sets)
    next(steps)
    assert graphs.frame_count == 1
    for text in parts.held_out:
        score(parts.learner.forward, text)
    assert graphs.frame_count == 2
    with torch.compiler.set_stance("fail_on_recompile"):
        for _ in islice(steps, 30):  # into the second phase, with fewer rows in some micro-batches
            pass
        for text in parts.held_out:
            score(parts.learner.forward, text)
    assert graphs.frame_count == 2
    assert not counters["graph_break"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="counts waits for a CUDA device")
@pytest.mark.parametrize("sets", SETS.values(), ids=SETS)
def test_a_step_waits_for_no_device(place: Path, sets: tuple[str, ...]) -> None:
    """But for Reptile's meta-update, which counts skipped steps once for its window."""
    _, steps = begun(place, device(), "update={kind='descent'}", *sets)
    for _ in islice(steps, 3):
        pass
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            for _ in islice(steps, 10):
                pass
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [str(wait.message) for wait in waits] == []
