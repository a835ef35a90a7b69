"""What is no merge: refused by name, before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_merge import NAMES, family, of, other_words
from test_model import GATED, KINDS
from test_surgeries_depth import made
from transformers import LlamaConfig

from treering import cli, tokenizer, weights
from treering.config import Invalid


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("merge"))


def deeper(folder: Path) -> None:
    made(LlamaConfig(**{**GATED, "num_hidden_layers": 3}, tie_word_embeddings=True)
         ).save_pretrained(folder)  # fmt: skip


def wider(folder: Path) -> None:
    made(LlamaConfig(**{**GATED, "vocab_size": 328}, tie_word_embeddings=True)
         ).save_pretrained(folder)  # fmt: skip


def other_kind(folder: Path) -> None:
    made(KINDS["qwen2"]()).save_pretrained(folder)


def other_heads(folder: Path) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    made(LlamaConfig(**{**GATED, **heads}, tie_word_embeddings=True)).save_pretrained(folder)


def other_tokens(folder: Path) -> None:
    made(KINDS["llama-tied"]()).save_pretrained(folder)
    tokenizer.train(tiny.documents("de", 60), 300).save_pretrained(str(folder))


def quantised(folder: Path) -> None:
    made(KINDS["llama-tied"]()).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(settings))


def eights(folder: Path) -> None:
    found = made(KINDS["llama-tied"]())
    found.save_pretrained(folder)
    tensors = of(folder)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].to(
        torch.float8_e4m3fn
    )
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (deeper, r"has a weight 'model.layers.2.input_layernorm.weight', which .*base has not"),
        (wider, r"model.embed_tokens.weight is \[328, 16\] in .*other, but \[320, 16\] in .*base"),
        (other_kind, r"model_type is 'qwen2' in .*other, but 'llama' in .*base"),
        (other_heads, r"num_attention_heads is 4 in .*other, but 2 in .*base"),
        (other_tokens, r"the token '.*' is \d+ in .*other, but \d+ in .*base: their rows"),
        (other_words, r"id \d+ is the token '.*' in .*other, but '.*' in .*base; say by --like"),
        (quantised, r"other is quantised; name the model that it was made of"),
        (eights, r"model.embed_tokens.weight is of type F32, F8_E4M3; known: F16, BF16"),
        (lambda folder: folder.mkdir(), r"has no readable config.json"),
    ],
)
def test_models_that_are_not_alike_are_refused(
    place: Path, tmp_path: Path, make: Callable[[Path], None], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    make(tmp_path / "other")
    asked = ["merge", str(place / "base"), str(tmp_path / "other"), "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 2
    assert re.search(said, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_integers_that_differ_have_no_mean(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, count in (("a", 1), ("b", 2)):
        shutil.copytree(place / "trained", tmp_path / name)
        more = of(tmp_path / name) | {"counts": torch.tensor([count])}
        save_file(more, tmp_path / name / "model.safetensors")
    asked = ["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 2
    assert "counts is of integers that differ; they have no mean" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((), "name either models"),
        (("base",), "a mean is of two models or more"),
        (("base", "trained:-1"), "not negative"),
        (("base:0", "trained:0"), "the weights add up to 0"),
        (("--base", "base"), "name either models"),
        (("base", "--base", "base", "--add", "trained"), "name either models"),
        (("--base", "base", "--add", "trained", "--slerp", "0.5"), "is for two models without"),
        (("base", "trained", "instruct", "--slerp", "0.5"), "takes two models"),
        (("base", "trained:2", "--slerp", "0.5"), "takes two models without weights"),
        (("base", "trained", "--slerp", "2"), "must be in [0, 1]"),
    ],
)
def test_what_is_no_merge_is_refused(
    place: Path, tmp_path: Path, asked: tuple[str, ...], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    there = [str(place / each) if each.split(":")[0] in NAMES else each for each in asked]
    assert cli.main(["merge", *there, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert cli.main(["merge", str(place / "base"), str(place / "trained"),
                     "--out", str(place / "base")]) == 2  # fmt: skip
    assert "exists; name another" in capsys.readouterr().err


def test_a_full_disk_is_named_and_not_a_parent(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*given: object, **more: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    given = [str(place / "base"), str(place / "trained"), "--out", str(tmp_path / "out")]
    assert cli.main(["merge", *given]) == 1
    said = capsys.readouterr().err
    assert "No space left" in said and str(tmp_path) in said and str(place) not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("index", ["null", "[]", '{"weight_map": 3}'])
def test_an_index_of_another_shape_is_named(place: Path, tmp_path: Path, index: str) -> None:
    folder = Path(shutil.copytree(place / "base", tmp_path / "base"))
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Invalid, match=r"index\.json: cannot be read .* restore it"):
        weights.holds(folder, ["x"])
