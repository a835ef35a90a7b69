"""Averages of the weights: training never sees them, and they are scored beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from treering import records
from treering.batch import Batch
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.updates import Average, Descent, Reptile

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_an_average_is_its_closed_form(
    learner_of: LearnerOf, batches_of: BatchesOf, decay: float
) -> None:
    learner, steps = learner_of(), 6
    update = Average(decays=(decay,))
    passed = []
    for batch in batches_of(steps):
        update(learner, batch)
        passed.append([param.detach().double().clone() for param in learner.params])
    shares = [(1 - decay) * decay ** (steps - i) for i in range(1, steps + 1)]
    (average,) = update.branches().values()
    for place, found in enumerate(average):
        each = zip(shares, passed, strict=True)
        expected = sum(share * weights[place] for share, weights in each) / sum(shares)
        assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)


def test_training_does_not_see_the_averages(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    plain, averaged = learner_of(), learner_of()
    inner, update = Reptile(2, 0.5), Average((0.9, 0.99), inner=Reptile(2, 0.5))
    for batch in batches_of(5):
        expected, found = inner(plain, batch), update(averaged, batch)
        assert float(expected.loss) == float(found.loss)
    for one, other in zip(plain.params, averaged.params, strict=True):
        assert torch.equal(one, other)
    assert list(update.branches()) == ["average 0.9", "average 0.99"]


@pytest.mark.parametrize("decays", [(), (1.0,), (-0.1,), (float("nan"),), (0.9, 0.9),
                                    (0.9999999, 0.99999995)])  # fmt: skip
def test_a_decay_out_of_range_is_refused(decays: tuple[float, ...]) -> None:
    with pytest.raises(Invalid, match=r"update\.decays = "):
        Average(decays)


def test_other_weights_stand_in_for_a_while_and_the_trained_ones_come_back(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner = learner_of()
    owned = [param.data_ptr() for param in learner.params]
    before = [param.detach().clone() for param in learner.params]
    zeros = [torch.zeros_like(param) for param in learner.params]
    with pytest.raises(KeyError), learner.standing_in(zeros):
        assert not any(param.any() for param in learner.params)
        raise KeyError
    Descent()(learner, batches_of(1)[0])  # still the optimizer's tensors, still with gradients
    assert [param.data_ptr() for param in learner.params] == owned
    assert not torch.equal(learner.params[0], before[0])


AVERAGE = "update={kind='average', decays=[0.0, 0.8], inner={kind='reptile', every=5, rate=0.5}}"


def test_averages_are_scored_at_phase_ends_and_resume_bit_for_bit(
    place: Path, forks: tiny.Forks, tmp_path: Path
) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "plain")
    tiny.run(place / "recipe.toml", tmp_path / "whole", AVERAGE)
    found = records.read(tmp_path / "whole")
    branched = [r for r in found if r["kind"] == "branch_score"]
    assert {(r["step"], r["branch"]) for r in branched} == {
        (step, f"average {decay}") for step in (25, 50) for decay in ("0", "0.8")
    }
    scores = {(r["step"], r["corpus"]): r["loss"] for r in found if r["kind"] == "score"}
    for record in branched:  # with a decay of 0 the average is the weights themselves
        same = record["loss"] == scores[record["step"], record["corpus"]]
        assert same == (record["branch"] == "average 0")
    plain = [r for r in tiny.story(tmp_path / "plain") if r["kind"] == "score"]
    assert [r for r in tiny.story(tmp_path / "whole") if r["kind"] == "score"] == plain
    tiny.kill_and_go_on(forks, tmp_path / "killed", 20, "--set", AVERAGE)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")
