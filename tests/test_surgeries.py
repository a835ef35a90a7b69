"""Surgeries in a run: before the first step, again where it goes on, and in what is exported."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import surgeries_on_ranks
import tiny
import torch
from rich.console import Console
from surgeries_on_ranks import SURGERIES, begin_with
from test_mesh import CLOSE, assert_same_to_rounding
from test_model import KINDS
from test_surgeries_depth import made
from transformers import AutoModelForCausalLM, AutoTokenizer

from treering import (
    bpe,
    build,
    cli,
    config,
    estimate,
    footprint,
    model,
    records,
    surgery,
    tokenizer,
)
from treering.config import Invalid

FAMILIES = ("llama", "qwen3", "neox")
TABLES = ("{kind='depth', window=[0, 2], identity=true}",
          "{kind='vocabulary', multiple=64}",
          "{kind='context', length=4096, theta=500_000.0}")  # fmt: skip
ALL = f"surgeries=[{', '.join(TABLES)}]"
PHASE = "phases=[{name='one', tokens=640, mixture={fr=1.0}}]"  # 10 steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained models with a tokenizer, and that one with 20 tokens of French more."""
    place = tiny.place(tmp_path_factory.mktemp("surgeries"))
    words = tokenizer.train(tiny.documents("en", 60), 300)
    for kind in (*FAMILIES, "llama-tied"):
        made(KINDS[kind]()).save_pretrained(place / kind)
        words.save_pretrained(str(place / kind))
    base = tokenizer.load(place / "llama")
    bpe.extend(base, [str(place / "fr.jsonl")], 20, place / "extended", field="text")
    return place


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    return tiny.without(place, "tokenizer")


def sets(place: Path, kind: str, surgeries: str = ALL) -> tuple[str, ...]:
    return begin_with(place, kind), f"tokenizer={{from='{place / 'extended'}'}}", surgeries, PHASE


@pytest.mark.parametrize("kind", [*FAMILIES, "llama-tied"])
def test_what_is_exported_opens_and_generates(
    place: Path, recipe: Path, tmp_path: Path, kind: str
) -> None:
    """All three in one run; each family, and a head that is the embedding; the run's own export and
    the verb's are the same."""
    tiny.run(recipe, tmp_path / "run", *sets(place, kind))
    asked = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert cli.main([*asked, "--cache", str(place / "cache")]) == 0
    for folder in (tmp_path / "run/model", tmp_path / "out"):
        found = AutoModelForCausalLM.from_pretrained(folder)
        words = AutoTokenizer.from_pretrained(folder)
        assert (found.config.num_hidden_layers, len(model.blocks(found))) == (4, 4)
        assert (found.config.vocab_size, model.size(found), len(words)) == (320, 320, 320)
        assert found.config.max_position_embeddings == 4096
        rows, head = found.get_input_embeddings().weight, found.get_output_embeddings().weight
        assert (rows is head) == (kind == "llama-tied")
        assert found.config.rope_parameters["rope_theta"] == 500_000.0
        given = words("quelamoui que", return_tensors="pt")
        out = found.generate(given.input_ids, max_new_tokens=5, min_new_tokens=5)
        assert out.shape[1] == given.input_ids.shape[1] + 5
    opened = [dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
              for folder in (tmp_path / "run/model", tmp_path / "out")]  # fmt: skip
    assert all(torch.equal(param, opened[1][name]) for name, param in opened[0].items())
    header = next(record for record in records.read(tmp_path / "run") if record["kind"] == "header")
    assert header["parameters"] == sum(param.numel() for param in opened[0].values())
    assert header["recipe"]["surgeries"][0]["window"] == [0, 2]


def test_a_run_that_goes_on_is_the_unbroken_one(
    place: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = ALL.replace("multiple=64", "multiple=64, rows='noise'")
    wanted = sets(place, "llama-tied", noisy)
    tiny.run(recipe, tmp_path / "one", *wanted)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(6, patch)
        tiny.run(recipe, tmp_path / "parts", *wanted)
    tiny.run(recipe, tmp_path / "parts", *wanted)
    tiny.assert_same_run(tmp_path / "parts", tmp_path / "one")
    with pytest.raises(Invalid, match="the recipe changed: surgeries: "):
        tiny.run(recipe, tmp_path / "one", *wanted, "surgeries.0.window=[1, 2]")


@pytest.mark.filterwarnings("ignore:surgeries. kind 'vocabulary' has no new tokens")
def test_no_surgery_is_the_plain_run(
    place: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; also by one that changes nothing, and by copies that add nothing at step 0."""
    begun = (begin_with(place, "llama"), PHASE)
    tiny.run(recipe, tmp_path / "plain", *begun)
    nothing = "surgeries=[{kind='context', length=2048}, {kind='vocabulary'}]"
    for name, more in (("none", "surgeries=[]"), ("nothing", nothing)):
        tiny.run(recipe, tmp_path / name, *begun, more)
        tiny.assert_same_run(tmp_path / name, tmp_path / "plain")
    identity = "surgeries=[{kind='depth', window=[0, 2], identity=true}]"
    tiny.run(recipe, tmp_path / "deep", *begun, identity)
    rows = [[r for r in tiny.story(tmp_path / name) if r["kind"] == "score" and r["step"] == 0]
            for name in ("plain", "deep")]  # fmt: skip
    assert rows[0] == rows[1] and rows[0]
    plain = [r for r in tiny.story(tmp_path / "plain") if r["kind"] == "step"]
    deep = [r for r in tiny.story(tmp_path / "deep") if r["kind"] == "step"]
    assert deep[0]["loss"] == plain[0]["loss"] and deep[5]["loss"] != plain[5]["loss"]


def test_a_run_that_began_before_there_were_surgeries_goes_on(place: Path, recipe: Path) -> None:
    for more, known in (("surgeries=[]", False), (ALL, True)):
        loaded = config.load(recipe, sets=sets(place, "llama", more))
        assert ("surgeries" in build.data(loaded, place / "cache").identity) == known


def test_what_was_operated_on_is_evaluated_as_it_stands(
    place: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A surgery is not done again on the model that a run exported."""
    import json

    wanted = sets(place, "llama")
    tiny.run(recipe, tmp_path / "run", *wanted)
    asked = ["--recipe", str(recipe), "--json", "--cache", str(place / "cache")]
    asked += [f"--set={key}" for key in wanted]
    found = []
    for source in (tmp_path / "run", tmp_path / "run/model"):
        capsys.readouterr()
        assert cli.main(["evaluate", str(source), *asked]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1]


@pytest.mark.parametrize("kind", ["llama-tied", "qwen3"])
def test_a_dry_run_describes_the_model_after_surgery(
    place: Path, recipe: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = config.load(recipe, sets=sets(place, kind))
    data = build.data(loaded, place / "cache")
    begun = build.start(loaded, data)
    found = footprint.footprint(loaded, data, world=2)
    assert found.parameters == model.count(begun)[0]
    assert found.flops_per_token == model.cost(begun, loaded.length)
    plain = config.load(recipe, sets=(begin_with(place, kind), PHASE))
    assert (
        found.parameters
        > footprint.footprint(plain, build.data(plain, place / "cache"), world=2).parameters
    )
    said = io.StringIO()
    with tiny.one_thread():
        estimate.show(loaded, str(place / "cache"), None, Console(file=said, width=200))
    assert f"parameters  {found.parameters:,}" in said.getvalue()


def test_a_fresh_model_is_described_and_trained_as_well(place: Path, tmp_path: Path) -> None:
    wanted = "surgeries=[{kind='context', length=4096, theta=1e6}, {kind='depth', window=[0, 1]}]"
    loaded = config.load(place / "recipe.toml", sets=(wanted,))
    data = build.data(loaded, place / "cache")
    found = footprint.footprint(loaded, data, world=1)
    assert found.parameters == model.count(build.start(loaded, data))[0]
    tiny.run(place / "recipe.toml", tmp_path, wanted, PHASE)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert opened.config.num_hidden_layers == 2
    assert opened.config.rope_parameters["rope_theta"] == 1e6


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("{kind='deep'}", r"surgeries\[0\].kind = 'deep'; did you mean 'depth'"),
        ("{kind='depth', windows=[0, 2]}", "did you mean 'window'"),
        ("{kind='depth', window=[0, 9]}", r"window = \[0, 9\]: the model has 2 layers"),
        ("{kind='context', length=8}", "length = 8: is less than the recipe's length of 16"),
        ("{kind='context', length=64}", "vocabulary of 320 is smaller than the tokenizer's 340"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    place: Path, recipe: Path, tmp_path: Path, table: str, said: str
) -> None:
    larger = place / "larger"
    if not larger.exists():
        base = tokenizer.load(place / "extended")
        bpe.extend(base, [str(place / "de.jsonl")], 20, larger, field="text")
    asked = (begin_with(place, "llama"), f"tokenizer={{from='{larger}'}}", PHASE)
    with pytest.raises(Invalid, match=said):
        tiny.run(recipe, tmp_path / "run", *asked, f"surgeries=[{table}]")
    assert not (tmp_path / "run").exists()


def test_positions_that_a_model_has_not_are_refused_or_said(place: Path, tmp_path: Path) -> None:
    for kind in ("gpt2", "llama"):
        made(KINDS[kind]()).save_pretrained(tmp_path / kind)
        tokenizer.load(place / "llama").save_pretrained(str(tmp_path / kind))

    def begun(kind: str, beyond: int) -> object:
        known = KINDS[kind]().max_position_embeddings
        sets = (begin_with(tmp_path, kind), f"length={known + beyond}", PHASE,
                f"batch={{tokens={known + beyond}}}")  # fmt: skip
        recipe = config.load(tiny.without(place, "tokenizer"), sets=sets)
        return surgery.start(recipe, tokenizer.load(tmp_path / kind))

    assert begun("gpt2", 0) is not None and begun("llama", 0) is not None
    with pytest.raises(Invalid, match="positions of GPT2LMHeadModel, which are learned; take"):
        begun("gpt2", 1)
    with pytest.warns(UserWarning, match=r"positions of LlamaFor.*; give \[\[surgeries\]\]"):
        begun("llama", 1)


def test_two_ranks_do_what_one_does(place: Path, recipe: Path, tmp_path: Path) -> None:
    """By rows where only the config changes; else the whole model on each, which is said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", surgeries_on_ranks.__file__, str(place)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, timeout=110, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in SURGERIES:
        tiny.run(recipe, tmp_path / name, *surgeries_on_ranks.sets(place, name))
        assert_same_to_rounding(place / f"two-{name}", tmp_path / name, least=10, close=5 * CLOSE)
    assert done.stderr.count("surgeries: they change weights") == 4, "on each rank, of two runs"
