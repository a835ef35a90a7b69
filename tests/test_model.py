"""Models in and out: what is loaded is what was saved, bit for bit; fresh ones are as they say."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from treering import build, config, model, outcome, pretrained, tables, tokenizer
from treering.config import Invalid
from treering.learner import Learner
from treering.ledger import flops_per_token

SIZES = {"vocab_size": 320, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
GATED = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "bos_token_id": 0}
GPT2 = {"vocab_size": 320, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
KINDS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GATED, eos_token_id=0),
    "llama-tied": lambda: LlamaConfig(**GATED, eos_token_id=0, tie_word_embeddings=True),
    "neox": lambda: GPTNeoXConfig(**SIZES, **ENDS, intermediate_size=32, hidden_dropout=0.1),
    "qwen2": lambda: Qwen2Config(**GATED, eos_token_id=0, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**GATED, eos_token_id=0, head_dim=8),
    "gpt2": lambda: GPT2Config(**GPT2, **ENDS),  # its dropout is 0.1
}
PHASE = "phases=[{name='one', tokens=1280, mixture={en=1.0}}]"  # 20 steps


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny.place(tmp_path_factory.mktemp("model"))
    words = tokenizer.train(tiny.documents("en", 60), 300)
    for name, settings in KINDS.items():
        torch.manual_seed(3)
        saved = AutoModelForCausalLM.from_config(settings())
        saved.save_pretrained(place / name)
        words.save_pretrained(str(place / name))
    return place


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    return tiny.without(place, "tokenizer")


def begin_with(place: Path, kind: str, more: str = "") -> str:
    return f"model={{from='{place / kind}'{more}}}"


def logits(found: PreTrainedModel) -> torch.Tensor:
    tokens = torch.arange(48).view(3, 16)
    with torch.no_grad():
        return found.eval()(input_ids=tokens).logits


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_what_was_trained_bit_for_bit(
    place: Path, recipe: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[PreTrainedModel] = []
    real = outcome.finish

    def finish(
        recipe: config.Recipe, data: build.Data, learner: Learner, out: Path
    ) -> dict[str, Any]:
        kept.append(learner.forward.root.model)
        return real(recipe, data, learner, out)

    monkeypatch.setattr(outcome, "finish", finish)
    tiny.run(recipe, tmp_path, begin_with(place, kind), PHASE)
    begun = AutoModelForCausalLM.from_pretrained(place / kind)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert type(opened) is type(begun) and opened.dtype == torch.float32
    with tiny.one_thread():
        assert torch.equal(logits(opened), logits(kept[0]))
        assert not torch.equal(logits(opened), logits(begun))
    tied = opened.get_input_embeddings().weight is opened.get_output_embeddings().weight
    assert tied == bool(begun.config.tie_word_embeddings)
    assert tokenizer.fingerprint(words) == tokenizer.fingerprint(tokenizer.load(place / kind))
    card = (tmp_path / "model/README.md").read_text()
    assert "reptile" in card


def test_a_fresh_model_ends_where_its_tokenizer_does(place: Path, tmp_path: Path) -> None:
    tiny.run(place / "recipe.toml", tmp_path, PHASE)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    end = AutoTokenizer.from_pretrained(tmp_path / "model").eos_token_id
    assert end is not None
    for settings in (opened.config, opened.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id) == (None, end)


def test_gpt2_has_no_dropout_unless_asked_for(place: Path) -> None:
    def rates(found: PreTrainedModel) -> set[float]:
        return {part.p for part in found.modules() if isinstance(part, torch.nn.Dropout)}

    found = pretrained.load(str(place / "gpt2"))
    assert rates(found) == {0.0} and found.config.attn_pdrop == 0.0
    assert rates(pretrained.load(str(place / "gpt2"), dropout=0.2)) == {0.2}
    assert rates(AutoModelForCausalLM.from_pretrained(place / "gpt2")) == {0.1}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_that_is_asked_for_repeats_and_resumes_bit_for_bit(
    place: Path, recipe: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = (begin_with(place, kind, ", dropout=0.3"), PHASE)
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))  # the caller's own luck does not matter
        tiny.run(recipe, tmp_path / name, *dropped)
    tiny.assert_same_run(tmp_path / "one", tmp_path / "two")
    tiny.run(recipe, tmp_path / "plain", begin_with(place, kind), PHASE)
    assert tiny.weights(tmp_path / "plain") != tiny.weights(tmp_path / "one")

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(9, patch)
        tiny.run(recipe, tmp_path / "parts", *dropped)
    tiny.run(recipe, tmp_path / "parts", *dropped)
    tiny.assert_same_run(tmp_path / "parts", tmp_path / "one")


@pytest.mark.parametrize("load", [pretrained.folder, pretrained.load, pretrained.described])
@pytest.mark.parametrize("source", ["a/b/c", "./no-such", "../no-such", "/no/such", "~/no-such"])
def test_a_path_that_leads_nowhere_is_refused_before_the_hub_is_asked(
    source: str, load: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "snapshot_download", None)
    monkeypatch.setattr(pretrained, "AutoConfig", None)
    with pytest.raises(Invalid, match=f"model '{source}': no such folder; correct the path"):
        load(source)


@pytest.mark.parametrize("source", ["no/such", "no-such"])
def test_a_model_that_is_nowhere_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repo: str, **_: object) -> str:
        raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(pretrained, "snapshot_download", fetch)
    with pytest.raises(Invalid, match=f"model '{source}': no such folder, nor on the hub"):
        pretrained.folder(source)


def test_weights_that_are_a_pickle_are_refused(place: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    found = AutoModelForCausalLM.from_pretrained(place / "llama")
    found.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    torch.save(found.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(Invalid, match=r"model '.*pickled': no model could be loaded"):
        pretrained.load(str(folder))


def test_weights_that_are_missing_are_not_made_up(place: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(place / "llama", tmp_path / "llama"))
    file = folder / "model.safetensors"
    found = load_file(file)
    del found["model.norm.weight"]
    save_file(found, file, metadata={"format": "pt"})
    with pytest.raises(Invalid, match=r"llama': has no weight 'model.norm.weight' \(1 are missing"):
        pretrained.load(str(folder))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(place: Path, tmp_path: Path) -> None:
    small = AutoModelForCausalLM.from_config(LlamaConfig(**{**GATED, "vocab_size": 280}))
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(Invalid, match=r"vocabulary of 280 is smaller than the tokenizer's 300"):
        tiny.run(place / "recipe.toml", tmp_path / "out", f"model={{from='{tmp_path / 'small'}'}}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("preset", ["1m", "3m", "10m", "99m"])
def test_presets_have_the_parameters_that_their_formula_says(preset: str) -> None:
    depth, width, mlp, tied = {
        "1m": (4, 128, 344, True),
        "3m": (4, 192, 512, True),
        "10m": (8, 288, 768, True),
        "99m": (16, 512, 1280, False),
    }[preset]
    vocabulary = 8192
    with torch.device("meta"):
        wanted = tables.Model(preset=preset)
        found = model.fresh(model.llama(wanted, vocabulary, 256), seed=0)
    layer = 4 * width * width + 3 * width * mlp + 2 * width  # q, k, v, o; gate, up, down; norms
    layers, table = depth * layer + width, vocabulary * width
    assert model.count(found) == (layers + (1 if tied else 2) * table, layers + table)
    assert model.shape(found) == (depth, width)
    assert model.size(found) == vocabulary


def test_flops_by_hand() -> None:
    """6 for each parameter that multiplies, 12 x layers x width x length for attention."""
    assert flops_per_token(1000, layers=2, width=16, length=64) == 6 * 1000 + 12 * 2 * 16 * 64


def test_the_seed_moves_weights_but_neither_tokenizer_nor_split(place: Path) -> None:
    found = []
    for seed in (1, 2, 1):
        recipe = config.load(place / "recipe.toml", sets=(f"seed={seed}",))
        data = build.data(recipe, place / "cache")
        first = next(build.start(recipe, data).parameters()).detach()
        digests = data.identity["corpora"], data.identity["tokenizer"]
        found.append((first, digests))
    assert torch.equal(found[0][0], found[2][0]) and not torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_fresh_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    wanted = tables.Model(depth=1, width=16, heads=2)
    model.fresh(model.llama(wanted, 300, 16), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
