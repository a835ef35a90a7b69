"""An outer optimizer on the way of k inner updates: Reptile, Lookahead, DiLoCo, Adam."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from treering import config, shelf
from treering.batch import Batch
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.updates import Descent, Outer, PerSample, Reptile
from treering.protocols import Metrics, Update

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]


def learned(learner: Learner, update: Update, batches: list[Batch]) -> list[Metrics]:
    return [update(learner, batch) for batch in batches]


def same(one: Learner, other: Learner) -> bool:
    """Weights and the inner optimizer's moments, bit for bit."""
    pairs = zip(one.state().values(), other.state().values(), strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("more", [{}, {"anchor": "cpu", "align": True}, {"start": 1}])
def test_sgd_without_momentum_is_reptile_bit_for_bit(
    learner_of: LearnerOf, batches_of: BatchesOf, rate: float, more: dict[str, object]
) -> None:
    reptile, outer, batches = learner_of(), learner_of(), batches_of(4, 5)
    expected = learned(reptile, Reptile(3, rate, **more), batches)  # type: ignore[arg-type]
    found = learned(outer, Outer(3, rate, **more), batches)  # type: ignore[arg-type]
    assert same(reptile, outer)
    assert [m.meta_flops for m in found] == [m.meta_flops for m in expected]
    nested = learner_of(), learner_of()
    learned(nested[0], Reptile(2, 0.3, inner=Reptile(2, rate)), batches)
    learned(nested[1], Outer(2, 0.3, inner=Outer(2, rate)), batches)
    assert same(*nested) and not same(nested[0], outer)


def test_at_rate_1_without_momentum_it_is_plain_training_and_keeps_nothing(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    plain, outer, scheduled, batches = learner_of(), learner_of(), learner_of(), batches_of(5, 2)
    learned(plain, Descent(), batches)
    update = Outer(2, 1.0, align=True)
    assert not any(m.meta_flops for m in learned(outer, update, batches))
    learned(scheduled, Outer(2, lambda step: 1.0), batches)
    assert same(plain, outer) and same(plain, scheduled)
    assert update.state(outer) == {}


def test_sgd_without_momentum_is_lookahead(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    """Zhang 2019, Algorithm 1, written out: slow weights, and fast ones begun from them."""
    plain, outer, batches = learner_of(), learner_of(), batches_of(9)
    slow = [param.detach().clone() for param in plain.params]
    for step, batch in enumerate(batches, 1):
        Descent()(plain, batch)
        if step % 3 == 0:
            slow = [torch.lerp(s, p.detach(), 0.4) for s, p in zip(slow, plain.params, strict=True)]
            plain.put(slow)
    learned(outer, Outer(3, 0.4), batches)
    assert same(plain, outer)


Torch = Callable[[list[torch.Tensor]], torch.optim.Optimizer]
THEIRS: dict[str, tuple[dict[str, object], Torch]] = {
    "DiLoCo": (
        {"optimizer": "nesterov", "momentum": 0.9, "rate": 0.7},
        lambda slow: torch.optim.SGD(slow, lr=0.7, momentum=0.9, nesterov=True),
    ),
    "momentum": (
        {"momentum": 0.5, "rate": 0.3},
        lambda slow: torch.optim.SGD(slow, lr=0.3, momentum=0.5),
    ),
    "adam": (
        {"optimizer": "adam", "betas": (0.8, 0.9), "eps": 1e-3, "rate": 1e-2},
        lambda slow: torch.optim.Adam(slow, lr=1e-2, betas=(0.8, 0.9), eps=1e-3),
    ),
}


@pytest.mark.parametrize("place", ["device", "cpu"])
@pytest.mark.parametrize("name", THEIRS)
def test_an_outer_step_is_torchs_on_the_way_back(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str, place: str
) -> None:
    """DiLoCo's outer step on one worker: slow weights whose gradient is slow - fast."""
    fields, theirs = THEIRS[name]
    plain, outer, batches = learner_of(), learner_of(), batches_of(12)
    begun = [param.detach().clone() for param in plain.params]
    slow = [param.detach().clone() for param in plain.params]
    optimizer = theirs(slow)
    for step, batch in enumerate(batches, 1):
        Descent()(plain, batch)
        if step % 3 == 0:
            for s, param in zip(slow, plain.params, strict=True):
                s.grad = s - param.detach()
            optimizer.step()
            plain.put(slow)
    learned(outer, Outer(every=3, anchor=place, **fields), batches)  # type: ignore[arg-type]
    for found, expected, start in zip(outer.params, plain.params, begun, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=2e-6)
        assert not torch.allclose(found, start, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", THEIRS)
def test_in_bf16_the_outer_step_and_what_it_keeps_are_of_fp32(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str
) -> None:
    """A step at rate 0 after it leaves the weights as they are."""
    learner, batches = learner_of(precision="bf16"), batches_of(4)
    begun = [param.detach().clone() for param in learner.params]
    update = Outer(every=3, **THEIRS[name][0])  # type: ignore[arg-type]
    learned(learner, update, batches[:3])
    kinds = {tensor.dtype for held in update.state(learner).values() for tensor in held}
    assert kinds == {torch.float32} == {param.dtype for param in learner.params}
    after = [param.detach().clone() for param in learner.params]
    assert not any(torch.equal(one, other) for one, other in zip(begun, after, strict=True))
    learner.set_rate(0.0)
    update(learner, batches[3])
    assert all(torch.equal(one, other) for one, other in zip(after, learner.params, strict=True))


def test_the_rate_may_be_a_schedule_of_the_runs_steps(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    scheduled, by_hand, batches = learner_of(), learner_of(), batches_of(6)
    learned(scheduled, Outer(2, lambda step: 1 / (step + 1)), batches)
    for first in (0, 2, 4):
        learned(by_hand, Outer(2, 1 / (first + 2)), batches[first : first + 2])
    assert same(scheduled, by_hand)


UPDATES: dict[str, Callable[[], Update]] = {
    "nesterov": lambda: Outer(3, 0.7, optimizer="nesterov", momentum=0.9, align=True),
    "adam": lambda: Outer(3, lambda step: 1e-2 / (step + 1), optimizer="adam", anchor="cpu"),
    "nested": lambda: Outer(2, 0.7, momentum=0.5, inner=Outer(2, 0.5, inner=PerSample())),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("stop", [2, 5, 7])
def test_it_goes_on_bit_for_bit_in_mid_window(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str, stop: int
) -> None:
    rows = 1 if name == "nested" else 4
    batches, update = batches_of(5, 5), UPDATES[name]()
    unbroken, broken, resumed = (learner_of(rows=rows, seed=seed) for seed in (0, 0, 9))
    learned(unbroken, update, batches)
    before, after = UPDATES[name](), UPDATES[name]()
    learned(broken, before, batches[:stop])
    for kind, tensors in (broken.state() | before.state(broken)).items():
        places = (resumed.state() | after.state(resumed))[kind]
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor)
    after.restore(before.counters())
    learned(resumed, after, batches[stop:])
    assert same(resumed, unbroken)
    assert after.counters() == update.counters()


NESTEROV = (
    "update={kind='outer', every=5, optimizer='nesterov', momentum=0.9, anchor='cpu', "
    "rate={kind='linear', peak=0.9, floor=0.1, span='phase'}, start='second'}"
)


def test_a_killed_run_goes_on_in_mid_window(place: Path, forks: tiny.Forks, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "whole", NESTEROV)
    tiny.kill_and_go_on(forks, tmp_path / "killed", 38, "--set", NESTEROV)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_recipes_rate_is_a_number_or_the_table_of_a_schedule(place: Path) -> None:
    recipe = config.load(place / "recipe.toml", sets=(NESTEROV,))
    made = shelf.update(recipe, recipe.update, steps=(25, 20))
    assert isinstance(made, Outer) and callable(made.rate) and made.start == 1
    assert made.rate(0) == made.rate(25) == 0.9 > made.rate(30)
    wrong = {
        "rate='fast'": r"update.rate = 'fast': must be float or a table",
        "rate={kind='linaer', peak=1.0}": r"update.rate: schedule.kind = 'linaer'; did you mean",
        "rate={kind='linear'}": r"update.rate: schedule.peak is missing",
    }
    for given, message in wrong.items():
        sets = (f"update={{kind='outer', every=5, {given}}}",)
        broken = config.load(place / "recipe.toml", sets=sets)
        with pytest.raises(Invalid, match=message):
            shelf.check(broken)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0}, "update.every = 0: must be at least 1 inner update"),
        ({"rate": -0.1}, "update.rate = -0.1: must not be negative"),
        ({"rate": float("nan")}, "update.rate = nan: must not be negative"),
        ({"optimizer": "adamw"}, "update.optimizer = 'adamw': one of"),
        ({"momentum": 1.0}, "update.momentum = 1.0: must be in"),
        ({"optimizer": "nesterov"}, "update.momentum = 0.0: 'nesterov' needs one"),
        ({"optimizer": "adam", "momentum": 0.9}, "update.momentum = 0.9: 'adam' has none"),
        ({"betas": (0.9,)}, "update.betas = .*: two, in"),
        ({"eps": 0.0}, "update.eps = 0.0: must be positive"),
        ({"anchor": "gpu"}, "update.anchor = 'gpu': must be"),
    ],
)
def test_a_field_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        Outer(**({"every": 5, "rate": 0.5} | fields))  # type: ignore[arg-type]


def test_a_rate_of_0_is_said_to_learn_nothing() -> None:
    with pytest.warns(UserWarning, match="update.rate = 0 undoes every window"):
        Outer(3, 0.0)
