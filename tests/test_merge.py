"""Weights added, subtracted and averaged: by hand, in constant memory, and opened again."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_model import GATED, KINDS
from test_surgeries_depth import made
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from treering import cli, pretrained, tokenizer, weights
from treering.config import Invalid
from treering.footprint import Alive

NAMES = ("base", "trained", "instruct")


def family(place: Path) -> Path:
    """A base, and two that came of it; instruct's tokenizer knows how to talk."""
    words = tokenizer.train(tiny.documents("en", 60), 300)
    found = made(KINDS["llama-tied"]())
    for i, name in enumerate(NAMES):
        torch.manual_seed(i)
        with torch.no_grad():
            for param in found.parameters():
                param.add_(0.01 * i * torch.randn_like(param))
        found.save_pretrained(place / name)
        if name == "instruct":
            words.chat_template = "{{ messages }}"
        words.save_pretrained(str(place / name))
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family(tmp_path_factory.mktemp("merge"))


def of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()}  # fmt: skip


def merged(place: Path, out: Path, *asked: str) -> dict[str, torch.Tensor]:
    """The verb, with NAME[:W] for the folders in `place`."""
    there = [str(place / each) if each.split(":")[0] in NAMES else each for each in asked]
    assert cli.main(["merge", *there, "--out", str(out)]) == 0
    return of(out)


def test_the_instruction_residual_is_added(place: Path, tmp_path: Path) -> None:
    """arXiv 2410.10739: every tensor, a tied one once; the chat template is instruct's."""
    asked = ("--base", "base", "--add", "trained", "instruct:0.5", "--like", "instruct")
    found = merged(place, tmp_path / "out", *asked)
    base, trained, instruct = (of(place / name) for name in NAMES)
    assert found.keys() == base.keys() and "lm_head.weight" not in found
    for name, tensor in found.items():
        wanted = trained[name].double() + 0.5 * (instruct[name].double() - base[name].double())
        torch.testing.assert_close(tensor, wanted.float(), rtol=0, atol=1e-7)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert opened.dtype == torch.float32
    assert opened.lm_head.weight is opened.model.embed_tokens.weight
    assert opened.generate(torch.tensor([[5, 6]]), max_new_tokens=2).shape[1] > 2
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == "{{ messages }}"
    card = (tmp_path / "out/README.md").read_text()
    assert "base + 1 (trained - base) + 0.5 (instruct - base)" in card
    assert str(place) not in card and card.count("\n- ") == 3
    for name in NAMES:
        assert str(pretrained.fingerprint(str(place / name))) in card


@pytest.mark.filterwarnings("default:merge. .*rows that not all have")
@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_a_residual_goes_into_a_model_with_more_words(
    place: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that the base has not are those of the model that `--like` names; both heads."""
    there = {name: tmp_path / name for name in NAMES}
    for i, (name, folder) in enumerate(there.items()):
        model = made(KINDS[kind]())
        if name == "trained":
            model.resize_token_embeddings(340, mean_resizing=False)
        torch.manual_seed(i)
        with torch.no_grad():
            for param in model.parameters():
                param.add_(0.01 * torch.randn_like(param))
        model.save_pretrained(folder)
        tokenizer.load(place / "base").save_pretrained(str(folder))
    asked = ["merge", "--base", *map(str, (there["base"], "--add", there["trained"]))]
    asked += [str(there["instruct"]), "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 2
    assert "name by --like the one of them whose rows are right" in capsys.readouterr().err
    assert cli.main([*asked, "--like", str(there["trained"])]) == 0
    assert "rows that not all have are those of" in capsys.readouterr().err
    found = of(tmp_path / "out")
    base, trained, instruct = (of(folder) for folder in there.values())
    longer = [name for name, tensor in found.items() if tensor.shape != base[name].shape]
    assert len(longer) == (1 if kind == "llama-tied" else 2)
    for name, tensor in found.items():
        old = len(base[name])
        wanted = trained[name][:old] + instruct[name] - base[name]
        torch.testing.assert_close(tensor[:old], wanted, rtol=0, atol=1e-6)
        assert torch.equal(tensor[old:], trained[name][old:])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.vocab_size == 340
    card = (tmp_path / "out/README.md").read_text()
    assert "; rows from 320 on: trained" in card


def test_what_is_subtracted_is_added_again_bit_for_bit(place: Path, tmp_path: Path) -> None:
    base = of(place / "base")
    there = merged(place, tmp_path / "one", "--base", "base", "--add", "instruct")
    assert all(torch.equal(tensor, of(place / "instruct")[name]) for name, tensor in there.items())
    nothing = merged(place, tmp_path / "two", "--base", "base", "--add", "instruct:0")
    assert all(torch.equal(tensor, base[name]) for name, tensor in nothing.items())
    less = merged(place, tmp_path / "three", "--base", "base", "--subtract", "instruct:2")
    instruct = of(place / "instruct")
    for name, tensor in less.items():
        torch.testing.assert_close(tensor, base[name] - 2 * (instruct[name] - base[name]))


def test_means_are_weighted(place: Path, tmp_path: Path) -> None:
    found = merged(place, tmp_path / "out", "base", "trained:2", "instruct")
    every = [of(place / name) for name in NAMES]
    for name, tensor in found.items():
        torch.testing.assert_close(
            tensor, (every[0][name] + 2 * every[1][name] + every[2][name]) / 4
        )


def test_slerp_goes_along_the_arc(tmp_path: Path) -> None:
    from treering.combining import Slerp

    a, b = torch.tensor([2.0, 0, 0]).double(), torch.tensor([0, 3.0, 0]).double()
    found = Slerp(1 / 3)([a, b], [1, 1])
    wanted = [2 * math.cos(math.pi / 6), 3 * math.sin(math.pi / 6), 0]
    torch.testing.assert_close(found, torch.tensor(wanted).double())
    for at, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(Slerp(at)([a, b], [1, 1]), end)
    unit = a / 2 + b / 3
    turned = Slerp(0.5)([a / 2, unit / unit.norm()], [1, 1])
    assert turned.norm().item() == pytest.approx(1), "on the sphere"
    torch.testing.assert_close(Slerp(0.25)([a, 2 * a], [1, 1]), 1.25 * a)
    zero = torch.zeros(3).double()
    torch.testing.assert_close(Slerp(0.25)([zero, a], [1, 1]), 0.25 * a)


def test_slerp_by_the_verb(place: Path, tmp_path: Path) -> None:
    found = merged(place, tmp_path / "out", "base", "instruct", "--slerp", "1.0")
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, of(place / "instruct")[name])


def test_numbers_are_of_the_widest_type_unless_asked(place: Path, tmp_path: Path) -> None:
    """A difference taken in bf16 would lose what is small."""
    half = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    out = tmp_path / "wide"
    asked = ["merge", "--base", str(tmp_path / "half"), "--add", str(place / "instruct")]
    assert cli.main([*asked, "--out", str(out)]) == 0
    instruct = of(place / "instruct")
    assert all(torch.equal(tensor, instruct[name]) for name, tensor in of(out).items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert cli.main([*asked, "--out", str(tmp_path / "16"), "--dtype", "bfloat16"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "16").dtype == torch.bfloat16
    assert all(tensor.dtype == torch.bfloat16 for tensor in of(tmp_path / "16").values())


def test_no_more_than_a_file_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models of 64 MiB, in files of 8 MiB: bytes of all tensors that are alive at once."""
    settings = LlamaConfig(**GATED)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_file({f"w{i}": torch.full((2**19,), float(i)) for i in range(32)},
                  tmp_path / name / "model.safetensors")  # fmt: skip
        settings.save_pretrained(tmp_path / name)
    monkeypatch.setattr(weights, "FILE", 8 * 2**20)
    two = [str(tmp_path / name) for name in "ab"]
    with Alive([]) as alive:
        assert cli.main(["merge", *two, "--out", str(tmp_path / "c")]) == 0
    described = 64 * 2**20  # of tensors without memory, which are counted as if they had some
    assert 8 * 2**20 <= alive.most - described < 32 * 2**20
    assert len(list((tmp_path / "c").glob("*.safetensors"))) == 8
    assert len(of(tmp_path / "c")) == 32
    index = json.loads((tmp_path / "c/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 64 * 2**20


def other_words(folder: Path) -> None:
    """The base's tokens and ids, but for the last."""
    made(KINDS["llama-tied"]()).save_pretrained(folder)
    words = tokenizer.train(tiny.documents("en", 60), 300)
    table = json.loads(words.backend_tokenizer.to_str())
    vocabulary = table["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary["zzyzx"] = vocabulary.pop(last)
    table["model"]["merges"] = [
        pair for pair in table["model"]["merges"] if "".join(pair) != last and last not in pair
    ]
    words._tokenizer = type(words.backend_tokenizer).from_str(json.dumps(table))
    words.save_pretrained(str(folder))


@pytest.mark.filterwarnings("default:merge. positions")
def test_models_that_turn_positions_otherwise_are_not_mixed_unawares(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that were trained at another base are of another model; of `--like` one is right.
    The older spelling of the same is no difference."""
    longer, older = tmp_path / "longer", tmp_path / "older"
    shutil.copytree(place / "trained", longer)
    shutil.copytree(place / "trained", older)
    settings = json.loads((longer / "config.json").read_text())
    rope = settings.pop("rope_parameters")
    (longer / "config.json").write_text(
        json.dumps(settings | {"rope_parameters": rope | {"rope_theta": 5e5}})
    )
    (older / "config.json").write_text(json.dumps(settings | {"rope_theta": rope["rope_theta"]}))
    base, out = str(place / "base"), str(tmp_path / "out")
    assert cli.main(["merge", base, str(longer), "--out", out]) == 2
    said = capsys.readouterr().err
    assert "'rope_theta': 500000.0" in said and "say by --like whose are right" in said
    assert cli.main(["merge", base, str(longer), "--like", str(longer), "--out", out]) == 0
    assert "longer, which counts" in capsys.readouterr().err
    made = json.loads((Path(out) / "config.json").read_text())
    assert made["rope_parameters"]["rope_theta"] == 5e5
    assert cli.main(["merge", base, str(older), "--out", str(tmp_path / "same")]) == 0
    assert "positions" not in capsys.readouterr().err


@pytest.mark.filterwarnings("default:merge. id")
def test_of_tokens_that_were_renamed_those_of_like_are_right(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An instruct model may give a reserved id another name."""
    other_words(tmp_path / "other")
    base, out = str(place / "base"), str(tmp_path / "out")
    assert cli.main(["merge", base, str(tmp_path / "other"), "--like", base, "--out", out]) == 0
    assert "its rows are mixed" in capsys.readouterr().err
    assert "zzyzx" not in AutoTokenizer.from_pretrained(out).get_vocab()


def test_older_words_for_positions_are_no_difference(tmp_path: Path) -> None:
    """GPT-NeoX's own, of Pythia on the hub."""
    made(KINDS["neox"]()).save_pretrained(tmp_path / "new")
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    settings = json.loads((tmp_path / "old/config.json").read_text())
    rope = settings.pop("rope_parameters")
    settings |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    (tmp_path / "old/config.json").write_text(json.dumps(settings))
    asked = ["merge", str(tmp_path / "old"), str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    assert cli.main(asked) == 0


def test_weights_that_lie_there_twice_are_read_as_the_index_says(
    place: Path, tmp_path: Path
) -> None:
    """Beside a model's shards there may be the same weights under the names of another library."""
    twice = tmp_path / "twice"
    shutil.copytree(place / "trained", twice)
    tensors = of(twice)
    (twice / "model.safetensors").unlink()
    save_file(tensors, twice / "model-00001-of-00001.safetensors")
    names = dict.fromkeys(tensors, "model-00001-of-00001.safetensors")
    (twice / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    save_file({"tok_embeddings.weight": torch.ones(2, 2)}, twice / "consolidated.safetensors")
    save_file({name: t + 1 for name, t in tensors.items()}, twice / "model-left-over.safetensors")
    found = merged(place, tmp_path / "out", str(twice), "trained")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor)
    (twice / "model.safetensors.index.json").write_text("{")
    with pytest.raises(Invalid, match="index.json: cannot be read .*; restore it"):
        weights.read(twice, {})
