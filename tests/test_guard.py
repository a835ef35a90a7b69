"""Steps that are skipped: nothing of them is learned, and everything else goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from treering import records, tables
from treering.guard import Guard
from treering.interruption import Diverged
from treering.learner import Learner, tensors
from treering.methods.updates import Average, Descent, PerSample, Reptile
from treering.protocols import Update

LearnerOf, BatchesOf = Callable[..., Learner], Callable[..., list]
CPU = torch.device("cpu")


def guard(spike: float = 3.0, window: int = 8) -> Guard:
    return Guard(tables.Guard(spike=spike, window=window), CPU)


def asked(found: Guard, loss: float, norm: float = 1.0) -> float:
    return float(found.refuses(torch.tensor(loss), torch.tensor(norm)))


@pytest.mark.parametrize("spike", [0.0, 3.0])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(spike: float, number: float) -> None:
    found = guard(spike)
    assert asked(found, 1.0) == 0
    assert asked(found, number) == asked(found, 1.0, number) == 1
    assert asked(found, 1.0) == 0


def test_spikes_by_hand() -> None:
    """Against numpy over a random walk with spikes: mean and deviation of the last 8 that were
    taken, from the fourth on; a ring after the eighth."""
    luck, found, kept = np.random.default_rng(1), guard(), []
    refused = 0
    for step in range(200):
        loss, norm = 5 + luck.normal() * 0.1, 1 + luck.normal() * 0.05
        if luck.random() < 0.1:
            loss, norm = (loss + 2, norm) if step % 2 else (loss, norm + 1)
        last = np.array(kept[-8:])
        now = np.array([loss, norm], np.float32)
        spikes = len(last) >= 4 and bool((now > last.mean(0) + 3 * last.std(0)).any())
        assert asked(found, loss, norm) == spikes, step
        refused += spikes
        if not spikes:
            kept.append(now)
    assert refused > 10


def test_a_new_phase_is_no_spike() -> None:
    found = guard()
    for step in range(12):
        found.begin(0)
        assert asked(found, 2 + 0.01 * (step % 3)) == 0
    assert asked(found, 9.0) == 1
    found.begin(1)
    assert asked(found, 9.0) == 0


def poisoned(learner: Learner, steps: set[int]) -> Callable[[int], None]:
    """A hook that makes the gradients of some backward passes infinite."""
    at = -1

    def begin(step: int) -> None:
        nonlocal at
        at = step

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("inf") if at in steps else gradient

    for param in learner.params:
        param.register_hook(spoil)
    return begin


UPDATES: dict[str, Callable[[], Update]] = {
    "descent": Descent,
    "reptile": lambda: Reptile(every=3, rate=0.5),
    "nested": lambda: Reptile(every=2, rate=0.5, inner=Reptile(every=2, rate=0.3)),
    "per sample": lambda: Reptile(every=2, rate=0.5, inner=PerSample()),
}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("name", UPDATES)
def test_a_run_with_skipped_steps_is_the_run_without_these_batches(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str, kind: str
) -> None:
    """Weights, moments and Reptile's cycle: as if the batches had never been."""
    batches, bad = batches_of(12), {0, 4, 5, 9}
    rows = 1 if name == "per sample" else 4
    learner, other = learner_of(kind=kind, rows=rows), learner_of(kind=kind, rows=rows)
    update, without = UPDATES[name](), UPDATES[name]()
    begin = poisoned(learner, bad)
    skipped = []
    for step, batch in enumerate(batches):
        begin(step)
        skipped.append(float(update(learner, batch).skipped))
        if step not in bad:
            without(other, batch)
    assert [step for step, share in enumerate(skipped) if share == 1] == sorted(bad)
    assert update.counters() == without.counters()
    found, wanted = tensors(learner, update), tensors(other, without)
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        assert torch.equal(tensor, wanted[key]), key


def test_an_average_goes_on_over_a_skipped_step(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, update = learner_of(), Average(decays=(0.5,))
    begin = poisoned(learner, {2})
    for step, batch in enumerate(batches_of(4)):
        begin(step)
        update(learner, batch)
    assert all(torch.isfinite(weight).all() for weight in update.branches()["average 0.5"])


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Steps (from 0) of a run whose loss is not a number."""
    steps: set[int] = set()
    real = Learner.backward

    def backward(self: Learner, batch: object) -> object:
        metrics = real(self, batch)  # type: ignore[arg-type]
        if batch.step in steps:  # type: ignore[attr-defined]
            self._loss = torch.full_like(self._loss, torch.nan)
        return metrics

    monkeypatch.setattr(Learner, "backward", backward)
    yield steps


@pytest.mark.parametrize("spike", [0.0, 50.0])
def test_a_run_records_what_it_skips_and_resumes_to_the_bit(
    place: Path, tmp_path: Path, spoiled: set[int], monkeypatch: pytest.MonkeyPatch, spike: float
) -> None:
    spoiled |= {3, 16, 30, 31}
    sets = (f"guard.spike={spike}", "guard.window=6")
    tiny.run(place / "recipe.toml", tmp_path / "whole", *sets)
    steps = [r for r in records.read(tmp_path / "whole") if r["kind"] == "step"]
    assert {r["step"] - 1 for r in steps if r["skipped"]} == spoiled
    for stop in (17, 25):  # within a cycle; at the end of the first phase
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            tiny.interrupt_in_step(stop, patch)
            tiny.run(place / "recipe.toml", tmp_path / str(stop), *sets)
        tiny.run(place / "recipe.toml", tmp_path / str(stop), *sets)
        tiny.assert_same_run(tmp_path / str(stop), tmp_path / "whole")


def test_too_many_in_a_row_end_the_run_and_say_why(
    place: Path, tmp_path: Path, spoiled: set[int]
) -> None:
    spoiled |= {3, 4, 6, 7, 8, 9, 10}
    with pytest.raises(Diverged, match=r"step 10: the last 4 steps were skipped .*schedule.peak"):
        tiny.run(place / "recipe.toml", tmp_path, "guard.max_skipped=4")
    assert records.read(tmp_path)[-1]["reason"] == "failed"
