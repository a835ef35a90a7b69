"""What was predicted of a sample when it was first learned is kept, and held to when it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_mesh import assert_same_to_rounding
from test_objectives import POSITIONS, VOCABULARY, Largest, given

from treering import cli, model, tables
from treering.batch import Batch, Recorded
from treering.config import Invalid
from treering.forward import forward
from treering.learner import Learner
from treering.mesh import Mesh
from treering.methods.objectives import NextToken, chunks
from treering.methods.objectives.der import by_logits, linear_der, outcomes
from treering.predictions import Predictions
from treering.protocols import Metrics

BatchesOf = Callable[..., list[Batch]]
KEPT = 5


def recorded(seed: int = 9, *, top: int = KEPT, sharp: float = 1.0) -> tuple[torch.Tensor, ...]:
    """The likeliest tokens of random predictions, rounded as they are kept."""
    luck = torch.Generator().manual_seed(seed)
    logs = (sharp * torch.randn(POSITIONS, VOCABULARY, generator=luck)).log_softmax(1)
    found = logs.topk(top)
    return found.indices.int(), found.values.half()


def inputs(seed: int = 0, **how: Any) -> tuple[Any, ...]:
    hidden, head, targets, counts = given(seed)
    taught = counts.flip(0) * 0.7
    return hidden, head, targets, torch.stack([counts, taught]), recorded(**how)


def outcome(chunked: bool, z: float, **how: Any) -> list[torch.Tensor]:
    hidden, head, targets, counts, then = inputs(**how)
    if chunked:
        found = linear_der(hidden, head, targets, counts, then, z)
    else:
        found = by_logits(hidden @ head.t(), targets, counts, then, z)
    (3 * found[0]).backward()
    return [found[0].detach(), *found[1:], hidden.grad, head.grad]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("z", [0.0, 1e-2])
@pytest.mark.parametrize("sharp", [1.0, 30.0])
def test_chunk_by_chunk_it_is_what_autograd_makes_of_whole_logits(
    monkeypatch: pytest.MonkeyPatch, chunk: int, z: float, sharp: float
) -> None:
    monkeypatch.setattr(chunks, "ON_CPU", chunk * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    pairs = zip(outcome(True, z, sharp=sharp), outcome(False, z, sharp=sharp), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)


def test_it_is_the_divergence_of_the_kept_tokens_and_of_one_for_all_others() -> None:
    hidden, head, targets, counts, then = inputs()
    logits = (hidden @ head.t()).detach()
    found = float(by_logits(logits, targets, counts * torch.tensor([[0.0], [1.0]]), then, 0.0)[0])
    chances, wanted = logits.double().softmax(1), 0.0
    for row in range(POSITIONS):
        then_p = [float(np.exp(np.float64(log))) for log in then[1][row]]
        now_q = [float(chances[row, token]) for token in then[0][row].tolist()]
        then_p, now_q = [*then_p, 1 - sum(then_p)], [*now_q, 1 - sum(now_q)]
        each = sum(p * np.log(p / q) for p, q in zip(then_p, now_q, strict=True))
        wanted += float(counts[1, row]) * each
    assert found == pytest.approx(wanted, rel=1e-4)


def test_all_tokens_but_one_are_the_whole_divergence() -> None:
    hidden, head, targets, counts, _ = inputs()
    logits = (hidden @ head.t()).detach()
    logs = torch.randn(POSITIONS, VOCABULARY).log_softmax(1)
    top = logs.topk(VOCABULARY - 1)
    only = counts * torch.tensor([[0.0], [1.0]])
    found = by_logits(logits, targets, only, (top.indices, top.values), 0.0)[0]
    each = (logs.exp() * (logs - logits.log_softmax(1))).sum(1)
    torch.testing.assert_close(found, (counts[1] * each).sum(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sharp", [0.0, 1.0, 30.0])
def test_the_outcomes_sum_to_1(sharp: float) -> None:
    ids, chances, tail = outcomes(*recorded(sharp=sharp))
    assert ids.dtype == torch.int64 and bool((tail >= 0).all())
    torch.testing.assert_close(chances.sum(1) + tail, torch.ones(POSITIONS))


def test_of_itself_it_is_0_with_no_slope() -> None:
    hidden, head, targets, counts, _ = inputs()
    only = counts * torch.tensor([[0.0], [1.0]])
    now = by_logits((hidden @ head.t()).detach(), targets, only, recorded(), 0.0)[2:]
    total = linear_der(hidden, head, targets, only, (now[0], now[1]), 0.0)[0]
    total.backward()
    assert float(total.detach()) == pytest.approx(0.0, abs=1e-5)
    assert hidden.grad is not None and float(hidden.grad.abs().max()) < 1e-5


def test_no_logits_of_a_batch_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ON_CPU", 20 * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    hidden, head, targets, counts, then = inputs()
    with Largest() as seen:
        linear_der(hidden, head, targets, counts, then, 0.0)[0].backward()
    assert seen.size == 20 * VOCABULARY < POSITIONS * VOCABULARY


def test_predictions_are_kept_by_name_once_and_forgotten_after_a_checkpoint(
    batches_of: BatchesOf, tmp_path: Path
) -> None:
    def opened() -> Predictions:
        return Predictions(tmp_path / "kept", (40,), length=8, top=3, vocabulary=70_000)

    luck = torch.Generator().manual_seed(0)
    steps = batches_of(5)
    made = [
        [torch.randint(0, 70_000, (4, 8, 3), generator=luck), -torch.rand(4, 8, 3, generator=luck)]
        for _ in steps
    ]

    def known(kept: Predictions, batch: Batch) -> Recorded:
        found = kept.known(replace(batch, replayed=np.ones(4, bool))).recorded
        assert found is not None
        return found

    def write(kept: Predictions, batch: Batch, number: int) -> None:
        none = torch.zeros(())
        kept.write(batch, Metrics(*[none] * 5, 0.0, predictions=made[number]))

    kept = opened()
    for number, batch in enumerate(steps[:3]):
        assert not known(kept, batch).there.any()
        write(kept, batch, number)
    kept.sync()
    write(kept, steps[3], 3)  # after the checkpoint
    assert known(kept, steps[3]).there.all()
    write(kept, steps[0], 4)  # of a second epoch: the first stays
    kept.close()

    kept = opened()
    assert not known(kept, steps[0]).there.any()  # as nobody said that a run goes on
    kept.back(3)
    found = known(kept, steps[0])
    assert found.there.all() and (found.ids == made[0][0].numpy()).all()
    assert (found.logs == made[0][1].half().numpy()).all()
    fresh = kept.known(steps[0]).recorded
    assert fresh is not None and not fresh.there.any()
    assert not known(kept, steps[3]).there.any()
    kept.back(1)
    assert not known(kept, steps[1]).there.any()
    write(kept, steps[1], 4)
    assert (known(kept, steps[1]).ids == made[4][0].numpy()).all()
    kept.close()

    kept = opened()
    kept.back(1)
    kept.sync()
    kept.close()
    kept = opened()
    kept.back(5)  # what was forgotten does not come back with a later checkpoint
    assert known(kept, steps[0]).there.all() and not known(kept, steps[2]).there.any()
    kept.close()
    (tmp_path / "kept/0.top").write_bytes(b"")
    kept = opened()
    kept.back(1)
    with pytest.raises(Invalid, match=r"0\.top: ends before sample 0"):
        known(kept, steps[0])
    kept.close()
    with open(tmp_path / "kept/0.steps", "ab") as file:
        file.truncate(3)
    with pytest.raises(Invalid, match=r"kept/0\.steps: is torn; bring the file back"):
        opened().back(3)
    (tmp_path / "kept/0.steps").unlink()
    with pytest.raises(Invalid, match=r"kept: nothing is recorded .* --fresh"):
        opened().back(3)


@pytest.mark.parametrize("chunked", [True, False])
def test_the_gradient_is_that_of_rows_of_which_something_is_recorded(
    batches_of: BatchesOf, chunked: bool
) -> None:
    """Of five rows, the last two replayed and one of these known; in micro-batches of two."""
    [batch] = batches_of(1, rows=5, replayed=2)
    shape = tables.Model(width=16, depth=1, heads=2, mlp=32, tied=False)
    begun = model.fresh(model.llama(shape, 64, 8), 0)
    objective = NextToken() if chunked else NextToken(None)
    call = forward(
        model.Root(begun, objective), tables.Compute(compile=False, precision="fp32"), 2, Mesh()
    )
    wanted = tables.Objective(replayed=0.5, der=tables.DER(0.7, 3))
    learner = Learner(
        call, tables.Optimizer(), tables.Guard(), objective=wanted, flops_per_token=100.0
    )
    luck = np.random.default_rng(0)
    ids = np.argsort(luck.random((5, 8, 64)))[:, :, :3].astype(np.int32)
    logs = np.log(luck.random((5, 8, 3)) / 3).astype(np.float16)
    there = np.array([False, False, False, False, True])
    metrics = learner.backward(replace(batch, recorded=Recorded(ids, logs, there)))
    found = [param.grad for param in learner.params]
    learner.optimizer.zero_grad()

    logits = begun(torch.from_numpy(batch.tokens[:, :-1])).logits
    counts = torch.tensor([[0.2, 0.2, 0.2, 0.1, 0.1], [0, 0, 0, 0, 0.7 / 5]]) / 8
    total, _, likeliest, chances = by_logits(
        logits.flatten(0, 1), torch.from_numpy(batch.tokens[:, 1:].flatten()),
        counts.repeat_interleave(8, dim=1),
        (torch.from_numpy(ids).flatten(0, 1), torch.from_numpy(logs).flatten(0, 1)), 0.0,
    )  # fmt: skip
    total.backward()
    for one, param in zip(found, learner.params, strict=True):
        torch.testing.assert_close(one, param.grad, rtol=1e-4, atol=1e-6)
    assert metrics.predictions is not None
    assert (metrics.predictions[0] == likeliest.view(5, 8, 3)).all()
    torch.testing.assert_close(metrics.predictions[1], chances.view(5, 8, 3))
    assert learner.backward(batch).predictions is None


SHORT = ("phases.0.tokens=640", "phases.1.tokens=640", "replay.share=0.5")
DER = (*SHORT, "objective.der.weight=0.7", "objective.der.top=4", "objective.replayed=0.5")


def test_off_is_the_plain_run_and_records_nothing(place: Path, tmp_path: Path) -> None:
    off = ("objective.der.weight=0.0", "objective.der.top=4")
    for name, more in (("plain", ()), ("off", off)):
        tiny.run(place / "recipe.toml", tmp_path / name, *SHORT, *more)
    tiny.assert_same_run(tmp_path / "off", tmp_path / "plain")
    assert not (tmp_path / "off/predictions").exists()


@pytest.fixture(scope="module")
def held(forks: tiny.Forks) -> Path:
    out = forks.place / "held"
    code, log = forks.run(out, *(f"--set={one}" for one in DER))
    assert code == 0, log
    return out


def test_the_first_steps_are_those_of_a_run_without_it(
    held: Path, place: Path, tmp_path: Path
) -> None:
    """Until a sample returns; then they are others."""
    more = ("objective.replayed=0.5",)
    tiny.run(place / "recipe.toml", tmp_path / "plain", *SHORT, *more)
    one, other = ([r for r in tiny.story(out) if r["kind"] == "step"] for out in
                  (held, tmp_path / "plain"))  # fmt: skip
    first = next(r["step"] for r in one if r["replayed"])
    assert first > 1
    for a, b in zip(one[: first - 1], other, strict=False):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert abs(one[-1]["loss"] - other[-1]["loss"]) > 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
def test_a_compiled_run_is_the_same_to_rounding(held: Path, place: Path, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "run", *DER, "compute.compile=true")
    assert_same_to_rounding(tmp_path / "run", held, least=20, close=1e-3)


def test_a_killed_run_holds_to_the_same(forks: tiny.Forks, held: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "run", [f"--set={one}" for one in DER]
    tiny.kill_and_go_on(forks, out, 12, *given)
    tiny.assert_same_run(out, held)
    assert tiny.files(out / "predictions") == tiny.files(held / "predictions")


def test_reptile_at_rate_1_goes_around_it_as_plain_steps_do(place: Path, tmp_path: Path) -> None:
    reptile = "update={kind='reptile', every=4, rate=1.0}"
    for name, update in (("plain", "update={kind='descent'}"), ("reptile", reptile)):
        tiny.run(place / "recipe.toml", tmp_path / name, *DER, update)
    tiny.assert_same_run(tmp_path / "reptile", tmp_path / "plain")
    one, other = (tiny.files(tmp_path / name / "predictions") for name in ("plain", "reptile"))
    assert one == other and len(one) == 6  # two of each corpus


@pytest.mark.parametrize(
    ("more", "key"),
    [
        (("objective.der.weight=-1",), r"objective\.der\.weight = -1"),
        (("objective.der.top=0",), r"objective\.der\.top = 0"),
        (("objective.der.top=5000",), r"objective\.der\.top = 5000"),
        (("objective.teacher.weight=1.0",), r"objective\.der\.weight = 0\.7: not beside a teacher"),
        (("update={kind='agem'}",), r"not beside update kind 'agem'"),
        (("anneal.tokens=320",), r"not beside anneal\.tokens"),
    ],
)
def test_what_does_not_go_with_it_is_refused(
    place: Path, tmp_path: Path, more: tuple[str, ...], key: str
) -> None:
    with pytest.raises(Invalid, match=key):
        tiny.run(place / "recipe.toml", tmp_path / "run", *DER, *more)
    assert not (tmp_path / "run").exists()


def test_two_ranks_are_refused(forks: tiny.Forks, tmp_path: Path) -> None:
    code, log = forks.run(tmp_path / "two", *(f"--set={one}" for one in DER), ranks=2)
    assert code and "recorded by one process" in log


def test_a_dry_run_tells_of_two_ranks_and_of_the_disk(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--set={one}" for one in DER]
    dry = ["run", str(place / "recipe.toml"), "--cache", str(tmp_path), "--dry-run", *given]
    assert cli.main([*dry, "--devices", "2"]) == 2
    assert "recorded by one process" in capsys.readouterr().err
    assert cli.main(dry) == 0
    lines = capsys.readouterr().out.splitlines()
    [fresh] = {sum(int(line.replace("│", " ").split()[2].replace(",", "")) for line in lines
                   if line.replace("│", " ").split()[:1] in (["first"], ["second"]))}  # fmt: skip
    [disk] = [line for line in lines if line.startswith("disk")]
    assert f"{fresh * 4 * (2 + 2) / 2**20:,.2f} MiB at most of recorded predictions" in disk
