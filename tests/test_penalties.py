"""Penalties: each has a test that is its definition; importance has a closed form to meet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import test_mesh
import tiny
import torch
from torch import nn

from treering import config, model, records, tables
from treering.batch import Batch, refs
from treering.config import Invalid
from treering.forward import forward
from treering.learner import Learner
from treering.mesh import Mesh
from treering.methods.objectives import NextToken
from treering.methods.penalties import EWC, L2, MAS
from treering.methods.updates import Descent
from treering.protocols import Penalty

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
WORDS, WIDTH = 6, 3


def drawn_from(batch: Batch) -> Callable[[int], Batch]:
    return lambda count: batch[:count]


def copies(tensors: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


# ------------------------------------------------------------------ importance, in closed form


class Bigrams(nn.Module):
    """Logits = head @ what is known of the last token, which is fixed: logistic regression."""

    config = SimpleNamespace()
    _no_split_modules = None

    def __init__(self) -> None:
        super().__init__()
        luck = torch.Generator().manual_seed(1)
        self.register_buffer("known", torch.randn(WORDS, WIDTH, generator=luck))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(0.3 * torch.randn(WORDS, WIDTH, generator=luck))

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
        return SimpleNamespace(logits=self.head(self.known[input_ids]))


def logistic() -> Learner:
    root = model.Root(Bigrams(), NextToken(None))  # type: ignore[arg-type]
    call = forward(root, tables.Compute(compile=False, precision="fp32"), 4, Mesh())
    return Learner(call, tables.Optimizer(decay=0.0), tables.Guard(), flops_per_token=1.0)


def words(rows: int, length: int) -> Batch:
    tokens = np.random.default_rng(0).integers(0, WORDS, (rows, length + 1))
    names = refs([(0, row) for row in range(rows)])
    return Batch(tokens, names, np.ones(rows, bool), 0, 0, True)


def predicted(learner: Learner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What is known at each position, [rows, length, WIDTH], and the chances, [.., WORDS]."""
    bigrams: Any = learner.forward.root.model
    known = bigrams.known[torch.from_numpy(batch.tokens[:, :-1])]
    return known, (known @ bigrams.head.weight.detach().t()).softmax(-1)


def test_the_fisher_information_of_logistic_regression() -> None:
    """F[v, d] = mean of p_v (1 - p_v) x_d^2 over positions, whatever their labels."""
    learner, batch = logistic(), words(600, 5)
    penalty = EWC(1.0, samples=600)
    flops = penalty.consolidate(learner, drawn_from(batch), 7)
    [found] = penalty.state(learner)["importance"]
    known, chances = predicted(learner, batch)
    spread = chances * (1 - chances)
    wanted = (spread[..., None] * known[..., None, :] ** 2).mean((0, 1))
    assert float((found - wanted).norm() / wanted.norm()) < 0.1  # of 3,000 labels
    assert flops == 3_000.0
    # The square of the mean gradient is something else altogether.
    [gradient] = learner.gradient(batch)
    assert float(gradient.square().norm() / wanted.norm()) < 0.1


def test_the_empirical_fisher_of_logistic_regression() -> None:
    """length * the mean over samples of the square of one's mean gradient, to rounding."""
    learner, batch = logistic(), words(40, 5)
    penalty = EWC(1.0, samples=40, fisher="empirical")
    penalty.consolidate(learner, drawn_from(batch), 7)
    known, chances = predicted(learner, batch)
    labels = nn.functional.one_hot(torch.from_numpy(batch.tokens[:, 1:]), WORDS)
    slopes = ((chances - labels)[..., None] * known[..., None, :]).mean(1)
    wanted = 5 * slopes.square().mean(0)
    torch.testing.assert_close(penalty.state(learner)["importance"][0], wanted)
    assert penalty.counters()["trace"] == pytest.approx(float(wanted.sum()), rel=1e-5)
    after = EWC(1.0, fisher="empirical")
    after.restore(penalty.counters())
    assert after.counters() == penalty.counters()


def test_the_importance_of_memory_aware_synapses() -> None:
    """|d mean ||Wx||^2 / dW| = |2 W x x^T|, the mean over positions and then that of its size."""
    learner, batch = logistic(), words(40, 5)
    penalty = MAS(1.0, samples=30)
    penalty.consolidate(learner, drawn_from(batch), 7)
    known, _ = predicted(learner, batch[:30])
    [weight] = copies(learner.params)
    outer = torch.einsum("nlv,nld->nlvd", known @ weight.t(), known)
    wanted = (2 * outer).mean(1).abs().mean(0)
    torch.testing.assert_close(penalty.state(learner)["importance"][0], wanted)
    penalty.consolidate(learner, drawn_from(batch), 7)  # over phases it is the sum
    torch.testing.assert_close(penalty.state(learner)["importance"][0], 2 * wanted)


def test_labels_are_those_of_an_address() -> None:
    batch, found = words(20, 5), []
    for at in (7, 7, 8):
        learner, penalty = logistic(), EWC(1.0, samples=20)
        penalty.consolidate(learner, drawn_from(batch), at)
        found.append(penalty.state(learner)["importance"][0])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# ------------------------------------------------------------------ values and gradients


def move(learner: Learner, by: float) -> None:
    with torch.no_grad():
        for i, param in enumerate(learner.params):
            param.add_(by * torch.sin(torch.arange(param.numel()) + i).view(param.shape))


def added(learner: Learner, penalty: Penalty) -> tuple[float, list[torch.Tensor]]:
    """The penalty's value, and what it adds to a gradient of 1 everywhere."""
    for param in learner.params:
        param.grad = torch.ones_like(param)
    value = float(penalty(learner))
    found = [param.grad - 1 for param in learner.params if param.grad is not None]
    learner.optimizer.zero_grad()
    return value, found


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_phases_are_summed_as_they_are_written(
    learner_of: LearnerOf, batches_of: BatchesOf, online: bool, gamma: float
) -> None:
    """By autograd on the sum over three phases; online by the recursion, about the last weights."""
    if gamma < 1 and not online:
        with pytest.raises(Invalid, match=r"penalties\.gamma = 0\.5"):
            EWC(3.0, gamma=gamma)
        return
    learner, weight = learner_of(), 3.0
    penalty = EWC(weight, samples=4, online=online, gamma=gamma)
    kept: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    for at, batch in enumerate(batches_of(3)):
        alone = EWC(weight, samples=4)
        for each in (penalty, alone):
            each.consolidate(learner, drawn_from(batch), at)
        kept.append((copies(learner.params), alone.state(learner)["importance"]))
        move(learner, 0.05)
    params = [param.detach().clone().requires_grad_() for param in learner.params]
    shares = [gamma ** (2 - k) if online else 1.0 for k in range(3)]
    wanted = sum(
        weight / 2 * share * (f * (p - c) ** 2).double().sum()
        for share, (centres, fisher) in zip(shares, kept, strict=True)
        for p, c, f in zip(params, kept[-1][0] if online else centres, fisher, strict=True)
    )
    assert isinstance(wanted, torch.Tensor)
    wanted.backward()
    value, found = added(learner, penalty)
    assert value == pytest.approx(float(wanted.detach()), rel=1e-4) and value > 0
    for one, param in zip(found, params, strict=True):
        torch.testing.assert_close(one, param.grad, rtol=1e-3, atol=2e-6)


def test_online_with_gamma_1_and_one_phase_is_multi_task(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, [batch] = learner_of(), batches_of(1)
    both = EWC(2.0, samples=4), EWC(2.0, samples=4, online=True)
    for penalty in both:
        penalty.consolidate(learner, drawn_from(batch), 1)
    move(learner, 0.1)
    (one, slopes), (other, others) = (added(learner, penalty) for penalty in both)
    assert one == pytest.approx(other, rel=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(slopes, others, strict=True))


@pytest.mark.parametrize("anchor", ["start", "phase"])
def test_l2_is_half_the_squared_distance_from_its_anchor(
    learner_of: LearnerOf, anchor: str
) -> None:
    learner, penalty = learner_of(), L2(0.5, anchor)

    def drawn(count: int) -> Batch:
        raise AssertionError("it needs no data")

    held = copies(learner.params)
    penalty.consolidate(learner, drawn, 0)
    move(learner, 0.1)
    value, found = added(learner, penalty)
    assert (value == 0.0) == (anchor == "phase") == (not any(one.any() for one in found))
    if anchor == "phase":
        held = copies(learner.params)
    penalty.consolidate(learner, drawn, 1)
    move(learner, 0.2)
    value, found = added(learner, penalty)
    away = [p.detach() - h for p, h in zip(learner.params, held, strict=True)]
    assert value == pytest.approx(0.25 * float(sum(a.square().sum() for a in away)), rel=1e-5)
    for one, a in zip(found, away, strict=True):
        torch.testing.assert_close(one, 0.5 * a, rtol=1e-4, atol=1e-6)


def test_a_penaltys_gradient_is_clipped_with_that_of_the_loss(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """||g + lambda F (theta - theta*)|| is the norm, and SGD steps along that sum, cut."""
    how = {"kind": "sgd", "decay": 0.0, "rate": 0.1}
    learner, plain = learner_of(clip=0.1, **how), learner_of(clip=0.0, **how)
    learner.penalties = [EWC(50.0, samples=4, fisher="empirical")]
    first, second, third = batches_of(3)
    learner.penalties[0].consolidate(learner, drawn_from(first), 0)
    centre = copies(learner.params)
    learner._clip, plain._clip = 0.0, 0.0
    Descent()(learner, second)  # away from the centre
    learner._clip = 0.1
    plain.put(learner.params)
    before = copies(learner.params)
    own = plain.gradient(third)
    fisher = learner.penalties[0].state(learner)["importance"]
    each = zip(own, fisher, before, centre, strict=True)
    wanted = [g + 50.0 * f * (p - c) for g, f, p, c in each]
    norm = float(torch.stack([part.norm() for part in wanted]).norm())
    found = Descent()(learner, third)
    assert float(found.grad_norm) == pytest.approx(norm, rel=1e-5)
    assert norm > 1.01 * float(torch.stack([part.norm() for part in own]).norm())
    for param, old, part in zip(learner.params, before, wanted, strict=True):
        torch.testing.assert_close(param - old, -0.1 * 0.1 / norm * part, rtol=1e-3, atol=1e-6)


def test_drift_decreases_with_a_penaltys_weight(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    drifts = []
    for weight in (0.0, 1.0, 10.0, 100.0):
        learner = learner_of(decay=0.0, rate=1e-3)
        learner.penalties = [EWC(weight, samples=4, fisher="empirical")]
        first, *rest = batches_of(8)
        learner.penalties[0].consolidate(learner, drawn_from(first), 0)
        held = copies(learner.params)
        steps = [Descent()(learner, batch) for batch in rest]
        assert float(steps[0].penalty or 0) == 0.0
        assert (float(steps[1].penalty or 0) > 0) == (weight > 0), "it is not silently zero"
        drifts.append(
            sum(
                float((p - h).square().sum())
                for p, h in zip(copies(learner.params), held, strict=True)
            )
        )
    importance = learner.penalties[0].state(learner)["importance"]
    assert all(part.dtype == torch.float32 for part in importance)
    assert drifts == sorted(drifts, reverse=True), drifts


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ({"kind": "ewc", "weight": -1.0}, "penalties.weight = -1.0"),
        ({"kind": "mas", "weight": 1.0, "samples": 0}, "penalties.samples = 0"),
        ({"kind": "ewc", "weight": 1.0, "fisher": "batched"}, "penalties.fisher = 'batched'"),
        ({"kind": "l2", "weight": 1.0, "anchor": "end"}, "penalties.anchor = 'end'"),
        ({"kind": "l3", "weight": 1.0}, "penalties[0].kind = 'l3'"),
        ({"kind": "l2"}, "penalties[0].weight is missing"),
    ],
)
def test_what_makes_no_penalty_is_refused(place: Path, line: dict[str, Any], key: str) -> None:
    from treering import shelf

    table = config.toml(place / "recipe.toml") | {"penalties": [line]}
    with pytest.raises(Invalid) as refused:
        shelf.check(config.resolve(table, place))
    assert key in str(refused.value)


def test_penalties_are_not_for_steps_in_other_coordinates(place: Path, tmp_path: Path) -> None:
    wanted = ("update={kind='average', decays=[0.9], inner={kind='coso', rank=2}}",
              "penalties=[{kind='l2', weight=1.0}]")  # fmt: skip
    with pytest.raises(Invalid, match="penalties: not with update kind 'coso'"):
        tiny.run(place / "recipe.toml", tmp_path / "run", *wanted)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ in a run

SHORT = ("phases.0.tokens=640", "phases.1.tokens=640", "replay.share=0.0")
HELD = ("penalties=[{kind='ewc', weight=50.0, samples=6}, {kind='l2', weight=0.01}, "
        "{kind='mas', weight=0.001, samples=5}, "
        "{kind='ewc', weight=5.0, samples=3, online=true, gamma=0.9, "
        "fisher='empirical'}]")  # fmt: skip


def sets(*given: str) -> list[str]:
    return [f"--set={one}" for one in (*SHORT, *given)]


def test_a_weight_of_0_is_the_plain_run(place: Path, tmp_path: Path) -> None:
    zero = "penalties=[{kind='ewc', weight=0.0}, {kind='l2', weight=0}, {kind='mas', weight=0.0}]"
    for name, given in (("plain", ()), ("off", (zero,))):
        tiny.run(place / "recipe.toml", tmp_path / name, *SHORT, *given)
    tiny.assert_same_run(tmp_path / "off", tmp_path / "plain")


@pytest.fixture(scope="module")
def held(forks: tiny.Forks) -> Path:
    out = forks.place / "held"
    code, log = forks.run(out, *sets(HELD))
    assert code == 0, log
    return out


def test_a_run_is_held_from_its_second_phase_and_pays_for_it(held: Path) -> None:
    steps = [record for record in records.read(held) if record["kind"] == "step"]
    assert all(step["penalty"] == 0 for step in steps[:11]) and len(steps) == 20
    assert all(step["penalty"] > 0 for step in steps[11:])
    last = [record for record in records.read(held) if record["kind"] == "checkpoint"][-1]
    traces = [own["trace"] for own in last["counters"]["penalties"] if "trace" in own]
    assert len(traces) == 3 and min(traces) > 0
    spent = np.diff([step["flops"] for step in steps])
    more = float(spent[9] - spent[10])  # of step 11, the second phase's first, and of the next
    assert more == pytest.approx(14 * 16 * spent[0] / 64), "6 + 5 + 3 samples"


def test_what_counts_as_seen_is_held_from_the_first_step(place: Path, tmp_path: Path) -> None:
    given = ("replay.past=['fr']", "penalties=[{kind='ewc', weight=50.0, samples=6}]")
    tiny.run(place / "recipe.toml", tmp_path / "run", *SHORT, *given)
    steps = [record for record in records.read(tmp_path / "run") if record["kind"] == "step"]
    assert steps[0]["penalty"] == 0 and all(step["penalty"] > 0 for step in steps[1:])


@pytest.mark.parametrize("at", [4, 12])
def test_a_killed_run_is_held_by_the_same(
    forks: tiny.Forks, held: Path, tmp_path: Path, at: int
) -> None:
    out = tmp_path / "run"
    tiny.kill_after_step(forks.start(out, *sets(HELD)), out, at)
    code, log = forks.run(out, *sets(HELD))
    assert code == 0, log
    tiny.assert_same_run(out, held)


def test_two_ranks_hold_what_one_holds(forks: tiny.Forks, held: Path, tmp_path: Path) -> None:
    out = tmp_path / "two"
    code, log = forks.run(out, *sets(HELD), ranks=2)
    assert code == 0, log
    test_mesh.assert_same_to_rounding(out, held, least=15, close=5 * test_mesh.CLOSE)
