"""A teacher adds T^2 KL(teacher || model), and what it knew is kept without old data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_mesh
import tiny
import torch
from test_objectives import POSITIONS, VOCABULARY, WIDTH, Largest, given
from torch.nn import functional

from treering import build, config, model, records, tables
from treering.batch import Batch
from treering.config import Invalid
from treering.forward import forward
from treering.learner import Learner
from treering.mesh import Mesh
from treering.methods.objectives import NextToken, chunks, cross_entropy
from treering.methods.objectives.divergence import by_logits, linear_distillation
from treering.roles import taught_rows

BatchesOf = Callable[..., list[Batch]]
Given = tuple[torch.Tensor, ...]


def pair(seed: int = 0) -> Given:
    """Hidden states and head of the model, with gradient; targets; counts of losses and of
    divergences; hidden states and head of a narrower teacher."""
    hidden, head, targets, counts = given(seed)
    luck = torch.Generator().manual_seed(seed + 1)
    known = torch.randn(POSITIONS, WIDTH // 2, generator=luck)
    theirs = torch.randn(VOCABULARY, WIDTH // 2, generator=luck)
    return hidden, head, targets, torch.stack([counts, counts.flip(0)]), known, theirs


def by_chunks(
    hidden: Any, head: Any, targets: Any, counts: Any, known: Any, theirs: Any, *how: float
) -> Any:
    return linear_distillation(hidden, head, targets, counts, (known, theirs), *how)[0]


def by_torch(
    hidden: Any, head: Any, targets: Any, counts: Any, known: Any, theirs: Any, *how: float
) -> Any:
    heat, z = how
    logits = hidden @ head.t()
    losses = functional.cross_entropy(logits, targets, reduction="none")
    ours, wanted = (logits / heat).log_softmax(1), (known @ theirs.t() / heat).log_softmax(1)
    each = functional.kl_div(ours, wanted, log_target=True, reduction="none").sum(1)
    kept = losses + z * logits.logsumexp(1) ** 2
    return (counts[0] * kept).sum() + heat**2 * (counts[1] * each).sum()


def outcome(loss: Callable[..., Any], inputs: Given, *how: float) -> list[torch.Tensor]:
    total = loss(*inputs, *how)
    (3 * total).backward()
    hidden, head = inputs[:2]
    assert hidden.grad is not None and head.grad is not None
    return [total.detach(), hidden.grad, head.grad]


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize(("heat", "z"), [(1.0, 0.0), (2.0, 0.01)])
def test_it_is_the_loss_and_the_divergence_with_their_gradients(
    monkeypatch: pytest.MonkeyPatch, chunk: int, heat: float, z: float
) -> None:
    monkeypatch.setattr(chunks, "ON_CPU", chunk * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    found, wanted = (outcome(loss, pair(), heat, z) for loss in (by_chunks, by_torch))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5)
    hidden, head, targets, counts, known, theirs = pair()
    logits, losses = hidden @ head.t(), functional.cross_entropy
    total, each = by_logits(logits, targets, counts, known @ theirs.t(), heat, z)
    torch.testing.assert_close(total.detach(), wanted[0])
    torch.testing.assert_close(each, losses(logits, targets, reduction="none").detach())


def test_it_has_a_direction_and_is_0_of_itself() -> None:
    hidden, head, targets, counts, *_ = pair()
    hidden, head = hidden.detach(), head.detach()
    other = hidden.flip(0)
    alone = torch.stack([torch.zeros_like(counts[1]), counts[1]])
    one = float(by_chunks(hidden, head, targets, alone, other, head, 2.0))
    back = float(by_chunks(other, head, targets, alone, hidden, head, 2.0))
    assert one > 0 and back > 0 and abs(one - back) > 0.01 * one
    assert float(by_chunks(hidden, head, targets, alone, hidden, head, 2.0)) == 0


def test_neither_logits_of_a_batch_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "ON_CPU", 10 * VOCABULARY)
    monkeypatch.setattr(chunks, "LEAST", 1)
    with Largest() as seen:
        outcome(by_chunks, pair(), 2.0)
    assert seen.size == max(VOCABULARY * WIDTH, 10 * VOCABULARY)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch itself
def test_it_compiles_as_one_graph() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(linear_distillation, dynamic=False, fullgraph=True)

    def whole(*inputs: Any) -> Any:
        hidden, head, targets, counts, known, theirs, *how = inputs
        return compiled(hidden, head, targets, counts, (known, theirs), *how)[0]

    found, wanted = (outcome(loss, pair(), 2.0, 0.01) for loss in (whole, by_chunks))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=5e-6)


def learner_with(wanted: tables.Teacher, *, chunked: bool = True) -> Learner:
    """A learner beside a teacher of other weights."""
    shape = tables.Model(width=16, depth=1, heads=2, mlp=32, tied=False)
    begun, other = (model.fresh(model.llama(shape, 64, 8), seed) for seed in (0, 1))
    objective = NextToken(temperature=wanted.temperature)
    if not chunked:
        objective = NextToken(None, temperature=wanted.temperature)
    root = model.Root(begun, objective, model.Teacher(other, 60.0))
    call = forward(root, tables.Compute(compile=False, precision="fp32"), 2, Mesh())
    made = tables.Objective(teacher=wanted)
    return Learner(call, tables.Optimizer(), tables.Guard(), objective=made, flops_per_token=100.0)


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("on", ["all", "fresh", "replayed"])
def test_the_gradient_is_that_of_both_losses_and_the_loss_recorded_is_one(
    batches_of: BatchesOf, on: str, chunked: bool
) -> None:
    [batch] = batches_of(1, replayed=1)
    learner = learner_with(tables.Teacher(0.7, temperature=2.0, on=on), chunked=chunked)
    plain = learner_with(tables.Teacher(0.0), chunked=chunked)
    metrics, wanted = learner.backward(batch), plain.backward(batch)
    assert float(metrics.loss) == pytest.approx(float(wanted.loss), rel=1e-6)
    root = plain.forward.root
    assert root.teacher is not None
    tokens = torch.from_numpy(batch.tokens)
    rows = {"all": [1.0] * 4, "fresh": [1.0, 1.0, 1.0, 0.0], "replayed": [0.0, 0.0, 0.0, 1.0]}[on]
    ours, theirs = (each(tokens[:, :-1]).logits / 2 for each in (root.model, root.teacher.model))
    each = functional.kl_div(
        ours.log_softmax(2), theirs.detach().log_softmax(2), log_target=True, reduction="none"
    )
    (0.7 * 4 / 4 * (torch.tensor(rows) * each.sum(2).mean(1)).sum()).backward()
    for one, other in zip(learner.params, plain.params, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    asked = {"all": 4, "fresh": 4, "replayed": 2}[on]  # whole micro-batches of two
    extra = metrics.training_flops - wanted.training_flops
    assert extra == asked * 8 * 60.0 / 3
    assert all(param.grad is None for param in root.teacher.parameters())
    assert not root.teacher.training and not root.teacher.model.training and root.training


def test_the_teacher_of_a_phase_is_the_model_at_the_last_ones_end(batches_of: BatchesOf) -> None:
    """Until it is remembered anew it stays what it was; then the divergence from it is 0."""
    first, second = batches_of(1, 1)
    wanted = tables.Teacher(0.7, from_="phase")
    learner = learner_with(wanted)
    learner.set_rate(1e-2)
    before = [known.detach().clone() for known in learner.taught]
    learner.backward(first)
    learner.apply()
    assert all(map(torch.equal, before, learner.taught))
    learner.remember()
    assert all(map(torch.equal, learner.params, learner.taught))
    assert not any(map(torch.equal, before, learner.taught))
    plain = learner_with(tables.Teacher(0.0))
    plain.put(learner.params)
    learner.backward(second)
    plain.backward(second)
    for one, other in zip(learner.params, plain.params, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7)


def test_rows_are_taught_at_every_other_step_and_after_the_first_phase(
    batches_of: BatchesOf,
) -> None:
    batches = batches_of(3, 3)
    often = tables.Objective(teacher=tables.Teacher(0.5, every=2))
    late = tables.Objective(teacher=tables.Teacher(0.5, from_="phase"))
    found = [[bool(taught_rows(each, batch).any()) for batch in batches] for each in (often, late)]
    assert found == [[True, False, True, False, True, False], [False] * 3 + [True] * 3]
    np.testing.assert_array_equal(taught_rows(often, batches[0]), np.full(4, 0.125, np.float32))


# ------------------------------------------------------------------ in a run

SHORT = ("phases.0.tokens=640", "phases.1.tokens=640")
TAUGHT = ("objective.teacher.weight=2.0", "objective.teacher.from=phase", "objective.z=1e-3",
          "objective.teacher.every=2", "objective.replayed=0.5")  # fmt: skip


def test_off_is_the_plain_run_and_has_no_teacher(place: Path, tmp_path: Path) -> None:
    off = ("objective.teacher.weight=0.0", "objective.teacher.from=phase", "objective.z=0.0",
           "objective.fresh=1.0", "objective.normalize=weights")  # fmt: skip
    for name, more in (("plain", ()), ("off", off)):
        tiny.run(place / "recipe.toml", tmp_path / name, *SHORT, *more)
    tiny.assert_same_run(tmp_path / "off", tmp_path / "plain")
    recipe = config.load(place / "recipe.toml", sets=off)
    parts = build.parts(recipe, build.data(recipe, place / "cache"), Mesh())
    assert parts.learner.forward.root.teacher is None


def test_a_teacher_lies_in_bf16_where_products_are_and_teaches_nearly_the_same(
    place: Path, tmp_path: Path
) -> None:
    """Its weights, that is; not its buffers, nor the weights of the one that learns."""
    low = (*SHORT, *TAUGHT, "compute.precision='bf16'")
    recipe = config.load(place / "recipe.toml", sets=low)
    root = build.parts(recipe, build.data(recipe, place / "cache"), Mesh()).learner.forward.root
    assert root.teacher is not None
    assert {p.dtype for p in root.teacher.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in root.teacher.model.buffers()} == {torch.float32}
    assert {p.dtype for p in root.model.parameters()} == {torch.float32}
    for name, sets in (("bf16", low), ("fp32", low[:-1])):
        tiny.run(place / "recipe.toml", tmp_path / name, *sets)
    one, other = ([r["loss"] for r in tiny.story(tmp_path / name) if r["kind"] == "step"]
                  for name in ("bf16", "fp32"))  # fmt: skip
    assert one == pytest.approx(other, rel=5e-3) and one != other


def test_a_teacher_costs_its_forward_pass_whatever_is_frozen(place: Path) -> None:
    found = []
    for frozen in ((), ("optimizer.groups=[{match='layers', rate=0.0}]",)):
        recipe = config.load(place / "recipe.toml", sets=("objective.teacher.weight=1.0", *frozen))
        parts = build.parts(recipe, build.data(recipe, place / "cache"), Mesh())
        assert parts.learner.forward.root.teacher is not None
        found.append(parts.learner.forward.root.teacher.flops)
        costs = parts.learner.flops_per_token
    assert found[0] == found[1] > costs / 3


@pytest.fixture(scope="module")
def taught(forks: tiny.Forks) -> Path:
    out = forks.place / "taught"
    code, log = forks.run(out, *(f"--set={one}" for one in (*SHORT, *TAUGHT)))
    assert code == 0, log
    return out


def test_a_killed_run_is_taught_by_the_same(
    forks: tiny.Forks, taught: Path, tmp_path: Path
) -> None:
    out, given = tmp_path / "run", [f"--set={one}" for one in (*SHORT, *TAUGHT)]
    tiny.kill_and_go_on(forks, out, 12, *given)
    tiny.assert_same_run(out, taught)


def test_two_ranks_are_taught_as_one_is(forks: tiny.Forks, taught: Path, tmp_path: Path) -> None:
    out, given = tmp_path / "two", [f"--set={one}" for one in (*SHORT, *TAUGHT)]
    code, log = forks.run(out, *given, ranks=2)
    assert code == 0, log
    test_mesh.assert_same_to_rounding(out, taught, least=15, close=5 * test_mesh.CLOSE)


def test_on_two_ranks_a_teacher_is_read_by_rows(forks: tiny.Forks, tmp_path: Path) -> None:
    """From a folder, by each rank its part: the run's own beginning, and the same by its name."""
    only = "phases=[{name='en', tokens=320, mixture={en=1.0}}]"
    assert forks.run(tmp_path / "begun", f"--set={only}")[0] == 0
    begun = tmp_path / "begun/model"
    on = (f"model={{from='{begun}'}}", f"tokenizer={{from='{begun}'}}", "replay.share=0.0",
          "phases=[{name='fr', tokens=320, mixture={fr=1.0}}]",
          "objective.teacher.weight=2.0")  # fmt: skip
    for name, ranks, source in (("one", 1, "start"), ("two", 2, "start"), ("folder", 2, begun)):
        given = [f"--set={one}" for one in (*on, f"objective.teacher.from={source}")]
        code, log = forks.run(tmp_path / name, *given, ranks=ranks)
        assert code == 0, log
    close = 5 * test_mesh.CLOSE
    test_mesh.assert_same_to_rounding(tmp_path / "two", tmp_path / "one", least=5, close=close)
    tiny.assert_same_run(tmp_path / "folder", tmp_path / "two")


def test_what_the_model_began_with_is_kept_without_old_data(place: Path, tmp_path: Path) -> None:
    """English, then a run of French alone from it: forgetting is less under its own teacher. And a
    teacher of the same weights in a folder is the teacher "start", bit for bit."""
    recipe, begun = place / "recipe.toml", tmp_path / "begun"
    only = "phases=[{name='en', tokens=6400, mixture={en=1.0}}]"
    tiny.run(recipe, begun, only, "replay.share=0.0", "update={kind='descent'}")
    on = (f"model={{from='{begun / 'model'}'}}", f"tokenizer={{from='{begun / 'model'}'}}",
          "phases=[{name='fr', tokens=1280, mixture={fr=1.0}}]", "replay.share=0.0",
          "update={kind='descent'}")  # fmt: skip
    english = {}
    for name, weight, source in (("free", 0.0, "start"), ("start", 4.0, "start"),
                                 ("folder", 4.0, begun / "model")):  # fmt: skip
        more = (f"objective.teacher.weight={weight}", f"objective.teacher.from={source}")
        tiny.run(recipe, tmp_path / name, *on, *more)
        scores = [r for r in records.read(tmp_path / name) if r["kind"] == "score"]
        english[name] = [r["loss"] for r in scores if r["corpus"] == "en"][-1]
    assert english["start"] < english["free"] - 0.05
    tiny.assert_same_run(tmp_path / "folder", tmp_path / "start")
    wide = ("model.width=32", "tokenizer.train=350", f"objective.teacher.from={begun / 'model'}")
    with pytest.raises(Invalid, match=r"objective\.teacher\.from = .*name one of its kind"):
        tiny.run(recipe, tmp_path / "other", *wide, "objective.teacher.weight=1.0")


@pytest.mark.parametrize(
    ("key", "value"),
    [("teacher.weight", -1.0), ("teacher.temperature", 0.0), ("teacher.on", "old"),
     ("teacher.every", 0), ("z", -1.0), ("fresh", 0.0), ("replayed", -1.0),
     ("normalize", "tokens")],
)  # fmt: skip
def test_what_makes_no_objective_is_refused(place: Path, key: str, value: object) -> None:
    with pytest.raises(Invalid, match=rf"objective\.{key} = "):
        config.load(place / "recipe.toml", sets=(f"objective.{key}={value}",))


@pytest.mark.parametrize("loss", ["cross_entropy", "divergence"])
def test_a_frozen_head_has_no_gradient_and_changes_no_other(loss: str) -> None:
    luck = torch.Generator().manual_seed(3)
    hidden, known = (torch.randn(POSITIONS, WIDTH, generator=luck) for _ in range(2))
    head, theirs = (torch.randn(VOCABULARY, WIDTH, generator=luck) for _ in range(2))
    counts = torch.rand(POSITIONS, generator=luck)
    targets = torch.arange(POSITIONS) % VOCABULARY
    found = []
    for trained in (True, False):
        own, its = hidden.clone().requires_grad_(), head.clone().requires_grad_(trained)
        if loss == "divergence":
            both = torch.stack([counts, counts])
            total = linear_distillation(own, its, targets, both, (known, theirs), 2.0)[0]
        else:
            total = cross_entropy.linear_cross_entropy(own, its, targets, counts)[0]
        total.backward()  # type: ignore[no-untyped-call]
        assert (its.grad is not None) == trained
        assert own.grad is not None
        found.append(own.grad)
    assert torch.equal(*found)
