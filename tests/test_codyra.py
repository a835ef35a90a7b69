"""CoDyRA: gates that earn little become zero, and what is left of an adapter is merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from test_adapters import fresh, learner_for, logits
from test_mesh import assert_same_to_rounding

from treering import checkpoint, model
from treering.batch import Batch
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.adapters import CoDyRA, LoRA
from treering.methods.adapters.low_rank import LowRank, low_rank
from treering.methods.adapters.selecting import shrink
from treering.methods.updates import Descent
from treering.protocols import Update

pytest.importorskip("peft")

BatchesOf = Callable[..., list[Batch]]
STEPS = (20, 10)


def begun(how: CoDyRA | LoRA, decay: float = 0.0) -> tuple[Learner, list[LowRank], Update]:
    made = fresh()
    how.insert(made, list(model.matrices(made)), 3)
    layers = low_rank(made)
    return learner_for(made, decay), layers, how.around(Descent(), layers, 3, STEPS)


# ------------------------------------------------------------------ the proximal step


def test_the_soft_threshold_is_the_minimum_of_its_problem() -> None:
    """argmin of (w - x)² / 2 + kappa |w|, sought on a grid; and no dead zone of twice the width."""
    grid = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    given = torch.tensor([-1.3, -0.21, -0.19, -0.1, 0.0, 0.05, 0.19, 0.21, 0.9])
    found = given.clone()
    shrink(found, torch.tensor(0.1))
    for x, w in zip(given.tolist(), found.tolist(), strict=True):
        best = grid[((grid - x) ** 2 / 2 + 0.1 * grid.abs()).argmin()]
        assert w == pytest.approx(float(best), abs=2e-4)
    assert found[6] == pytest.approx(0.09) and found[7] == pytest.approx(0.11)
    assert found[3] == found[4] == found[5] == 0


def test_kappa_is_zero_then_rises_in_stages_with_the_rate() -> None:
    how = CoDyRA(4, threshold=10.0)
    assert [how.kappa(5e-4, step, 1000) for step in (0, 499, 500, 509)] == [0.0] * 4
    assert how.kappa(5e-4, 510, 1000) == pytest.approx(0.005 / 49)
    assert how.kappa(5e-4, 999, 1000) == pytest.approx(0.005)
    found = [how.kappa(1.0, step, 1000) for step in range(500, 1000)]
    assert len(set(found)) == 50 and found == sorted(found)
    assert how.kappa(0.0, 999, 1000) == 0
    fixed = CoDyRA(4, threshold=0.005, prox="fixed")
    assert fixed.kappa(1.0, 999, 1000) == fixed.kappa(1e-3, 999, 1000) == pytest.approx(0.005)
    assert CoDyRA(4, threshold=1.0, dense=1.0).kappa(1.0, 9, 10) == 0
    assert CoDyRA(4, threshold=1.0, dense=0.0).kappa(1.0, 9, 10) > 0.9


def test_it_is_adam_and_the_proximal_step(batches_of: BatchesOf) -> None:
    """A gate's path written out: Adam by hand on the learner's gradients, then the threshold."""
    how = CoDyRA(3, threshold=5.0, dense=0.25, merge="end")
    learner, layers, update = begun(how)
    gate = layers[2].gate
    assert gate is not None
    name = layers[2].name.replace("weight", "gate")
    hand, mean, square = gate.detach().clone(), torch.zeros(3), torch.zeros(3)
    shrunk = 0
    for step, batch in enumerate(batches_of(20)):
        gradient = learner.gradient(batch)[learner.names.index(name)]
        mean, square = 0.9 * mean + 0.1 * gradient, 0.95 * square + 0.05 * gradient**2
        corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.95 ** (step + 1))
        hand = hand - 1e-2 * corrected[0] / (corrected[1].sqrt() + 1e-8)
        kappa = 5.0 * 1e-2 * min(int(50 * max(0, step - 5) / 15) / 49, 1)
        hand = torch.where(hand.abs() <= kappa, 0.0, hand - kappa * hand.sign())
        update(learner, batch)
        shrunk += kappa > 0
        assert torch.allclose(gate, hand, atol=1e-5), step
    assert shrunk == 14 and bool((gate < 0.9).all())


def test_a_skipped_step_shrinks_nothing(batches_of: BatchesOf) -> None:
    learner, layers, update = begun(CoDyRA(3, threshold=5.0, dense=0.0, merge="end"))
    first, *others, last = batches_of(12)
    for batch in (first, *others):
        update(learner, batch)
    before = [layer.gate.detach().clone() for layer in layers if layer.gate is not None]
    with torch.no_grad():
        layers[0].base.mul_(torch.nan)
    assert float(update(learner, last).skipped) == 1.0
    after = [layer.gate for layer in layers]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not all(torch.equal(a, torch.ones(3)) for a in before)


# ------------------------------------------------------------------ off, merged, and its null


@pytest.mark.parametrize("merge", ["end", "phase"])
def test_threshold_0_is_lora_bit_for_bit(batches_of: BatchesOf, merge: str) -> None:
    plain, _, one = begun(LoRA(3, alpha=6, merge=merge))
    gated, layers, other = begun(CoDyRA(3, threshold=0.0, alpha=6, merge=merge))
    assert plain.names == gated.names
    for batch in batches_of(3, 2):
        one(plain, batch)
        other(gated, batch)
    assert all(torch.equal(a, b) for a, b in zip(plain.params, gated.params, strict=True))
    assert layers[0].gate is None and one.counters() == other.counters()


def test_directions_whose_gate_is_zero_are_left_out_of_the_merge(
    batches_of: BatchesOf,
) -> None:
    learner, layers, update = begun(CoDyRA(4, threshold=15.0, gates="normal"))
    found = learner.forward.root.model.eval()
    assert torch.equal(logits(found), logits(fresh())), "nothing is added at first"
    *first, last = batches_of(20)
    for batch in first:
        update(learner, batch)
    gates = torch.stack([layer.gate.detach() for layer in layers if layer.gate is not None])
    left = (gates != 0).sum(dim=1)
    assert 0 < left.sum() < 7 * 4, "some are zero, and some are not"
    bases = [layer.base.detach().clone() for layer in layers]
    update(learner, last)
    for layer, base, gate in zip(layers, bases, gates, strict=True):
        rank = int(torch.linalg.matrix_rank(layer.base - base, atol=1e-5))
        assert rank <= int((gate != 0).sum()) + 1
        assert layer.gate is not None and not torch.equal(layer.gate, gate)
        assert not layer.up.any()
    (merged,) = update.counters()["merged"]
    assert merged["rank"] <= float(left.float().mean()) + 1 and merged["norm"] > 0


def test_a_merge_keeps_the_outputs(batches_of: BatchesOf) -> None:
    learner, layers, _ = begun(CoDyRA(3, threshold=1.0, gates="normal"))
    assert (
        len({round(float(g), 3) for x in layers if x.gate is not None for g in x.gate.detach()})
        == 21
    )
    for batch in batches_of(3):
        Descent()(learner, batch)
    found = learner.forward.root.model.eval()
    before = logits(found)
    for layer in layers:
        layer.merge()
        layer.begin(3, 1)
    assert torch.allclose(logits(found), before, atol=1e-5)


def test_the_null_keeps_as_many_at_random_and_does_not_train_them(batches_of: BatchesOf) -> None:
    how = CoDyRA(4, threshold=60.0, kept=1.5)
    learner, layers, update = begun(how)
    assert not any(name.endswith(".gate") for name in learner.names)

    def masks() -> torch.Tensor:
        gates = [layer.gate for layer in layers if layer.gate is not None]
        return torch.stack(gates).detach().clone()

    first = masks()
    assert set(first.flatten().tolist()) == {0.0, 1.0} and int(first.sum()) == round(1.5 * 7)
    assert len(set(first.sum(dim=1).tolist())) > 1, "not the same number in every layer"
    batches = batches_of(3, 2)
    for batch in batches[:2]:
        update(learner, batch)
    assert torch.equal(masks(), first)
    update(learner, batches[2])
    assert int(masks().sum()) == round(1.5 * 7) and not torch.equal(masks(), first)
    assert update.counters()["merged"][0]["rank"] == pytest.approx(round(1.5 * 7) / 7)


def test_a_direction_that_is_masked_adds_nothing(batches_of: BatchesOf) -> None:
    learner, layers, _ = begun(CoDyRA(4, threshold=1.0, kept=2.0))
    for batch in batches_of(3):
        Descent()(learner, batch)
    for layer in layers:
        assert layer.gate is not None
        masked = layer.gate == 0
        assert not layer.up[:, masked].any() and (masked.all() or layer.up.any())
        rank = int(torch.linalg.matrix_rank(layer.delta(), atol=1e-7))
        assert rank <= int((~masked).sum())


# ------------------------------------------------------------------ as a run


def codyra(**more: object) -> list[str]:
    table = {"kind": "codyra", "rank": 3, "threshold": 15.0, "gates": "normal", **more}
    given = ", ".join(f"{key}={json.dumps(value)}" for key, value in table.items())
    return [f"--set=adapter={{{given}}}", "--set=update={kind='descent'}"]


@pytest.mark.parametrize("more", [{}, {"kept": 1.2}], ids=["codyra", "null"])
def test_it_resumes_bit_for_bit(
    place: Path, forks: tiny.Forks, tmp_path: Path, more: dict[str, object]
) -> None:
    """Killed after a merge, in the second phase: gates and masks are those of that phase."""
    sets = codyra(**more)
    assert forks.run(tmp_path / "whole", *sets)[0] == 0
    tiny.kill_after_step(forks.start(tmp_path / "killed", *sets), tmp_path / "killed", 36)
    code, log = forks.run(tmp_path / "killed", *sets)
    assert code == 0 and "resuming after step" in log
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")
    newest = checkpoint.newest(tmp_path / "killed" / "checkpoints")
    assert newest is not None
    first, second = newest[1]["update"]["merged"]
    assert 0 < first["rank"] < 3 and 0 < second["rank"] < 3 and first["norm"] > 0


@pytest.mark.parametrize("more", [{}, {"kept": 1.2}], ids=["codyra", "null"])
def test_two_ranks_do_what_one_does(
    forks: tiny.Forks, tmp_path: Path, more: dict[str, object]
) -> None:
    sets = [*codyra(**more), "--set=phases.0.tokens=640", "--set=phases.1.tokens=640"]
    for ranks in (1, 2):
        code, log = forks.run(tmp_path / str(ranks), *sets, ranks=ranks)
        assert code == 0, log
    assert_same_to_rounding(tmp_path / "2", tmp_path / "1", least=15, close=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 0}, "adapter.rank = 0: must be at least 1"),
        ({"threshold": -1.0}, "adapter.threshold = -1.0: must not be negative"),
        ({"dense": 1.5}, "adapter.dense = 1.5: must be in"),
        ({"prox": "adam"}, "adapter.prox = 'adam': must be 'rate' or 'fixed'"),
        ({"gates": "zeros"}, "adapter.gates = 'zeros': must be 'ones' or 'normal'"),
        ({"kept": 5.0}, "adapter.kept = 5.0: must be above 0, and at most the rank"),
        ({"merge": "x"}, "adapter.merge = 'x': must be 'end' or 'phase'"),
    ],
)
def test_a_field_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        CoDyRA(**{"rank": 4, "threshold": 1.0} | fields)  # type: ignore[arg-type]
