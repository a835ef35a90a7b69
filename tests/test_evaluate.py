"""Held-out loss: the same digits wherever it is asked for, and the digits of a loop by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from treering import build, checkpoint, cli, config, evaluate, outcome, records, text, tokenizer
from treering.forward import Forward
from treering.mesh import Mesh
from treering.store import open_store


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:
    tiny.run(place / "recipe.toml", place / "finished", "checkpoint.stay_at_phase=true")
    return place / "finished"


@pytest.fixture(scope="module")
def begun(place: Path, finished: Path) -> Path:
    """The model that the run began with, as a folder of its own."""
    recipe = config.load(place / "recipe.toml")
    data = build.data(recipe, place / "cache")
    folder = place / "begun"
    build.start(recipe, data).save_pretrained(folder)
    data.tokenizer.save_pretrained(str(folder))
    return folder


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What `treering evaluate --json` prints."""
    capsys.readouterr()
    with tiny.one_thread():
        code = cli.main(["evaluate", *arguments, "--json"])
    out = capsys.readouterr()
    assert code == 0, out.err
    found: dict[str, Any] = json.loads(out.out)
    return found


def row(out: Path, step: int) -> dict[str, Any]:
    """The scores of a run after a step, as `treering evaluate` prints them."""
    return {
        record["corpus"]: {name: record[name] for name in ("loss", "bits_per_byte", "tokens")}
        for record in records.read(out)
        if record["kind"] == "score" and record["step"] == step
    }


def test_evaluate_gives_the_last_row_of_a_run_and_row_0_of_its_beginning_to_the_digit(
    finished: Path, begun: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ("--cache", str(place / "cache"))
    recipe = ("--recipe", str(place / "recipe.toml"))
    last, first = row(finished, tiny.STEPS), row(finished, 0)
    assert list(last) == ["en", "fr", "de"]
    assert asked(capsys, str(finished), *cache) == last  # its own recipe
    assert asked(capsys, str(finished), *recipe, *cache) == last
    assert asked(capsys, str(finished / "model"), *recipe, *cache) == last
    assert asked(capsys, str(begun), *recipe, *cache) == first
    assert first["en"] != last["en"]


def test_a_runs_own_recipe_is_changed_by_sets(
    finished: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ("--cache", str(place / "cache"))
    found = asked(capsys, str(finished), "--set", "evaluate.tokens=32", *cache)
    assert [score["tokens"] for score in found.values()] == [32] * 3


def test_an_older_checkpoint_is_scored_and_exported(
    finished: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the first phase's end, which stays; its card tells what was known by then."""
    cache = ("--cache", str(place / "cache"))
    assert asked(capsys, str(finished), "--step", "25", *cache) == row(finished, 25)
    out = tmp_path / "model"
    assert cli.main(["export", str(finished), "--step", "25", "--out", str(out), *cache]) == 0
    assert "after step 25" in capsys.readouterr().out
    recipe = ("--recipe", str(place / "recipe.toml"))
    assert asked(capsys, str(out), *recipe, *cache) == row(finished, 25) != row(finished, 50)
    told = (out / "README.md").read_text()
    assert f"{row(finished, 25)['fr']['loss']:.3f}" in told
    assert f"{row(finished, 50)['fr']['loss']:.3f}" not in told


def test_a_step_without_a_sound_checkpoint_is_refused(
    finished: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ["--cache", str(place / "cache")]
    assert cli.main(["evaluate", str(finished), "--step", "24", *cache]) == 2
    assert re.search(
        r"--step 24: .* has checkpoints of the steps 25, .*50", capsys.readouterr().err
    )
    assert cli.main(["evaluate", str(finished / "model"), "--step", "25", *cache]) == 2
    assert "--step 25: " in capsys.readouterr().err
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    with (checkpoint.place(run / "checkpoints", 25) / "state.json").open("a") as file:
        file.write(" ")
    assert cli.main(["evaluate", str(run), "--step", "25", *cache]) == 2
    assert "is damaged: state.json has" in capsys.readouterr().err


REFUSED = {
    "--set seed=1: {model} has no recipe of its own": ["{model}", "--set", "seed=1"],
    "--data x: is where the files of --recipe are": ["{run}", "--data", "x"],
    "--task-limit 3: is of tasks": ["{run}", "--task-limit", "3"],
    "--task-folder y: is of tasks": ["{run}", "--task-folder", "y"],
    "is (300, 16), that of the recipe's model (300, 32)": ["{run}", "--set", "model.width=32"],
    "layers.1.input_layernorm.weight is None": ["{run}", "--set", "model.depth=2"],
}


@pytest.mark.parametrize("words", REFUSED)
def test_options_without_effect_and_recipes_of_another_model_are_refused(
    finished: Path, place: Path, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = {"run": finished, "model": finished / "model"}
    given = [word.format(**named) for word in REFUSED[words]]
    assert cli.main(["evaluate", *given, "--cache", str(place / "cache")]) == 2
    assert words.format(**named) in capsys.readouterr().err


def test_an_export_is_of_the_step_that_it_names(
    finished: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a run in progress a checkpoint is looked for once."""
    real, asked = checkpoint.newest, 0

    def newest(folder: Path) -> object:
        nonlocal asked
        asked += 1
        return real(folder)

    monkeypatch.setattr(checkpoint, "newest", newest)
    assert outcome.export(str(finished), tmp_path / "model", place / "cache") == tiny.STEPS
    assert asked == 1


def test_the_table_has_a_line_for_each_corpus(
    finished: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tiny.one_thread():
        assert cli.main(["evaluate", str(finished), "--cache", str(place / "cache")]) == 0
    lines = capsys.readouterr().out.splitlines()
    for corpus, found in row(finished, tiny.STEPS).items():
        words = next(line for line in lines if f" {corpus} " in line)
        assert f"{found['loss']:.4f}" in words and f"{found['bits_per_byte']:.4f}" in words


@pytest.mark.parametrize("tokens", [0, 1, 128, 10**9])
def test_losses_are_those_of_a_loop_by_hand_in_float64(
    finished: Path, place: Path, tokens: int
) -> None:
    with tiny.one_thread():
        compare_with_a_loop(finished, place, tokens)


def compare_with_a_loop(finished: Path, place: Path, tokens: int) -> None:
    recipe = config.load(place / "recipe.toml", sets=(f"evaluate.tokens={tokens}",))
    data = build.data(recipe, place / "cache")
    found = outcome.scores(str(finished), recipe, place / "cache")
    model = AutoModelForCausalLM.from_pretrained(finished / "model").double()
    for corpus, store in data.validation.items():
        samples = (store.tokens - 1) // 16
        n = samples if tokens == 0 else min(samples, math.ceil(tokens / 16))
        assert found[corpus].tokens == n * 16
        index = np.array([i * samples // n for i in range(n)])
        total, bytes_ = 0.0, 0
        for window in store.read(index, 16).astype(np.int64):
            with torch.no_grad():
                logits = (
                    model(input_ids=torch.from_numpy(window[None, :-1])).logits[0].log_softmax(-1)
                )
            total -= sum(float(logits[t, window[t + 1]]) for t in range(16))
            # Halves of characters, alone no text, are counted as their bytes.
            kept = [i for i in window[1:].tolist() if i != data.tokenizer.eos_token_id]
            bytes_ += sum(len(data.tokenizer.convert_ids_to_tokens(i)) for i in kept)
            assert data.tokenizer.decode(kept).isascii()
        assert found[corpus].loss == pytest.approx(total / (n * 16), rel=1e-6)
        assert found[corpus].bits_per_byte == pytest.approx(total / math.log(2) / bytes_, rel=1e-6)


def test_tokens_0_scores_every_window(place: Path) -> None:
    recipe = config.load(place / "recipe.toml", sets=("evaluate.tokens=0",))
    data = build.data(recipe, place / "cache")
    for text_, store in zip(build.held_outs(recipe, data), data.validation.values(), strict=True):
        whole = store.read(np.arange(store.samples(16)), 16)
        assert np.array_equal(text_.tokens, whole)
        assert len(whole) == (store.tokens - 1) // 16


def test_two_evaluations_are_equal_bit_for_bit(finished: Path, place: Path) -> None:
    with tiny.one_thread():
        one, two = (outcome.scores(str(finished), None, place / "cache") for _ in range(2))
    assert one == two


def test_no_document_that_is_scored_was_trained_on(place: Path) -> None:
    recipe = config.load(place / "recipe.toml")
    data = build.data(recipe, place / "cache")
    parts = [[s for s in stores if s] for stores in (data.train, data.validation.values())]
    end = data.tokenizer.eos_token_id

    def documents(source: int) -> set[tuple[int, ...]]:
        found: set[tuple[int, ...]] = set()
        for store in parts[source]:
            ids = store.read(np.arange(store.tokens - 1), 1)[:, 0].tolist()  # all but the last
            marks = [-1, *(i for i, id in enumerate(ids) if id == end), len(ids)]
            found |= {tuple(ids[a + 1 : b]) for a, b in pairwise(marks)}
        return found

    train, held_out = documents(0), documents(1)
    assert len(train) > 100 and len(held_out) > 20
    assert train.isdisjoint(held_out)
    sides = [text.in_validation(document, 0.2) for document in tiny.documents("en", 60)]
    assert 0 < sum(sides) < 60


def test_bits_per_byte_by_hand() -> None:
    """Four predictions at ln 2 nats each are four bits; their tokens are 1, 2, 2 and 3 bytes."""

    class Half(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return counts.sum(), torch.full((len(tokens),), math.log(2.0))

    half = Half()
    forward = Forward(half, half, Mesh(), None, rows=2)  # type: ignore[arg-type]
    windows = evaluate.HeldOut("en", np.zeros((2, 3), np.int64), bytes=1 + 2 + 2 + 3)
    found = evaluate.score(forward, windows)
    assert found.bits_per_byte == pytest.approx(4 / 8, rel=1e-6)
    assert found.tokens == 4
    unknown = evaluate.HeldOut("en", np.zeros((2, 3), np.int64), bytes=None)
    assert evaluate.score(forward, unknown).bits_per_byte is None


def test_a_store_without_a_sidecar_has_a_warning_and_no_bits_per_byte(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    data = build.data(config.load(place / "recipe.toml"), place / "cache")
    prefix = data.validation["fr"].path.removesuffix(".bin")
    for suffix in (".bin", ".idx"):
        (tmp_path / f"foreign{suffix}").write_bytes(Path(prefix + suffix).read_bytes())
    sets = (f"corpora.fr.validation='{tmp_path / 'foreign'}'",)
    recipe = config.load(place / "recipe.toml", sets=sets)
    with tiny.one_thread(), pytest.warns(UserWarning, match="without a sidecar"):
        found = outcome.scores(str(finished), recipe, place / "cache")
    assert found["fr"].bits_per_byte is None
    assert found["fr"].loss == row(finished, tiny.STEPS)["fr"]["loss"]
    assert found["en"].bits_per_byte is not None
    with pytest.warns(UserWarning, match="without a sidecar"):
        assert open_store(tmp_path / "foreign").bytes is None


def test_a_past_corpus_is_forgotten_after_one_phase_from_a_pretrained_model(
    place: Path, finished: Path, tmp_path: Path
) -> None:
    """The commonest use: a checkpoint that knows English goes on with French."""
    sets = (
        f"model={{from='{finished / 'model'}'}}",
        "replay={past=['en']}",
        "phases=[{name='fr', tokens=640, mixture={fr=1.0}}]",
    )
    recipe = tiny.without(place, "tokenizer")
    summary = tiny.run(recipe, tmp_path / "out", *sets)
    before, after = row(tmp_path / "out", 0)["en"]["loss"], row(tmp_path / "out", 10)["en"]["loss"]
    assert row(tmp_path / "out", 0) == row(finished, tiny.STEPS)
    assert summary["learned"] == {"en": 0, "fr": len(summary["rows"]) - 1}
    forgetting = summary["loss"]["metrics"]["forgetting"]
    assert forgetting["per_corpus"] == {"en": after - before}
    assert forgetting["value"] == after - before
    mark = tokenizer.fingerprint(tokenizer.load(tmp_path / "out/model"))
    assert mark == tokenizer.fingerprint(tokenizer.load(finished / "model"))
