"""Reptile: its rates, when it comes, its anchor, and that it goes on in mid-cycle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from updating import BatchesOf, LearnerOf, learned, near, same, weights

from treering.config import Invalid
from treering.methods.updates import Descent, Outer, PerSample, Reptile
from treering.protocols import Metrics, Update


def meta_steps(metrics: Sequence[Metrics]) -> list[int]:
    """The completed steps after which there was a meta-update."""
    return [step for step, one in enumerate(metrics, 1) if one.meta_flops]


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


@pytest.mark.parametrize("kind", ["reptile", "outer"])
def test_moments_go_on_over_a_meta_update_or_begin_anew(
    learner_of: LearnerOf, batches_of: BatchesOf, kind: str
) -> None:
    """Anew: as a learner that is made of the interpolated weights; on: as if it were not asked."""
    batches = batches_of(6)
    made = {"reptile": Reptile, "outer": partial(Outer, optimizer="sgd")}[kind]
    plain, kept, anew, begun = (learner_of(clip=0.0) for _ in range(4))
    learned(plain, Reptile(3, 0.5), batches[:4])
    learned(kept, made(3, 0.5, reset_moments=False), batches[:4])
    assert same(plain.params, kept.params)
    learned(anew, made(3, 0.5, reset_moments=True), batches[:3])
    assert all(not moment.any() for moment in anew.state()["optimizer.exp_avg_sq"])
    begun.put(anew.params)
    for learner in (anew, begun):
        learned(learner, Descent(), batches[3:4])
    assert same(anew.params, begun.params) and not same(anew.params, kept.params)


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
