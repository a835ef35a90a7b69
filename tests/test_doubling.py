"""Which layers pass on what they are given, by hand and by the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_model import KINDS
from test_surgeries_depth import made
from torch.nn import functional

from treering import cli, doubling, model, tokenizer
from treering.config import Invalid

ROWS = np.arange(60).reshape(3, 20) * 5 % 300


@pytest.mark.parametrize("kind", ["llama", "qwen3", "neox", "gpt2"])
def test_it_is_the_cosine_of_a_layers_two_sides(kind: str) -> None:
    """As transformers shows them; its last is after the last norm."""
    found = made(KINDS[kind]())
    similar = doubling.similarities(found, ROWS)
    with torch.no_grad():
        states = found(torch.from_numpy(ROWS), output_hidden_states=True).hidden_states
    assert len(similar) == len(states) - 1 == len(model.blocks(found))
    for layer in range(len(similar) - 1):
        wanted = functional.cosine_similarity(states[layer], states[layer + 1], dim=-1).mean()
        assert similar[layer] == pytest.approx(float(wanted), abs=1e-5)


def test_a_layer_that_adds_nothing_is_the_most_similar() -> None:
    found = made(KINDS["llama"]())
    with torch.no_grad():
        layer = model.blocks(found)[1]
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            layer.get_submodule(name).weight.zero_()
    similar = doubling.similarities(found, ROWS)
    assert similar[1] == pytest.approx(1, abs=1e-6) and similar[0] < 0.999
    assert doubling.window(similar, 1) == (1, 2)


def test_neighbours_are_chosen_by_their_mean() -> None:
    similar = [0.2, 0.9, 0.5, 0.8, 0.7, 0.9]
    assert doubling.window(similar, 1) == (1, 2)
    assert doubling.window(similar, 3) == (3, 6)
    assert doubling.window(similar, 6) == (0, 6)
    for count in (0, 7):
        with pytest.raises(Invalid, match=f"--double {count}: the model has 6 layers"):
            doubling.window(similar, count)


def test_a_window_longer_than_the_models_positions_is_refused() -> None:
    found = made(KINDS["gpt2"]())
    most = found.config.max_position_embeddings
    with pytest.raises(Invalid, match=f"--length {most + 1}: the model has {most} positions"):
        doubling.similarities(found, np.zeros((1, most + 1), np.int64))


def test_the_verb_shows_each_layer_and_the_window(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(tmp_path / "en.jsonl", tiny.documents("en", 60))
    made(KINDS["llama"]()).save_pretrained(tmp_path / "model")
    tokenizer.train(tiny.documents("en", 60), 300).save_pretrained(str(tmp_path / "model"))
    asked = ["layers", str(tmp_path / "model"), "--corpus", str(tmp_path / "en.jsonl")]
    capsys.readouterr()
    assert cli.main([*asked, "--length", "32", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert len(said["similar"]) == 2 and said["tokens"] % 32 == 0 and said["tokens"] > 0
    assert cli.main([*asked, "--length", "32", "--double", "2"]) == 0
    shown = capsys.readouterr().out
    assert "most similar: window = [0, 2]" in shown and f"{said['similar'][1]:.4f}" in shown
    for length, said in (("100000", "fewer than --length 100000"), ("0", "at least 1 token")):
        assert cli.main([*asked, "--length", length]) == 2
        assert said in capsys.readouterr().err
