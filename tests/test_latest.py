"""Averages of the last snapshots: their weights, their ring, scored and exported beside the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from treering import cli, records
from treering.batch import Batch
from treering.config import Invalid
from treering.learner import Learner
from treering.methods.updates import Average, Latest, Reptile
from treering.methods.updates.latest import SHARES, shares

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
KINDS = tuple(SHARES)


def test_the_weights_of_six_snapshots_are_those_of_their_definitions() -> None:
    """Oldest to newest; alpha = 0.2."""
    expected = {
        "sma": [1 / 6] * 6,
        "wma_linear": [i / 21 for i in range(1, 7)],
        "ema_recursive": [0.328, 0.082, 0.102, 0.128, 0.160, 0.200],
        "ema_geometric": [0.0003, 0.0013, 0.006, 0.032, 0.160, 0.800],
    }
    assert expected.keys() == SHARES.keys()
    for kind, wanted in expected.items():
        assert shares(kind, 6, 0.2) == pytest.approx(wanted, abs=5e-4)
    for kind in KINDS:
        for k in (1, 2, 7):
            assert sum(shares(kind, k, 0.3)) == pytest.approx(1, abs=1e-12)
    assert shares("sma", 2, 0.2) == [0.5, 0.5]


def test_the_recursive_average_is_its_recursion() -> None:
    values, mean = [3.0, -1.0, 4.0, 1.5], 3.0
    for value in values[1:]:
        mean = 0.2 * value + 0.8 * mean
    found = sum(s * v for s, v in zip(shares("ema_recursive", 4, 0.2), values, strict=True))
    assert found == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("place", ["device", "cpu"])
@pytest.mark.parametrize("steps", [1, 2, 5, 11])
def test_an_average_is_the_weighted_sum_of_the_last_snapshots(
    learner_of: LearnerOf, batches_of: BatchesOf, steps: int, place: str
) -> None:
    learner, update = learner_of(), Latest(2, last=3, averages=KINDS, snapshots=place)
    taken = []
    for step, batch in enumerate(batches_of(steps), 1):
        update(learner, batch)
        if step % 2 == 0:
            taken.append([param.detach().double().clone() for param in learner.params])
    branches, last = update.branches(), taken[-3:]
    assert list(branches) == ([f"{kind} 3" for kind in KINDS] if taken else [])
    for kind in KINDS if taken else ():
        for i, found in enumerate(branches[f"{kind} 3"]):
            parts = zip(shares(kind, len(last), 0.2), last, strict=True)
            expected = sum(share * weights[i] for share, weights in parts)
            assert torch.allclose(found.double(), expected, rtol=0, atol=1e-6)
            assert found.dtype == torch.float32


def test_order_matters_to_an_exponential_average_alone(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    """Three snapshots, trained in one order and taken in the other."""
    learner, forward = learner_of(), Latest(1, last=3, averages=KINDS)
    taken = []
    for batch in batches_of(3):
        forward(learner, batch)
        taken.append([param.detach().clone() for param in learner.params])
    learner.set_rate(0.0)
    back = Latest(1, last=3, averages=KINDS)
    for batch, weights in zip(batches_of(3), reversed(taken), strict=True):
        learner.put(weights)
        back(learner, batch)
    for kind in KINDS:
        pairs = zip(forward.branches()[f"{kind} 3"], back.branches()[f"{kind} 3"], strict=True)
        near = all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in pairs)
        assert near == (kind == "sma")


def test_equal_snapshots_are_their_average_exactly(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    learner, update = learner_of(rate=0.0), Latest(1, last=6, averages=KINDS)
    for batch in batches_of(8):
        update(learner, batch)
    for mean in update.branches().values():
        assert all(torch.equal(a, b) for a, b in zip(mean, learner.params, strict=True))


def test_training_does_not_see_the_snapshots(learner_of: LearnerOf, batches_of: BatchesOf) -> None:
    plain, averaged = learner_of(), learner_of()
    inner, update = Reptile(2, 0.5), Latest(2, inner=Average((0.9,), inner=Reptile(2, 0.5)))
    for batch in batches_of(5):
        expected, found = inner(plain, batch), update(averaged, batch)
        assert float(expected.loss) == float(found.loss)
    assert all(torch.equal(a, b) for a, b in zip(plain.params, averaged.params, strict=True))
    assert list(update.branches()) == ["sma 6", "average 0.9"]


LATEST = (
    "update={kind='latest', every=5, last=3, averages=['sma', 'ema_recursive'], snapshots='cpu', "
    "inner={kind='average', decays=[0.8]}}"
)


def test_averages_are_scored_resumed_and_exported_beside_the_raw_weights(
    place: Path, forks: tiny.Forks, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, killed = tmp_path / "whole", tmp_path / "killed"
    tiny.run(place / "recipe.toml", out, LATEST)
    tiny.kill_and_go_on(forks, killed, 33, "--set", LATEST)
    tiny.assert_same_run(killed, out)
    branched = [r for r in records.read(out) if r["kind"] == "branch_score"]
    names = ["sma 3", "ema_recursive 3", "average 0.8"]
    assert {(r["step"], r["branch"]) for r in branched} == {(s, n) for s in (25, 50) for n in names}

    def export(branch: str) -> int:
        folder = ["--out", str(tmp_path / branch), "--cache", str(place / "cache")]
        return cli.main(["export", str(out), *folder, "--branch", branch])

    raw, found = load_file(out / "model/model.safetensors"), {}
    for name in names:
        assert export(name) == 0
        assert f'The weights "{name}" beside' in (tmp_path / name / "README.md").read_text()
        found[name] = load_file(tmp_path / name / "model.safetensors")
        assert found[name].keys() == raw.keys()
        assert not torch.equal(found[name]["model.norm.weight"], raw["model.norm.weight"])
    # What was exported is what was scored, and so is what the run keeps.
    asked = ["--cache", str(place / "cache"), "--json"]
    recipe = ["--recipe", str(place / "recipe.toml"), "--set", "evaluate.tokens=128"]
    for name in names:
        last = {r["corpus"]: r for r in branched if (r["step"], r["branch"]) == (50, name)}
        for given in ([str(tmp_path / name), *recipe], [str(out), "--branch", name]):
            capsys.readouterr()
            assert cli.main(["evaluate", *given, *asked]) == 0
            told = json.loads(capsys.readouterr().out)
            assert list(told) == list(last) == ["en", "fr", "de"]
            for corpus, score in told.items():
                assert score["loss"] == pytest.approx(last[corpus]["loss"], rel=1e-6)
    refused = ["evaluate", str(out), "--branch", "sma 4", *asked]
    assert cli.main(refused) == 2 and "the run's branches are" in capsys.readouterr().err
    refused = ["evaluate", str(tmp_path / name), "--branch", name, *recipe, *asked]
    assert cli.main(refused) == 2 and "is no run folder" in capsys.readouterr().err
    assert export("sma 4") == 2
    said = capsys.readouterr().err
    assert "--branch 'sma 4': the run's branches are sma 3, ema_recursive 3, average 0.8" in said
    assert not (tmp_path / "sma 4").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"every": 0}, "update.every = 0: must be at least 1"),
        ({"last": 0}, "update.last = 0: must be at least 1"),
        ({"averages": ()}, r"update.averages = \(\): some of"),
        ({"averages": ("ema",)}, r"update.averages = \('ema',\): some of"),
        ({"alpha": 1.0}, "update.alpha = 1.0: must lie between"),
        ({"snapshots": "disk"}, "update.snapshots = 'disk': must be"),
    ],
)
def test_a_field_out_of_range_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        Latest(**({"every": 5} | fields))  # type: ignore[arg-type]
