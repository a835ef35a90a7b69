"""A-GEM and GEM: the step's own gradient, without what would raise the loss of what is replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from treering.batch import Batch, Refs
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.updates import AGEM, GEM, Descent, PerSample, Reptile
from treering.methods.updates.gem import solve
from treering.protocols import Metrics, Update

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
SGD = {"kind": "sgd", "decay": 0.0, "clip": 0.0, "rate": 1.0}  # the step is the gradient
METHODS: dict[str, Callable[[], Update]] = {"agem": AGEM, "gem": GEM, "gem 0": lambda: GEM(0.0)}


def of_corpora(batch: Batch, sources: list[int]) -> Batch:
    return replace(batch, refs=Refs(np.array(sources), batch.refs.index))


def torn(learner_of: LearnerOf, batch: Batch) -> Learner:
    """A learner between the rows of a batch: what is better for some is worse for others."""
    learner = learner_of(**SGD)
    for _ in range(60):
        Descent()(learner, batch)
    return learner


def gradient(learner: Learner, batch: Batch, rows: list[int]) -> torch.Tensor:
    """Of the mean loss of some rows, as one vector in float64."""
    found = learner.gradient(batch.only(np.isin(np.arange(len(batch)), rows)))
    return torch.cat([tensor.double().flatten() for tensor in found])


def moved(learner: Learner, update: Update, batch: Batch) -> torch.Tensor:
    """The gradient by which a step of SGD at a rate of 1 moves the weights."""
    before = [param.detach().double().clone() for param in learner.params]
    update(learner, batch)
    pairs = zip(before, learner.params, strict=True)
    return torch.cat([(old - new.detach()).double().flatten() for old, new in pairs])


def test_agem_takes_away_what_disagrees(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    batch = batches_of(1, rows=4, replayed=2)[0]
    learner = torn(learner_of, batch)
    g, r = gradient(learner, batch, [0, 1]), gradient(learner, batch, [2, 3])
    assert g @ r < 0
    found = moved(learner, AGEM(), batch)
    assert torch.allclose(found, g - (g @ r) / (r @ r) * r, rtol=0, atol=1e-6)
    assert abs(found @ r) <= 1e-6 * float(r.norm() * g.norm())
    # Weight by weight it would be another gradient.
    sizes = [param.numel() for param in learner.params]
    parts = [
        a - min(0.0, float(a @ b)) / max(float(b @ b), 1e-30) * b
        for a, b in zip(g.split(sizes), r.split(sizes), strict=True)
    ]
    assert not torch.allclose(found, torch.cat(parts), rtol=0, atol=1e-4)


def test_gem_of_one_corpus_without_margin_is_agem(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    batch = of_corpora(batches_of(1, rows=4, replayed=2)[0], [1, 1, 0, 0])
    plain, one, other = (
        moved(torn(learner_of, batch), update, batch) for update in (Descent(), AGEM(), GEM(0.0))
    )
    assert torch.allclose(one, other, rtol=0, atol=1e-6)
    assert not torch.allclose(one, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_gem_is_the_solution_of_its_program(
    learner_of: LearnerOf, batches_of: BatchesOf, strength: float
) -> None:
    batch = of_corpora(batches_of(1, rows=6, replayed=3)[0], [2, 2, 2, 0, 1, 0])
    learner = torn(learner_of, batch)
    g = gradient(learner, batch, [0, 1, 2])
    rows = torch.stack([gradient(learner, batch, [3, 5]), gradient(learner, batch, [4])])
    assert (rows @ g < 0).any()
    v = enumerated((rows @ rows.T).numpy(), (rows @ g).numpy(), strength)
    found = moved(learner, GEM(strength), batch)
    assert torch.allclose(found, g + rows.T @ torch.from_numpy(v), rtol=0, atol=2e-6)
    assert (rows @ found >= -1e-6 * rows.norm(dim=1) * g.norm()).all()


def enumerated(gram: np.ndarray, slopes: np.ndarray, margin: float) -> np.ndarray:
    """The program by hand: each set of numbers may lie at the margin, and the least is taken."""
    best, least = np.full(len(gram), margin), np.inf
    for free in product([False, True], repeat=len(gram)):
        at = np.array(free)
        v = np.full(len(gram), margin)
        if at.any():
            fixed = gram[np.ix_(at, ~at)] @ v[~at]
            v[at] = np.linalg.lstsq(gram[np.ix_(at, at)], -slopes[at] - fixed, rcond=None)[0]
        value = v @ gram @ v / 2 + slopes @ v
        if (v >= margin - 1e-12).all() and value < least:
            best, least = v, value
    return best


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("corpora", [1, 2, 4])
def test_the_program_is_solved(corpora: int, margin: float) -> None:
    random = np.random.default_rng(corpora)
    for _ in range(30):
        rows, g = random.normal(size=(corpora, 6)), random.normal(size=6)
        found = solve(rows @ rows.T, rows @ g, margin)
        np.testing.assert_allclose(found, enumerated(rows @ rows.T, rows @ g, margin), atol=1e-8)
    twice = np.array([rows[0], rows[0]])  # of two equal rows neither is singular's fault
    found = solve(twice @ twice.T, twice @ -twice[0], 0.0)
    np.testing.assert_allclose(-twice[0] + twice.T @ found, 0, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_disagreement_it_is_plain_training_on_the_fresh_rows_bit_for_bit(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str
) -> None:
    """The replayed rows are copies of fresh ones."""
    plain, projected = learner_of(), learner_of()
    metrics: list[list[Metrics]] = [[], []]
    for batch in batches_of(3, rows=4, replayed=2):
        batch = replace(batch, tokens=batch.tokens[[0, 1, 0, 1]])
        metrics[0].append(Descent()(plain, batch[:2]))
        metrics[1].append(METHODS[name]()(projected, batch))
    states = zip(plain.state().values(), projected.state().values(), strict=True)
    assert all(torch.equal(a, b) for x, y in states for a, b in zip(x, y, strict=True))
    for expected, found in zip(*metrics, strict=True):
        assert float(found.grad_norm) == float(expected.grad_norm)
        assert float(found.fresh_loss) == float(expected.fresh_loss)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("replayed", [0, 4])
def test_a_step_of_one_kind_of_rows_is_plain(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str, replayed: int
) -> None:
    plain, projected = learner_of(), learner_of()
    for batch in batches_of(3, rows=4, replayed=replayed):
        expected, found = Descent()(plain, batch), METHODS[name]()(projected, batch)
        assert float(expected.loss) == float(found.loss) and found.meta_flops == 0
    pairs = zip(plain.params, projected.params, strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_whole_batch_and_both_gradients_are_charged(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str
) -> None:
    batch = of_corpora(batches_of(1, rows=4, replayed=3)[0], [2, 0, 1, 0])
    expected = learner_of().backward(batch)
    found = METHODS[name]()(learner_of(), batch)
    for key in ("loss", "fresh_loss", "replayed_loss", "training_flops"):
        assert float(getattr(found, key)) == pytest.approx(float(getattr(expected, key)), rel=1e-5)
    size = sum(param.numel() for param in learner_of().params)
    assert found.meta_flops == 4 * size * (2 if name == "agem" else 5)


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_that_is_not_finite_is_skipped(
    learner_of: LearnerOf, batches_of: BatchesOf, name: str
) -> None:
    learner, (batch,) = learner_of(), batches_of(1, replayed=2)
    learner.put([torch.full_like(param, torch.inf) for param in learner.params])
    assert float(METHODS[name]()(learner, batch).skipped) == 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_reference_that_is_not_finite_is_no_plain_step(
    learner_of: LearnerOf, batches_of: BatchesOf, monkeypatch: pytest.MonkeyPatch, name: str,
    value: float,
) -> None:  # fmt: skip
    learner, (batch,) = learner_of(), batches_of(1, replayed=2)
    before = [param.detach().clone() for param in learner.params]
    taken = learner.take_gradient

    def spoiled() -> list[torch.Tensor]:
        reference = taken()
        reference[0].view(-1)[0] = value
        return reference

    monkeypatch.setattr(learner, "take_gradient", spoiled)
    assert float(METHODS[name]()(learner, batch).skipped) == 1
    assert all(torch.equal(a, b) for a, b in zip(before, learner.params, strict=True))


def test_reptile_is_around_it(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    alone, inside, batches = learner_of(), learner_of(), batches_of(4, replayed=2)
    reptile, update = Reptile(2, 0.5, inner=AGEM()), AGEM()
    for begin in (0, 2):
        anchor = [param.detach().clone() for param in alone.params]
        for batch in batches[begin : begin + 2]:
            reptile(inside, batch)
            update(alone, batch)
        with torch.no_grad():
            for param, old in zip(alone.params, anchor, strict=True):
                param.copy_(torch.lerp(old, param, 0.5))
    assert all(torch.equal(a, b) for a, b in zip(alone.params, inside.params, strict=True))


@pytest.mark.parametrize("kind", ["agem", "gem"])
def test_a_killed_run_goes_on(place: Path, forks: tiny.Forks, tmp_path: Path, kind: str) -> None:
    sets = f"update={{kind='{kind}'}}"
    tiny.run(place / "recipe.toml", tmp_path / "whole", sets)
    tiny.kill_and_go_on(forks, tmp_path / "killed", 20, "--set", sets)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("name", METHODS)
def test_row_by_row_there_is_nothing_to_compare(name: str) -> None:
    with pytest.raises(Invalid, match="update.inner.kind: 'agem' and 'gem' compare the rows"):
        PerSample(METHODS[name]())


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(strength: float) -> None:
    with pytest.raises(Invalid, match=f"update.strength = {strength}: must not be negative"):
        GEM(strength)
