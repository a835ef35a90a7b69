"""The probe: cosines of gradients by hand, and no trace in training."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from treering import records
from treering.learner import Learner
from treering.lengths import lengths
from treering.methods.memories import Everything
from treering.plan import Planner, Stage
from treering.probe import probe
from treering.store import Store
from treering.stream import Stream

LENGTH, VOCABULARY = 8, 64  # as in conftest


def stream_of(store_of: Callable[..., Store]) -> Stream:
    luck = np.random.default_rng(0)
    stores = [store_of(name, luck.integers(0, VOCABULARY, 400).tolist()) for name in "ab"]
    sizes = tuple(store.samples(LENGTH) for store in stores)
    stages = (Stage(16, (1, 0)), Stage(16, (0, 1)))
    rule = Planner(3, ("a", "b"), sizes, (False, False), stages, 4, Fraction(1, 4), "total",
                   Everything(), "all")  # fmt: skip
    return Stream(rule, stores, lengths(rule), LENGTH, VOCABULARY)


def test_cosines_are_those_of_gradients_by_hand(
    learner_of: Callable[..., Learner], store_of: Callable[..., Store]
) -> None:
    stream, learner = stream_of(store_of), learner_of()
    states = [stream.planner.start()]
    batches = []
    for batch, after in stream.batches(states[0]):
        states.append(after)
        batches.append(batch)
    first = next(i for i, batch in enumerate(batches) if batch.phase == 1)
    assert probe(learner, stream, Everything(), batches[0], states[0]) is None
    found = probe(learner, stream, Everything(), batches[first + 1], states[first + 1])
    assert found is not None
    assert all(param.grad is None for param in learner.params)

    fresh = batches[first + 1].tokens[~batches[first + 1].replayed]
    drawn = stream.planner.earlier(
        states[first + 1], Everything(), 2 * len(fresh), probe_key(first + 1)
    )
    assert set(drawn.source.tolist()) == {0} and len(set(drawn.pairs())) == 2 * len(fresh)
    parts = [fresh, *np.split(stream.tokens(drawn), 2)]

    def gradient(tokens: np.ndarray) -> torch.Tensor:
        counts = torch.full((len(tokens),), 1 / len(tokens))
        loss, _ = learner.forward.root(torch.from_numpy(tokens), counts)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, learner.params)]).double()

    new, old, other = (gradient(part) for part in parts)

    def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
        return float(one @ two / (one.norm() * two.norm()))

    expected = (cosine(new, old) + cosine(new, other)) / 2
    assert found.cosine == pytest.approx(expected, abs=1e-5)
    assert found.earlier_cosine == pytest.approx(cosine(old, other), abs=1e-5)
    assert found.dot == pytest.approx(float(new @ old + new @ other) / 2, rel=1e-4)
    assert found.fresh_norm == pytest.approx(float(new.norm()), rel=1e-4)
    assert found.tokens == 3 * len(fresh) * LENGTH


def probe_key(step: int) -> int:
    from treering.rng import key

    return key(3, "probe", step)


def test_a_probed_run_is_the_plain_run_bit_for_bit(place: Path, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path / "plain")
    tiny.run(place / "recipe.toml", tmp_path / "probed", "probe.every=5")
    tiny.assert_same_run(tmp_path / "probed", tmp_path / "plain", kinds=("step", "score"))
    probes = [r for r in records.read(tmp_path / "probed") if r["kind"] == "probe"]
    assert [r["step"] for r in probes] == [26, 31, 36, 41, 46]  # nothing lies behind phase 1
    assert all(-1 <= r["cosine"] <= 1 and -1 <= r["earlier_cosine"] <= 1 for r in probes)


def test_a_past_corpus_can_be_probed_from_the_start_and_resumed(
    place: Path, forks: tiny.Forks, tmp_path: Path
) -> None:
    sets = ("replay.past=['de']", "probe.every=5")
    tiny.run(place / "recipe.toml", tmp_path / "whole", *sets)
    probes = [r for r in records.read(tmp_path / "whole") if r["kind"] == "probe"]
    assert [r["step"] for r in probes] == [1, 6, 11, 16, 21, 26, 31, 36, 41, 46]
    both = [word for assignment in sets for word in ("--set", assignment)]
    tiny.kill_and_go_on(forks, tmp_path / "killed", 30, *both)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")
