"""Updates: each has a test that is its definition, written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from treering.batch import Batch, refs
from treering.config import Invalid
from treering.learner import Learner
from treering.lengths import lengths
from treering.loop import Rules, train
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.methods.updates import Descent, PerSample, Reptile
from treering.plan import Planner, Stage
from treering.position import State
from treering.protocols import Applied, Memory, Metrics, Update
from treering.rng import key, permute
from treering.store import Store
from treering.stream import Stream

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
Tensors = list[torch.Tensor]
STATE = State(0, 0, 0, (), (), {}, {})


def weights(learner: Learner) -> Tensors:
    return [param.detach().clone() for param in learner.params]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def near(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], atol: float = 1e-6) -> bool:
    """Within a few roundings: norms have weights of 1, whose last digit is 1.2e-7."""
    return all(torch.allclose(x, y, rtol=0, atol=atol) for x, y in zip(a, b, strict=True))


def learned(learner: Learner, update: Update, batches: Sequence[Batch]) -> list[Metrics]:
    return [update(learner, batch) for batch in batches]


def meta_steps(metrics: Sequence[Metrics]) -> list[int]:
    """The completed steps after which there was a meta-update."""
    return [step for step, one in enumerate(metrics, 1) if one.meta_flops]


# ------------------------------------------------------------------ rates 1 and 0


@pytest.mark.parametrize("micro", [4, 1])
@pytest.mark.parametrize("align", [False, True])
def test_rate_1_is_bit_for_bit_plain_training(
    learner_of: LearnerOf, batches_of: BatchesOf, micro: int, align: bool
) -> None:
    plain, reptile = learner_of(rows=micro), learner_of(rows=micro)
    batches = batches_of(5, 4, replayed=1)
    expected = learned(plain, Descent(), batches)
    got = learned(reptile, Reptile(every=2, rate=1, align=align), batches)
    assert same(plain.params, reptile.params)
    everything = zip(plain.state().values(), reptile.state().values(), strict=True)
    assert all(same(a, b) for a, b in everything)
    assert [float(m.loss) for m in got] == [float(m.loss) for m in expected]
    assert meta_steps(got) == []


def test_rate_1_keeps_no_anchor(learner_of: LearnerOf) -> None:
    assert Reptile(every=2, rate=1).state(learner_of()) == {}


def test_rate_0_restores_the_anchor_exactly_and_warns(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    with pytest.warns(UserWarning, match="update.rate = 0 undoes every window"):
        update = Reptile(every=3, rate=0)
    learner = learner_of()
    begun = weights(learner)
    for step, batch in enumerate(batches_of(7), 1):
        update(learner, batch)
        assert same(learner.params, begun) == (step % 3 == 0)


@pytest.mark.parametrize("rate", [0.5, 0.1])
def test_a_meta_update_keeps_a_share_of_the_way_gone(
    learner_of: LearnerOf, batches_of: BatchesOf, rate: float
) -> None:
    plain, reptile = learner_of(), learner_of()
    begun, batches = weights(plain), batches_of(3)
    learned(plain, Descent(), batches)
    learned(reptile, Reptile(every=3, rate=rate), batches)
    expected = [a + rate * (w - a) for a, w in zip(begun, plain.params, strict=True)]
    assert near(reptile.params, expected, 2e-7)
    # The inner optimizer is not touched: its moments and steps are those of plain training.
    for name in ("exp_avg", "exp_avg_sq", "step"):
        moments = f"optimizer.{name}"
        assert same(plain.state()[moments], reptile.state()[moments])


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("anchor", ["device", "cpu"])
def test_after_a_meta_update_a_step_at_rate_zero_leaves_the_interpolated_weights(
    learner_of: LearnerOf, batches_of: BatchesOf, decay: float, anchor: str
) -> None:
    """Under bf16 autocast with fp32 weights: the released code loses the interpolation here."""
    learner = learner_of(precision="bf16", decay=decay)
    plain = learner_of(precision="bf16", decay=decay)
    begun, batches = weights(learner), batches_of(4)
    update = Reptile(every=3, rate=0.5, anchor=anchor)
    learned(learner, update, batches[:3])
    learned(plain, Descent(), batches[:3])
    expected = [torch.lerp(a, w.detach(), 0.5) for a, w in zip(begun, plain.params, strict=True)]
    assert same(learner.params, expected)
    assert not same(learner.params, plain.params)
    learner.set_rate(0.0)
    update(learner, batches[3])
    assert same(learner.params, expected)
    module = learner.forward.root.model.parameters()
    assert same([param.detach() for param in module], expected)


# ------------------------------------------------------------------ scalars and quadratics


class Functions:
    """A learner of one vector by plain SGD; the batch's step says which loss it descends."""

    def __init__(
        self,
        losses: Sequence[Callable[[torch.Tensor], torch.Tensor]],
        begin: list[float],
        rate: float,
    ) -> None:
        self.losses, self.rate = losses, rate
        self.theta = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
        self.params: Sequence[torch.Tensor] = [self.theta]

    def backward(self, batch: Batch) -> Metrics:
        loss = self.losses[batch.step % len(self.losses)](self.theta)
        loss.backward()
        none = torch.full((), torch.nan)
        return Metrics(loss.detach(), loss.detach(), none, none, none, training_flops=0.0)

    def apply(self) -> Applied:
        assert self.theta.grad is not None
        gradient, self.theta.grad = self.theta.grad, None
        with torch.no_grad():
            self.theta -= self.rate * gradient
        return Applied(gradient.norm(), torch.zeros(()))


def steps(n: int) -> list[Batch]:
    empty = np.zeros((1, 2), np.int64)
    return [Batch(empty, refs([(0, i)]), np.zeros(1, bool), i, 0, False) for i in range(n)]


@pytest.mark.filterwarnings("ignore:update.rate = 0")
def test_the_scalar_example() -> None:
    """By hand: theta 1 -> 0.9 -> 0.92; Reptile at .5, .1 and 0 gives .96, .992 and 1."""
    losses = [lambda t: t[0] ** 2 / 2, lambda t: (t[0] - 1) ** 2]
    plain, path = Functions(losses, [1.0], 0.1), []
    for batch in steps(2):
        Descent()(plain, batch)
        path.append(float(plain.theta.detach()))
    assert path == pytest.approx([0.9, 0.92], abs=1e-15)
    for rate, expected in ((0.5, 0.96), (0.1, 0.992), (0.0, 1.0), (1.0, 0.92)):
        learner = Functions(losses, [1.0], 0.1)
        learned(learner, Reptile(every=2, rate=rate), steps(2))  # type: ignore[arg-type]
        assert float(learner.theta.detach()) == pytest.approx(expected, abs=1e-15)


def test_two_steps_on_quadratics_obey_their_identity_exactly() -> None:
    """(theta_2 - theta) / beta = -g_1 - g_2 + beta H_2 g_1; in the scalar example -0.8."""
    random, beta, rate = np.random.default_rng(0), 0.05, 0.3
    halves = [random.normal(size=(3, 3)) for _ in range(2)]
    hessians = [torch.from_numpy(half @ half.T) for half in halves]
    centres = [torch.from_numpy(random.normal(size=3)) for _ in range(2)]
    begin = [0.4, -1.1, 0.7]

    def loss(h: torch.Tensor, c: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda theta: (theta - c) @ h @ (theta - c) / 2

    pairs = zip(hessians, centres, strict=True)
    learner = Functions([loss(h, c) for h, c in pairs], begin, beta)
    learned(learner, Reptile(every=2, rate=rate), steps(2))  # type: ignore[arg-type]
    theta = torch.tensor(begin, dtype=torch.float64)
    g1, g2 = (h @ (theta - c) for h, c in zip(hessians, centres, strict=True))
    direction = (learner.theta.detach() - theta) / (beta * rate)
    assert torch.allclose(direction, -g1 - g2 + beta * hessians[1] @ g1, rtol=0, atol=1e-12)
    example = Functions([lambda t: t[0] ** 2 / 2, lambda t: (t[0] - 1) ** 2], [1.0], 0.1)
    learned(example, Reptile(every=2, rate=0.5), steps(2))  # type: ignore[arg-type]
    assert (float(example.theta.detach()) - 1) / (0.1 * 0.5) == pytest.approx(-0.8, abs=1e-12)


def test_the_direction_of_reptile_rewards_gradients_that_agree() -> None:
    """Nichol 2018, section 5.1. Three losses, plain SGD: the mean over an order and its reverse is
    -grad(sum L) + beta / 2 grad(sum g_i . g_j), with an error proportional to beta squared."""
    random = np.random.default_rng(1)
    mixes = [torch.from_numpy(random.normal(size=(4, 3))) for _ in range(3)]
    losses = [lambda t, m=m: (m @ t).exp().sum().log() + (t**4).sum() / 4 for m in mixes]
    begin, rate = [0.3, -0.4, 0.8], 0.5

    def direction(order: list[int], beta: float) -> torch.Tensor:
        learner = Functions([losses[i] for i in order], begin, beta)
        learned(learner, Reptile(every=3, rate=rate), steps(3))  # type: ignore[arg-type]
        start = torch.tensor(begin, dtype=torch.float64)
        return (learner.theta.detach() - start) / (beta * rate)

    theta = torch.tensor(begin, dtype=torch.float64, requires_grad=True)
    gs = [torch.autograd.grad(loss(theta), theta, create_graph=True)[0] for loss in losses]
    [agreement] = torch.autograd.grad(gs[0] @ gs[1] + gs[0] @ gs[2] + gs[1] @ gs[2], theta)

    def error(beta: float) -> float:
        mean = (direction([0, 1, 2], beta) + direction([2, 1, 0], beta)) / 2
        return float((mean - (-sum(gs) + beta / 2 * agreement)).detach().norm())

    errors = [error(beta) for beta in (0.004, 0.002, 0.001)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.05)
    assert errors[2] < 1e-3 * float(agreement.norm())


# ------------------------------------------------------------------ Riemer's algorithms


class Plain:
    """Plain SGD on single rows, written out: the oracle for Riemer's algorithms."""

    def __init__(self, learner: Learner, rate: float) -> None:
        self.model = copy.deepcopy(learner.forward.root.model)
        self.params = list(self.model.parameters())
        self.rate = rate

    def descend(self, row: np.ndarray) -> None:
        tokens = torch.from_numpy(row)[None]
        logits = self.model(tokens[:, :-1]).logits
        loss = functional.cross_entropy(logits[0], tokens[0, 1:])
        gradients = torch.autograd.grad(loss, self.params)
        with torch.no_grad():
            for param, gradient in zip(self.params, gradients, strict=True):
                param -= self.rate * gradient

    def copies(self) -> Tensors:
        return [param.detach().clone() for param in self.params]

    def interpolate(self, anchor: Tensors, share: float) -> None:
        with torch.no_grad():
            for param, a in zip(self.params, anchor, strict=True):
                param.copy_(a + share * (param - a))


SGD = {"kind": "sgd", "decay": 0.0, "clip": 0.0, "rate": 0.1}


@pytest.mark.parametrize(("s", "gamma"), [(2, 0.3), (3, 0.9), (1, 1.0)])
def test_nested_reptile_is_riemers_algorithm_1(
    learner_of: LearnerOf, batches_of: BatchesOf, s: int, gamma: float
) -> None:
    beta = 0.4
    learner = learner_of(rows=1, **SGD)
    oracle, batches = Plain(learner, 0.1), batches_of(6, rows=3, replayed=2)
    begun = oracle.copies()
    for first in range(0, 6, s):
        outer = oracle.copies()
        for batch in batches[first : first + s]:
            inner = oracle.copies()
            for row in batch.tokens:
                oracle.descend(row)
            oracle.interpolate(inner, beta)
        oracle.interpolate(outer, gamma)
    nested = Reptile(
        inner=Reptile(inner=PerSample(Descent()), every=1, rate=beta), every=s, rate=gamma
    )
    learned(learner, nested, batches)
    assert near(learner.params, oracle.params)
    assert not near(learner.params, begun, 1e-3)


def test_riemers_algorithm_6_is_algorithm_1_with_gamma_1_and_one_batch(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """One level, the current example last."""
    gamma = 0.3
    learner = learner_of(rows=1, **SGD)
    oracle, batches = Plain(learner, 0.1), batches_of(4, rows=3, replayed=2)
    for batch in batches:
        anchor = oracle.copies()
        current, *replayed = batch.tokens
        for row in (*replayed, current):
            oracle.descend(row)
        oracle.interpolate(anchor, gamma)
    last = [
        replace(batch, tokens=np.roll(batch.tokens, -1, 0), replayed=np.roll(batch.replayed, -1))
        for batch in batches
    ]
    one = Reptile(inner=Reptile(inner=PerSample(), every=1, rate=gamma), every=1, rate=1)
    learned(learner, one, last)
    assert near(learner.params, oracle.params)
    single = learner_of(rows=1, **SGD)
    learned(single, Reptile(inner=PerSample(), every=1, rate=gamma), last)
    assert same(single.params, learner.params)


def test_all_coefficients_1_is_plain_sgd_on_the_concatenated_rows(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    batches = batches_of(4, rows=3, replayed=2)
    nested, plain = learner_of(rows=1, **SGD), learner_of(rows=1, **SGD)
    update = Reptile(inner=Reptile(inner=PerSample(), every=1, rate=1), every=2, rate=1)
    learned(nested, update, batches)
    learned(plain, Descent(), [batch[i : i + 1] for batch in batches for i in range(3)])
    assert same(nested.params, plain.params)
    oracle = Plain(learner_of(rows=1, **SGD), 0.1)
    for row in np.concatenate([batch.tokens for batch in batches]):
        oracle.descend(row)
    assert near(nested.params, oracle.params)


def test_per_sample_reports_the_means_of_its_rows(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    [batch] = batches_of(1, rows=3, replayed=1)
    metrics = PerSample()(learner_of(rows=1, **(SGD | {"rate": 0.0})), batch)
    whole = learner_of(rows=3).backward(batch)
    for name in ("loss", "fresh_loss", "replayed_loss", "training_flops"):
        assert float(getattr(metrics, name)) == pytest.approx(float(getattr(whole, name)), abs=1e-6)
    assert float(metrics.grad_norm) > 0


# ------------------------------------------------------------------ when


@pytest.mark.parametrize("micro", [4, 1])
def test_meta_updates_come_at_steps_k_2k_and_so_on_whatever_the_micro_batch(
    learner_of: LearnerOf, batches_of: BatchesOf, micro: int
) -> None:
    """The counter counts optimizer steps, and step 0 is none of them."""
    learner = learner_of(rows=micro)
    metrics = learned(learner, Reptile(every=3, rate=0.5), batches_of(8, 3))
    assert meta_steps(metrics) == [3, 6, 9]
    size = sum(param.numel() for param in learner.params)
    assert {m.meta_flops for m in metrics} == {0.0, 3.0 * size}


def test_every_counts_inner_updates(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    batches = batches_of(4, rows=3)
    outside = learned(learner_of(rows=1), Reptile(inner=PerSample(), every=2, rate=0.5), batches)
    assert meta_steps(outside) == [2, 4]  # a call of PerSample is a batch
    learner = learner_of(rows=1)
    size = 3.0 * sum(param.numel() for param in learner.params)
    inside = learned(learner, PerSample(Reptile(every=2, rate=0.5)), batches)
    assert [m.meta_flops / size for m in inside] == [1, 2, 1, 2]  # a call of Descent is a row


def test_align_adds_a_meta_update_at_each_phases_end(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    batches = batches_of(5, 4, 2)
    metrics = learned(learner_of(), Reptile(every=3, rate=0.5, align=True), batches)
    assert meta_steps(metrics) == [3, 5, 8, 9, 11]  # the cycle begins anew after each
    metrics = learned(learner_of(), Reptile(every=3, rate=0.5), batches)
    assert meta_steps(metrics) == [3, 6, 9]


def test_the_weights_stand_as_they_are_in_mid_cycle(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    plain, reptile = learner_of(), learner_of()
    batches = batches_of(2)
    learned(plain, Descent(), batches)
    learned(reptile, Reptile(every=3, rate=0.5), batches)
    assert same(plain.params, reptile.params)


def test_start_begins_the_update_at_its_phase(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    batches = batches_of(4, 5)
    plain, late, by_hand = learner_of(), learner_of(), learner_of()
    update = Reptile(every=2, rate=0.5, start=1)
    metrics = learned(late, update, batches[:4])
    learned(plain, Descent(), batches[:4])
    assert same(plain.params, late.params)
    metrics += learned(late, update, batches[4:])
    assert meta_steps(metrics) == [6, 8]
    learned(by_hand, Descent(), batches[:4])
    learned(by_hand, Reptile(every=2, rate=0.5), batches[4:])  # its anchor: where it began
    assert same(by_hand.params, late.params)


def test_an_anchor_on_the_cpu_equals_one_on_the_device(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    device, cpu = learner_of(), learner_of()
    batches = batches_of(7)
    learned(device, Reptile(every=2, rate=0.3, anchor="device"), batches)
    update = Reptile(every=2, rate=0.3, anchor="cpu")
    learned(cpu, update, batches)
    assert same(device.params, cpu.params)
    assert {tensor.device.type for tensor in update.state(cpu)["anchor"]} == {"cpu"}


def updates() -> dict[str, Callable[[], Update]]:
    return {
        "reptile": lambda: Reptile(every=3, rate=0.5),
        "late": lambda: Reptile(every=3, rate=0.5, start=1, align=True),
        "nested": lambda: Reptile(
            inner=Reptile(inner=PerSample(), every=2, rate=0.5), every=2, rate=0.3
        ),
        "per sample": lambda: PerSample(Reptile(every=5, rate=0.4)),
    }


@pytest.mark.parametrize("name", list(updates()))
@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_anchors_calls_and_moments_restored_in_mid_cycle_continue_bit_for_bit(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str, stop: int
) -> None:
    make, rows = updates()[name], 1 if name in ("nested", "per sample") else 3
    batches = batches_of(5, 5, rows=3)
    unbroken, update = learner_of(rows=rows), make()
    learned(unbroken, update, batches)

    broken, before = learner_of(rows=rows), make()
    learned(broken, before, batches[:stop])
    saved = [t.clone() for ts in broken.state().values() for t in ts]
    anchors = {n: [t.clone() for t in ts] for n, ts in before.state(broken).items()}
    counters = before.counters()

    resumed, after = learner_of(rows=rows, seed=9), make()
    places = [t for ts in resumed.state().values() for t in ts]
    into = after.state(resumed)
    assert into.keys() == anchors.keys()
    for place, tensor in zip(places, saved, strict=True):
        place.copy_(tensor)
    for kind, tensors in anchors.items():
        for place, tensor in zip(into[kind], tensors, strict=True):
            place.copy_(tensor)
    after.restore(counters)
    learned(resumed, after, batches[stop:])
    assert same(resumed.params, unbroken.params)
    assert after.counters() == update.counters()
    both = zip(after.state(resumed).values(), update.state(unbroken).values(), strict=True)
    assert all(same(a, b) for a, b in both)


def test_a_restored_update_without_its_calls_would_not_continue(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """That the test above can fail: the position in the cycle matters."""
    batches = batches_of(6)
    unbroken, forgetful = learner_of(), learner_of()
    learned(unbroken, Reptile(every=3, rate=0.5), batches)
    learned(forgetful, Reptile(every=3, rate=0.5), batches[:2])
    learned(forgetful, Reptile(every=3, rate=0.5), batches[2:])
    assert not same(unbroken.params, forgetful.params)


# ------------------------------------------------------------------ share 0


@pytest.mark.parametrize("memory", [Everything(), Reservoir(9), Balanced()])
def test_share_0_trains_bit_for_bit_as_sequential_training(
    learner_of: LearnerOf, store_of: Callable[..., Store], memory: Memory
) -> None:
    random, length = np.random.default_rng(0), 8
    tokens = [random.integers(0, 64, 401), random.integers(0, 64, 241)]
    stores = [store_of(f"{type(memory).__name__}{i}", part) for i, part in enumerate(tokens)]
    stages = (Stage(20, (1, 0)), Stage(12, (0, 1)))
    sizes = tuple(store.samples(length) for store in stores)
    planner = Planner(
        7, ("a", "b"), sizes, (False, True), stages, 4, Fraction(0), "total", memory, "all"
    )
    stream = Stream(planner, stores, lengths(planner), length, 64)
    replay, sequential = learner_of(), learner_of()
    rules = Rules(7, lambda step: 1e-2 / (step + 1))
    for done in train(replay, Descent(), stream.batches(planner.start()), rules):
        assert not done.batch.replayed.any()
    step = 0
    for name, part, size, count in zip("ab", tokens, sizes, (20, 12), strict=True):
        order = permute(np.arange(count), size, key(7, "order", name, 0))
        for first in range(0, count, 4):
            at = order[first : first + 4] * length
            rows = np.stack([part[i : i + length + 1] for i in at])
            empty = Batch(rows, refs([(0, 0)] * 4), np.zeros(4, bool), step, 0, False)
            sequential.set_rate(1e-2 / (step + 1))
            Descent()(sequential, empty)
            step += 1
    assert same(replay.params, sequential.params)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0, "rate": 0.5}, "update.every = 0: must be at least 1 inner update"),
        ({"every": 5, "rate": 1.5}, "update.rate = 1.5: must be in"),
        ({"every": 5, "rate": -0.1}, "update.rate = -0.1: must be in"),
        ({"every": 5, "rate": 0.5, "anchor": "gpu"}, "update.anchor = 'gpu': must be"),
    ],
)
def test_a_field_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        Reptile(**fields)  # type: ignore[arg-type]
