"""Adapters: small weights beside frozen ones, merged into an ordinary model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_mesh import assert_same_to_rounding
from test_model import KINDS
from transformers import AutoModelForCausalLM, PreTrainedModel

from treering import adapter, build, cache, config, model, outcome, records, tables
from treering.batch import Batch
from treering.config import Invalid
from treering.forward import forward
from treering.learner import Learner
from treering.ledger import flops_per_token
from treering.mesh import Mesh
from treering.methods.adapters import LoRA
from treering.methods.adapters.low_rank import low_rank, remove
from treering.methods.adapters.merging import Merging
from treering.methods.objectives import NextToken
from treering.methods.updates import Descent

pytest.importorskip("peft")

BatchesOf = Callable[..., list[Batch]]
SHAPE = tables.Model(width=16, depth=1, heads=2, mlp=32, tied=False)


def fresh(seed: int = 0) -> PreTrainedModel:
    return model.fresh(model.llama(SHAPE, 64, 8), seed)


def learner_for(made: PreTrainedModel, decay: float = 0.0) -> Learner:
    compute = tables.Compute(compile=False, precision="fp32", deterministic=True)
    call = forward(model.Root(made, NextToken()), compute, 4, Mesh())
    wanted = tables.Optimizer(decay=decay, clip=0.0)
    learner = Learner(call, wanted, tables.Guard(), flops_per_token=model.cost(made, 8))
    learner.set_rate(1e-2)
    return learner


def with_lora(made: PreTrainedModel, lora: LoRA) -> PreTrainedModel:
    lora.insert(made, list(model.matrices(made)), 3)
    return made


def logits(made: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return made(input_ids=torch.arange(12)[None] % 32).logits


def stir(made: PreTrainedModel) -> None:
    """B is zero at first, and so is what an adapter adds."""
    luck = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in low_rank(made):
            layer.up.copy_(torch.randn(layer.up.shape, generator=luck) / 4)


# ------------------------------------------------------------------ what is put in, and taken out


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_nothing_at_first_and_comes_out_as_it_went_in(kind: str) -> None:
    """Of every family, GPT-2 with its transposed layers among them: the outputs of the merged model
    are those of the adapted one."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(KINDS[kind]()).eval()
    names, before = list(made.state_dict()), logits(made)
    found = type(made)
    with_lora(made, LoRA(rank=2, alpha=6))
    assert torch.equal(logits(made), before)
    assert {name for name, p in made.named_parameters() if p.requires_grad} == {
        name for name, _ in made.named_parameters() if ".lora_" in name
    }
    stir(made)
    adapted = logits(made)
    assert not torch.allclose(adapted, before, atol=1e-3)
    remove(made)
    assert type(made) is found and list(made.state_dict()) == names
    assert torch.allclose(logits(made), adapted, atol=1e-5)
    assert all(param.requires_grad for param in made.parameters())


def test_what_is_added_is_pefts_own() -> None:
    made = with_lora(fresh(), LoRA(rank=2, alpha=6, targets=("q_proj", "down_proj")))
    stir(made)
    found = low_rank(made)
    assert [layer.name.split(".")[-4] for layer in found] == ["q_proj", "down_proj"]
    for layer in found:
        own = made.get_submodule(layer.name.partition(".lora_A")[0])
        assert torch.allclose(layer.delta(), own.get_delta_weight("default"), atol=1e-7)
        assert torch.allclose(layer.delta(), 3.0 * layer.up @ layer.down, atol=1e-7)


def test_the_draw_depends_on_seed_phase_and_layer_alone() -> None:
    one, other = (low_rank(with_lora(fresh(seed), LoRA(rank=2))) for seed in (0, 1))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a.down, b.down)
        bound = a.down.shape[1] ** -0.5
        assert 0.5 * bound < a.down.abs().max() <= bound
    assert not torch.equal(one[0].down, one[1].down)
    one[0].begin(3, 1)
    assert not torch.equal(one[0].down, other[0].down)


# ------------------------------------------------------------------ what is learned


def test_gradients_are_those_of_the_product(batches_of: BatchesOf) -> None:
    """dB = s G Aᵀ, dA = s Bᵀ G, where G is the gradient of the merged weight."""
    made = with_lora(fresh(), LoRA(rank=3, alpha=6))
    stir(made)
    plain = copy.deepcopy(made)
    remove(plain)
    (batch,) = batches_of(1)
    one, whole = learner_for(made), learner_for(plain)
    found = dict(zip(one.names, one.gradient(batch), strict=True))
    gradients = dict(zip(whole.names, whole.gradient(batch), strict=True))
    assert len(found) == 2 * 7
    for layer in low_rank(made):
        full = gradients[layer.name.replace(".lora_A.default", "")]
        assert torch.allclose(found[layer.name], 2.0 * layer.up.T @ full, atol=1e-6)
        up = layer.name.replace("lora_A", "lora_B")
        assert torch.allclose(found[up], 2.0 * full @ layer.down.T, atol=1e-6)


def test_the_base_stays_and_a_merge_keeps_the_outputs(batches_of: BatchesOf) -> None:
    made = with_lora(fresh(), LoRA(rank=2, merge="phase"))
    learner = learner_for(made)
    bases = [layer.base.detach().clone() for layer in low_rank(made)]
    update = LoRA(rank=2, merge="phase").around(Descent(), low_rank(made), 3, (3, 2))
    *first, last = batches_of(3)
    for batch in first:
        update(learner, batch)
    assert all(torch.equal(a.base, b) for a, b in zip(low_rank(made), bases, strict=True))
    Descent()(learner, last)
    before = logits(made.eval())
    nothing = Merging(Idle(), low_rank(made), lambda layers, phase: None)
    nothing(learner, last)
    assert not any(torch.equal(a.base, b) for a, b in zip(low_rank(made), bases, strict=True))
    for layer in low_rank(made):
        layer.begin(3, 1)
        assert not layer.up.any()
    assert torch.allclose(logits(made), before, atol=1e-5)
    assert not any(t.any() for t in learner.state()["optimizer.exp_avg"])
    recorded = nothing.counters()
    nothing(learner, last)
    (merged,) = recorded["merged"]  # a checkpoint's, which is written while the run goes on
    delta = sum(((a.base - b).norm() ** 2) for a, b in zip(low_rank(made), bases, strict=True))
    assert merged == {"rank": 2.0, "norm": pytest.approx(float(delta**0.5), rel=1e-3)}


class Idle(Descent):
    def __call__(self, learner: object, batch: Batch) -> None:  # type: ignore[override]
        return None


def test_flops_are_four_for_what_is_frozen() -> None:
    """Forward, and backward to the activations; six for what is trained, and attention."""
    made = fresh()
    total, multiplying = model.count(made)
    plain = model.cost(made, 8)
    assert model.frozen(made) == 0 and plain == flops_per_token(
        multiplying, layers=1, width=16, length=8
    )
    with_lora(made, LoRA(rank=2))
    own = sum(param.numel() for param in made.parameters() if param.requires_grad)
    assert own == 2 * (4 * (16 + 16) + 3 * (16 + 32))
    assert model.count(made) == (total + own, multiplying + own)
    assert model.cost(made, 8) == plain - 2 * multiplying + 6 * own


# ------------------------------------------------------------------ as a run


def lora(**more: object) -> str:
    given = "".join(f", {key}={json.dumps(value)}" for key, value in more.items())
    return f"adapter={{kind='lora', rank=2, alpha=4{given}}}"


@pytest.mark.parametrize("merge", ["end", "phase"])
def test_a_run_resumes_bit_for_bit_and_exports_an_ordinary_model(
    place: Path, forks: tiny.Forks, unbroken: Path, tmp_path: Path, merge: str
) -> None:
    """Killed in the second phase, after a merge if there is one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    update = "kind='reptile', every=5, rate=0.5" if merge == "end" else "kind='descent'"
    sets = [f"--set={key}" for key in (lora(merge=merge), f"update={{{update}}}")]
    assert forks.run(whole, *sets)[0] == 0
    tiny.kill_after_step(forks.start(killed, *sets), killed, 36)
    code, log = forks.run(killed, *sets)
    assert code == 0 and "resuming after step" in log
    tiny.assert_same_run(killed, whole)
    plain, found = tiny.weights(unbroken), tiny.weights(whole)
    assert found.keys() == plain.keys()
    recipe = config.load(place / "recipe.toml")
    begun = build.start(recipe, build.data(recipe, place / "cache"))
    for name, param in begun.named_parameters():
        assert (param.detach().numpy().tobytes() == found[name]) == ("proj" not in name), name
    rows = {out: tiny.story(out, ("score",)) for out in (whole, unbroken)}
    assert rows[whole][:3] == rows[unbroken][:3]  # row 0
    opened = AutoModelForCausalLM.from_pretrained(whole / "model")
    assert type(opened).__name__ == "LlamaForCausalLM" and not vars(opened).get("peft_config")
    last = {r["corpus"]: r["loss"] for r in rows[whole] if r["step"] == tiny.STEPS}
    scored = outcome.scores(str(whole), None, place / "cache")
    for corpus, loss in last.items():
        assert scored[corpus].loss == pytest.approx(loss, rel=1e-5)
    outcome.export(str(whole), tmp_path / "exported", cache.cache_folder(str(place / "cache")))
    assert (tmp_path / "exported/model.safetensors").read_bytes() == (
        whole / "model/model.safetensors"
    ).read_bytes()


def test_only_what_is_trained_is_in_a_checkpoint(place: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, sets in (("plain", ()), ("end", (lora(),)), ("phase", (lora(merge="phase"),))):
        quick = "phases.0.tokens=64", "phases.1.tokens=64", "update={kind='descent'}"
        tiny.run(place / "recipe.toml", tmp_path / name, *quick, *sets)
        last = tmp_path / name / "checkpoints" / tiny.checkpoints(tmp_path / name)[-1]
        index = torch.distributed.checkpoint.FileSystemReader(last).read_metadata()
        names = [key for key in index.state_dict_metadata if not key.startswith("plan/")]
        sizes[name] = sum(
            int(np.prod(index.state_dict_metadata[key].size)) for key in names
            if key.startswith(("weights/", "update.base/"))
        )  # fmt: skip
        assert any("lora_A" in key for key in names) == (name != "plain")
    assert sizes["end"] == 2 * (4 * (16 + 16) + 3 * (16 + 32))
    assert sizes["phase"] == sizes["end"] + 4 * 16 * 16 + 3 * 16 * 32


def test_an_average_of_adapters_is_scored_again_and_exported_merged(
    place: Path, tmp_path: Path
) -> None:
    quick = "phases.0.tokens=640", "phases.1.tokens=640"
    out, there = tmp_path / "run", cache.cache_folder(str(place / "cache"))
    tiny.run(place / "recipe.toml", out, lora(), "update={kind='average', decays=[0.5]}", *quick)
    last = {r["corpus"]: r["loss"] for r in records.read(out)
            if r["kind"] == "branch_score" and r["step"] == 20}  # fmt: skip
    found = outcome.scores(str(out), None, there, outcome.Which("average 0.5"))
    assert {name: score.loss for name, score in found.items()} == pytest.approx(last, rel=1e-5)
    outcome.export(str(out), tmp_path / "exported", there, outcome.Which("average 0.5"))
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    assert not any("lora" in name for name, _ in opened.named_parameters())


def test_a_teacher_beside_an_adapter_is_the_model_as_it_began(place: Path, tmp_path: Path) -> None:
    """Of which an adapter that begins is no change: it teaches nothing at the first step."""
    sets = (lora(), "update={kind='descent'}", "phases.0.tokens=640", "phases.1.tokens=64")
    taught = "objective.teacher={weight=20.0, from='start'}"
    for name, more in (("plain", ()), ("taught", (taught,))):
        tiny.run(place / "recipe.toml", tmp_path / name, *sets, *more)
    one, other = (
        [r for r in tiny.story(tmp_path / name) if r["kind"] == "step"]
        for name in ("plain", "taught")
    )
    assert one[0]["grad_norm"] == pytest.approx(other[0]["grad_norm"], rel=1e-4)
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-6)
    assert abs(one[-1]["loss"] - other[-1]["loss"]) > 1e-4


@pytest.mark.parametrize("merge", ["end", "phase"])
def test_two_ranks_do_what_one_does(forks: tiny.Forks, tmp_path: Path, merge: str) -> None:
    given = lora(merge=merge), "update={kind='descent'}"
    sets = [f"--set={key}" for key in (*given, "phases.0.tokens=640", "phases.1.tokens=640")]
    for ranks in (1, 2):
        code, log = forks.run(tmp_path / str(ranks), *sets, ranks=ranks)
        assert code == 0, log
    assert_same_to_rounding(tmp_path / "2", tmp_path / "1", least=15, close=1e-4)


def test_a_run_without_an_adapter_has_the_identity_that_it_had(unbroken: Path) -> None:
    header = next(r for r in records.read(unbroken) if r["kind"] == "header")
    assert "adapter" not in header["identity"]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (("adapter={kind='lora', rank=0}",), "adapter.rank = 0: must be at least 1; leave"),
        (("adapter={kind='lora', rank=2, alpha=0}",), "adapter.alpha = 0: must be at least 1, or"),
        ((lora(), "optimizer.groups=[{match='layers', rate=0.0}]"),
         "optimizer.groups: are of the model's own weights, which an adapter leaves as they are"),
        (("adapter={kind='codyra', rank=2, threshold=1.0}", "update={kind='per_sample'}",
          "batch.micro=16"),
         "adapter.threshold = 1.0: gates are thinned after each step .*'per_sample' knows nothing"),
        (("adapter={kind='lora', rank=2, merge='never'}",), "adapter.merge = 'never': must be"),
        (("adapter={kind='lara', rank=2}",), "adapter.kind = 'lara'; did you mean 'lora'"),
        (("adapter={kind='lora'}",), "adapter.rank is missing"),
        ((lora(merge="phase"),), "update kind 'reptile' has weights from before a merge"),
        ((lora(merge="phase"), "update={kind='descent'}", "penalties=[{kind='ewc', weight=1.0}]"),
         r"penalties\[0\]: holds weights of an adapter that adapter.merge = 'phase' makes"),
        ((lora(), "update={kind='average', decays=[0.9], inner={kind='coso', rank=2}}"),
         "update.kind = 'coso': is for whole matrices; leave"),
        ((lora(), "objective.teacher={weight=1.0, from='phase'}"),
         "objective.teacher.from = 'phase': not with an adapter"),
        ((lora(targets=["q_prok"]),), "adapter.targets = 'q_prok': no such layer; did you mean"),
        ((lora(targets=["lm_head"]),), "adapter.targets = 'lm_head': no such layer"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path, sets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        tiny.run(place / "recipe.toml", tmp_path / "run", *sets)
    assert not (tmp_path / "run").exists()


def test_fp8_is_not_for_adapters(place: Path) -> None:
    recipe = config.load(place / "recipe.toml", sets=(lora(), "compute.precision='fp8'"))
    with pytest.raises(Invalid, match="compute.precision = 'fp8': not with an adapter"):
        adapter.named(recipe)


def test_peft_is_asked_for(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = config.load(place / "recipe.toml", sets=(lora(),))
    assert adapter.named(recipe) is not None
    monkeypatch.setattr(adapter, "find_spec", lambda name: None)
    with pytest.raises(Invalid, match=r"peft is missing; pip install 'treering\[peft\]'"):
        adapter.named(recipe)
