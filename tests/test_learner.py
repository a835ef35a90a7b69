"""The learner: one gradient of the whole batch however it is cut, one step of its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from treering.batch import Batch
from treering.learner import Learner
from treering.loop import Rules, train
from treering.methods.updates import Descent
from treering.position import State

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
STATE = State(0, 0, 0, (), (), {}, {})
MOMENTS = ("exp_avg", "exp_avg_sq")


def gradients(learner: Learner) -> list[torch.Tensor]:
    found = [param.grad.clone() for param in learner.params if param.grad is not None]
    assert len(found) == len(learner.params)
    return found


def weights(learner: Learner) -> list[torch.Tensor]:
    return [param.detach().clone() for param in learner.params]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_micro_batches_give_equal_gradients(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    [batch] = batches_of(1, replayed=1)
    whole = learner_of(rows=4)
    expected = whole.backward(batch)
    for rows in (1, 2):
        cut = learner_of(rows=rows)
        metrics = cut.backward(batch)
        for a, b in zip(gradients(whole), gradients(cut), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-6)
        for name in ("loss", "fresh_loss", "replayed_loss"):
            assert float(getattr(metrics, name)) == pytest.approx(
                float(getattr(expected, name)), abs=1e-6
            )


@pytest.mark.parametrize("rows", [2, 4])
def test_rows_that_fill_up_a_micro_batch_have_no_weight(
    learner_of: LearnerOf, batches_of: BatchesOf, rows: int
) -> None:
    [batch] = batches_of(1, rows=5)
    exact, filled = learner_of(rows=5), learner_of(rows=rows)
    expected, metrics = exact.backward(batch), filled.backward(batch)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), abs=1e-6)
    assert metrics.training_flops == expected.training_flops == 5 * 8 * 100.0
    for a, b in zip(gradients(exact), gradients(filled), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_loss(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    [batch] = batches_of(1)
    learner, other = learner_of(rows=2), learner_of()
    metrics = learner.backward(batch)
    tokens = torch.from_numpy(batch.tokens)
    logits = other.forward.root.model(tokens[:, :-1]).logits
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert float(metrics.loss) == pytest.approx(float(loss.detach()), abs=1e-6)
    for a, b in zip(gradients(learner), gradients(other), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


def test_losses_are_told_apart_and_are_nan_where_there_is_none(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    [batch] = batches_of(1, replayed=1)
    learner = learner_of()
    both = learner.backward(batch)
    single = learner_of(rows=1)
    losses = [float(single.backward(batch[i : i + 1]).loss) for i in range(4)]
    assert float(both.fresh_loss) == pytest.approx(np.mean(losses[:3]), abs=1e-6)
    assert float(both.replayed_loss) == pytest.approx(losses[3], abs=1e-6)
    fresh = learner_of().backward(replace(batch, replayed=np.zeros(4, bool)))
    assert bool(torch.isnan(fresh.replayed_loss))
    assert float(fresh.fresh_loss) == float(fresh.loss)
    assert bool(torch.isnan(fresh.grad_norm))


def test_decay_is_for_matrices_only(learner_of: LearnerOf) -> None:
    learner = learner_of(decay=0.5, rate=0.1)
    before = weights(learner)
    for param in learner.params:
        param.grad = torch.zeros_like(param)
    learner.apply()
    kinds = set()
    for was, now in zip(before, learner.params, strict=True):
        kinds.add(was.ndim)
        factor = 0.95 if was.ndim >= 2 else 1.0
        assert torch.allclose(now, was * factor, rtol=1e-6, atol=0)
    assert kinds == {1, 2}


def test_the_norm_is_reported_as_it_was_before_clipping(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    [batch] = batches_of(1)
    learner = learner_of(kind="sgd", decay=0.0, clip=0.01, rate=1.0)
    before = weights(learner)
    learner.backward(batch)
    norm = torch.cat([g.flatten() for g in gradients(learner)]).norm()
    reported = learner.apply().norm
    assert float(reported) == pytest.approx(float(norm), rel=1e-5)
    assert float(reported) > 0.1
    pairs = zip(before, learner.params, strict=True)
    moved = torch.cat([(a - b).flatten() for a, b in pairs]).detach().norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)


def test_clip_0_is_off(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    [batch] = batches_of(1)
    learner = learner_of(kind="sgd", decay=0.0, clip=0.0, rate=1.0)
    before = weights(learner)
    learner.backward(batch)
    expected = [w - g for w, g in zip(before, gradients(learner), strict=True)]
    learner.apply()
    assert all(torch.allclose(a, b) for a, b in zip(learner.params, expected, strict=True))
    assert all(param.grad is None for param in learner.params)


def test_the_fused_optimizer_is_adamw_written_out(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    beta1, beta2, eps, decay, rate = 0.9, 0.95, 1e-8, 0.1, 3e-3
    learner = learner_of(rate=rate, decay=decay, betas=(beta1, beta2), eps=eps, clip=0.0)
    by_hand = weights(learner)
    first = [torch.zeros_like(w) for w in by_hand]
    second = [torch.zeros_like(w) for w in by_hand]
    for step, batch in enumerate(batches_of(4), 1):
        learner.backward(batch)
        for i, gradient in enumerate(gradients(learner)):
            first[i] = beta1 * first[i] + (1 - beta1) * gradient
            second[i] = beta2 * second[i] + (1 - beta2) * gradient**2
            m, v = first[i] / (1 - beta1**step), second[i] / (1 - beta2**step)
            shrunk = by_hand[i] * (1 - rate * (decay if by_hand[i].ndim >= 2 else 0.0))
            by_hand[i] = shrunk - rate * m / (v.sqrt() + eps)
        learner.apply()
        for a, b in zip(learner.params, by_hand, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_reset_optimizer_equals_a_new_one(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    first, *rest = batches_of(4)
    used, new = learner_of(), learner_of()
    for batch in rest:
        Descent()(used, batch)
    used.reset_optimizer()
    with torch.no_grad():
        for a, b in zip(new.params, used.params, strict=True):
            a.copy_(b)
    for batch in (first, *rest):
        Descent()(used, batch)
        Descent()(new, batch)
    assert same(used.params, new.params)
    moments = zip(used.state().values(), new.state().values(), strict=True)
    assert all(same(a, b) for a, b in moments)


def test_moments_are_forgotten_at_phase_boundaries_only_if_asked(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    batches = [(batch, STATE) for batch in batches_of(2, 2)]
    steps, moments = {}, {}
    for asked in ("keep", "reset", "reset-momentum"):
        learner = learner_of()
        rules = Rules(0, lambda step: 1e-2, at_phase=asked)
        state = learner.state()
        steps[asked] = [
            float(state["optimizer.step"][0]) for _ in train(learner, Descent(), batches, rules)
        ]
        learner.reset_optimizer(momentum_alone=asked == "reset-momentum")
        moments[asked] = [bool(state[f"optimizer.{name}"][0].any()) for name in MOMENTS]
    assert steps == {"keep": [1, 2, 3, 4], "reset": [1, 2, 1, 2], "reset-momentum": [1, 2, 3, 4]}
    assert moments == {
        "keep": [False, False], "reset": [False, False], "reset-momentum": [False, True]
    }  # fmt: skip


def test_without_its_first_moment_the_first_step_of_a_phase_is_the_gradient_alone(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """By hand: AdamW with exp_avg = 0 and all else kept."""
    batches = [(batch, STATE) for batch in batches_of(2, 1)]
    learner, by_hand = learner_of(), learner_of()
    rules = Rules(0, lambda step: 1e-2, at_phase="reset-momentum")
    for _ in train(learner, Descent(), batches, rules):
        pass
    for batch, _ in batches[:2]:
        by_hand.set_rate(1e-2)
        Descent()(by_hand, batch)
    for moment in by_hand.state()["optimizer.exp_avg"]:
        moment.zero_()
    Descent()(by_hand, batches[2][0])
    assert same(learner.params, by_hand.params)


def test_bf16_autocast_leaves_weights_moments_and_losses_in_fp32(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, plain = learner_of(precision="bf16"), learner_of()
    for batch in batches_of(2):
        metrics = Descent()(learner, batch)
        expected = Descent()(plain, batch)
    assert metrics.loss.dtype == torch.float32
    every = [tensor for tensors in learner.state().values() for tensor in tensors]
    assert {tensor.dtype for tensor in every} == {torch.float32}
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=0.02)
    assert float(metrics.loss) != float(expected.loss)  # it was on


def test_parameters_are_owned_once_and_updated_in_place(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner = learner_of()
    places = [param.data_ptr() for param in learner.params]
    for batch in batches_of(2):
        Descent()(learner, batch)
    assert [param.data_ptr() for param in learner.params] == places
    assert [p.data_ptr() for p in learner.forward.root.model.parameters()] == places
    assert [w.data_ptr() for w in learner.state()["weights"]] == places


def test_the_same_seed_makes_the_same_weights(learner_of: LearnerOf) -> None:
    torch.manual_seed(1)
    first = learner_of(seed=5)
    torch.manual_seed(2)
    assert same(first.params, learner_of(seed=5).params)
    assert not same(first.params, learner_of(seed=6).params)


def test_the_rate_of_a_step_is_the_schedules(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    learner = learner_of(kind="sgd", decay=0.0, clip=0.0)
    rules = Rules(0, lambda step: [0.0, 1e-2][step])
    before = weights(learner)
    after = []
    for done in train(learner, Descent(), [(b, STATE) for b in batches_of(2)], rules):
        after.append(weights(learner))
        assert done.rate == [0.0, 1e-2][done.batch.step]
    assert same(before, after[0])
    assert not same(before, after[1])
