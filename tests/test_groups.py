"""Groups of parameters by role and depth: each has its share of the rate; at 0 it is frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from test_model import KINDS
from transformers import AutoModelForCausalLM, PreTrainedModel

from treering import build, config, groups, tables
from treering.batch import Batch
from treering.config import Invalid
from treering.footprint import footprint
from treering.learner import Learner, tensors
from treering.methods.updates import Average, Descent, Outer, Reptile
from treering.protocols import Update
from treering.tables import Group

LearnerOf = Callable[..., Learner]
BatchesOf = Callable[..., list[Batch]]
ROLES = ("embeddings", "head", "norms", "layers", "rest")


def of_kind(kind: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(KINDS[kind]())


def matched(model: PreTrainedModel, *given: Group) -> set[str]:
    """The names of the parameters whose rate is not 1."""
    names = [name for name, _ in model.named_parameters()]
    own = zip(names, groups.rates(model, given), strict=True)
    return {name for name, rate in own if rate != 1}


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_found_in_every_family(kind: str) -> None:
    model = of_kind(kind)
    names = {name for name, _ in model.named_parameters()}
    tables_ = {n for n in names if ".wte." in n or ".wpe." in n or "embed_" in n}
    tied = model.config.tie_word_embeddings
    heads = {n for n in names if n in ("lm_head.weight", "embed_out.weight")}
    heads = {n for n in tables_ if ".wpe." not in n and "embed_out" not in n} if tied else heads
    tables_ -= {"embed_out.weight"}
    layers = {n for n in names if ".layers." in n or ".h." in n}
    norms = {n for n in names if "norm" in n or ".ln_" in n}
    assert heads and tables_ and layers and norms
    assert matched(model, Group("embeddings", 0.5)) == tables_
    assert matched(model, Group("head", 0.5)) == heads
    assert matched(model, Group("layers", 0.5)) == layers
    assert matched(model, Group("norms", 0.5)) == norms
    assert matched(model, Group("head", 1.0), Group("rest", 0.5)) == names - heads
    for group in (Group("layers", 0.5, 1), Group("layers", 0.5, -1), Group("layers", 0.5, 1, 1)):
        assert matched(model, group) == {n for n in layers if ".1." in n}
    assert matched(model, Group("layers", 0.5, last=0)) == {n for n in layers if ".0." in n}
    assert matched(model, Group("layers", 0.5, last=-2)) == {n for n in layers if ".0." in n}


def test_groups_of_rate_1_are_the_plain_run_bit_for_bit(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    ones = tuple(Group(role, 1.0) for role in ("embeddings", "head", "layers", "rest"))
    plain, grouped = learner_of(), learner_of(groups=ones)
    for batch in batches_of(4):
        expected, found = Descent()(plain, batch), Descent()(grouped, batch)
        assert float(expected.grad_norm) == float(found.grad_norm)
    states = zip(plain.state().values(), grouped.state().values(), strict=True)
    assert all(torch.equal(a, b) for x, y in states for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_slow_learner_moves_by_its_share(
    learner_of: LearnerOf, batches_of: BatchesOf, kind: str
) -> None:
    """SLCA: a hundredth of the rate for all but the head; decay is part of the step."""
    slow = Group("head", 1.0), Group("rest", 0.01)
    plain, grouped = learner_of(kind=kind), learner_of(kind=kind, groups=slow)
    begun = [param.detach().clone() for param in plain.params]
    (batch,) = batches_of(1)
    Descent()(plain, batch)
    Descent()(grouped, batch)
    for name, start, fast, own in zip(
        plain.names, begun, plain.params, grouped.params, strict=True
    ):
        share = 1.0 if name == "lm_head.weight" else 0.01
        expected = start + share * (fast.detach() - start)
        assert torch.allclose(own, expected, rtol=0, atol=2e-7)
        assert not torch.equal(own, start) or own.ndim < 2  # 1 + a little is 1
    grouped.set_rate(0.5)
    assert {group["lr"] for group in grouped.optimizer.param_groups} == {0.5, 0.005}


UPDATES: dict[str, Callable[[], Update]] = {
    "plain": Descent,
    "reptile": lambda: Reptile(2, 0.3),
    "outer": lambda: Outer(2, 0.7, optimizer="adam", inner=Average((0.9,))),
    "nesterov": lambda: Outer(2, 0.7, optimizer="nesterov", momentum=0.9),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_what_is_frozen_keeps_its_bits_and_has_no_moments(
    learner_of: LearnerOf, batches_of: BatchesOf, kind: str, name: str
) -> None:
    frozen = Group("embeddings", 0.0), Group("norms", 0.0)
    learner, update = learner_of(kind=kind, groups=frozen), UPDATES[name]()
    every = dict(learner.forward.root.model.named_parameters())
    begun = {place: param.detach().clone() for place, param in every.items()}
    for batch in batches_of(5):
        update(learner, batch)
    for place, param in every.items():
        still = "embed" in place or "norm" in place
        assert torch.equal(param, begun[place]) == still == (place not in learner.names)
    assert all((p.grad is None) for p in every.values())
    saved = tensors(learner, update)
    moments = {key.split("/")[1] for key in saved if key.startswith("optimizer.")}
    assert moments == (set(learner.names) if kind == "adamw" else set())
    assert {key for key in saved if key.startswith("weights/")} == {
        f"weights/{name}" for name in learner.names
    }


def test_the_norm_that_is_clipped_is_that_of_what_is_trained(
    learner_of: LearnerOf, batches_of: BatchesOf
) -> None:
    (batch,) = batches_of(1)
    whole, part = learner_of(), learner_of(groups=(Group("head", 1.0), Group("rest", 0.0)))
    found = whole.gradient(batch)[whole.names.index("lm_head.weight")]
    assert float(Descent()(part, batch).grad_norm) == pytest.approx(float(found.norm()), rel=1e-6)


GROUPS = "optimizer.groups=[{match='embeddings', rate=0.0}, {match='layers', rate=0.1}]"


def test_a_run_with_groups_goes_on_and_its_frozen_weights_are_those_it_began_with(
    place: Path, forks: tiny.Forks, tmp_path: Path
) -> None:
    """MER over a frozen, tied table."""
    tiny.run(place / "recipe.toml", tmp_path / "whole", GROUPS)
    tiny.kill_and_go_on(forks, tmp_path / "killed", 20, "--set", GROUPS)
    tiny.assert_same_run(tmp_path / "killed", tmp_path / "whole")
    recipe = config.load(place / "recipe.toml", sets=(GROUPS,))
    begun = build.start(recipe, build.data(recipe, place / "cache")).state_dict()
    for name, found in tiny.weights(tmp_path / "whole").items():
        assert (found == begun[name].numpy().tobytes()) == ("embed" in name), name


def test_a_frozen_weight_costs_no_gradient_and_no_moments(place: Path) -> None:
    recipe = config.load(place / "recipe.toml")
    frozen = config.load(place / "recipe.toml", sets=(GROUPS,))
    data = build.data(recipe, place / "cache")
    plain, spared = footprint(recipe, data, 1).held, footprint(frozen, data, 1).held
    table = next(p for n, p in build.start(recipe, data).named_parameters() if "embed" in n).nbytes
    assert plain["weights"] == spared["weights"] + spared["frozen weights"]
    for kind in ("gradients", "optimizer.exp_avg", "optimizer.exp_avg_sq"):
        assert plain[kind] - spared[kind] == table


WRONG = {
    "{match='embedings', rate=0.1}": r"groups\[0\].match = 'embedings': no such role; did you",
    "{match='head'}": r"groups\[0\].rate is missing: add it to the recipe",
    "{match='head', rate=-1}": r"groups\[0\].rate = -1.0: must not be negative",
    "{match='head', rate=1, first=2}": r"groups\[0\].first = 2: only 'layers' have numbers",
    "{match='rest', rate=1}, {match='rest', rate=0}": r"name 'rest' once",
    "{match='layers', rate=0, last=1}": r"first = 0, last = 1 }: this model has the layers 0 to 0",
    "{match='layers', rate=0, first=-2}": r"first = -2, last = -1 }: this model has the layers",
    "{match='layers', rate=0}, {match='norms', rate=1}": r"groups\[1\].match = 'norms': model.*"
    r"norm.weight is in optimizer.groups\[0\] \('layers'\) already",
    "{match='embeddings', rate=0}, {match='head', rate=1}": r"embed_tokens.weight is in opt",
    "{match='rest', rate=0}": r"every rate is 0, nothing is left to train; raise one",
}


@pytest.mark.parametrize("given", WRONG)
def test_what_is_wrong_is_named_before_anything_is_written(
    place: Path, tmp_path: Path, given: str
) -> None:
    with pytest.raises(Invalid, match=WRONG[given]):
        tiny.run(place / "recipe.toml", tmp_path / "run", f"optimizer.groups=[{given}]")
    assert not tiny.files(tmp_path)


def test_a_group_that_matches_nothing_is_refused() -> None:
    model = of_kind("llama")
    for norm in [part for part in model.modules() if type(part).__name__ == "LlamaRMSNorm"]:
        norm._parameters.clear()
    with pytest.raises(Invalid, match=r"groups\[0\].match = 'norms': this model has none"):
        groups.rates(model, [Group("norms", 0.1)])


def test_without_groups_nothing_changes() -> None:
    assert tables.Optimizer().groups == ()
    assert set(groups.rates(of_kind("gpt2"), ())) == {1.0}
