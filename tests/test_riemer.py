"""Riemer's algorithms, written out by hand, by nested updates."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from updating import BatchesOf, LearnerOf, Tensors, learned, near, same

from treering.learner import Learner
from treering.methods.updates import Descent, PerSample, Reptile


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
def test_nested_reptile_is_riemers_algorithm_1_over_s_examples(
    learner_of: LearnerOf, batches_of: BatchesOf, s: int, gamma: float
) -> None:
    """The paper draws s batches of one example; the stream gives s examples."""
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
