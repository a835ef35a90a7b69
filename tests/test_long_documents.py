"""Long documents as a corpus of their own, and a model that learns to read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from test_prepare import BPE, decoded, source
from torch.nn import functional
from transformers import AutoModelForCausalLM

from treering import build, cache, cli, config, tokenizer
from treering.config import Invalid
from treering.prepare import Options, prepare
from treering.store import open_store

OLD, NEW = 32, 128
SHORT, LONG = "A few words.", " ".join(["many words that go on and on"] * 8)
DOCUMENTS = [SHORT, LONG, SHORT + " Again.", LONG + " End.", ""]


def test_only_documents_of_so_many_tokens_are_kept(tmp_path: Path) -> None:
    """The end of text counts; a document of just so many is kept."""
    backend = tokenizer.plain_backend(BPE)
    sizes = {text: len(backend.encode(text).ids) + 1 for text in DOCUMENTS}
    for least in (0, 1, 2, sizes[SHORT], sizes[SHORT] + 1, sizes[LONG], sizes[LONG] + 1):
        options = Options(at_least=least, quiet=True)
        (store,) = prepare([source(tmp_path, DOCUMENTS)], BPE, str(tmp_path / f"{least}"), options)
        assert decoded(store) == [text for text in DOCUMENTS if sizes[text] >= least]
    with pytest.raises(Invalid, match="the input has no document of at least 9999 tokens"):
        prepare([source(tmp_path, DOCUMENTS)], BPE, str(tmp_path / "none"), Options(at_least=9999))
    with pytest.raises(Invalid, match="at_least = -1"):
        Options(at_least=-1)


def test_the_verb_keeps_them_too(tmp_path: Path) -> None:
    BPE.save_pretrained(str(tmp_path / "words"))
    asked = ["prepare", source(tmp_path, DOCUMENTS), "--tokenizer", str(tmp_path / "words")]
    assert cli.main([*asked, "--out", str(tmp_path / "long"), "--at-least", "40"]) == 0
    assert decoded(str(tmp_path / "long")) == [LONG, LONG + " End."]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short texts, and some long ones among them."""
    place = tiny.place(tmp_path_factory.mktemp("long"))
    short = tiny.documents("en", 120)
    long = [" ".join(tiny.documents("en", 12, f"long {i}")) for i in range(40)]
    tiny.write_text(place / "en.jsonl", short + long)
    return place


def test_a_corpus_of_long_documents_has_a_weight_of_its_own(place: Path) -> None:
    """The same file twice: all of it, and once more what is long."""
    long = f"corpora.long={{train='{place / 'en.jsonl'}', validation=0.2, at_least=200}}"
    mixed = "phases=[{name='one', tokens=640, mixture={en=0.5, long=0.5}}]"
    recipe = config.load(place / "recipe.toml", sets=(long, mixed, "replay={share=0.0}"))
    data = build.data(recipe, place / "cache")
    every, longer = data.train[0], data.train[3]
    assert every is not None and longer is not None
    assert 0 < (longer.documents or 0) < (every.documents or 0)
    end = tokenizer.end_of_text(data.tokenizer)
    tokens = longer.read(np.arange(longer.samples(1)), 1)[:, 0]
    ends = np.flatnonzero(tokens == end)
    assert np.diff(ends).min() >= 200
    store = cache.cached(str(place / "en.jsonl"), None, data.tokenizer, place / "cache")[0]
    options = Options(at_least=200)
    with pytest.raises(Invalid, match="at_least = 200: .* is a store, whose documents stay"):
        cache.cached(store, None, data.tokenizer, place / "cache", options)
    with pytest.raises(Invalid, match="corpora.long.at_least = -1"):
        config.load(place / "recipe.toml", sets=(long.replace("200", "-1"),))


def by_position(folder: Path, store: str) -> np.ndarray:
    """Mean loss at each position of windows of NEW tokens, nats."""
    found = AutoModelForCausalLM.from_pretrained(folder).eval()
    opened = open_store(store)
    tokens = torch.from_numpy(opened.read(np.arange(min(64, opened.samples(NEW))), NEW).astype(int))
    with torch.no_grad():
        logits = found(tokens[:, :-1]).logits
    losses = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
    return losses.mean(0).numpy()


HOW = {
    "abf": "theta=200_000.0",
    "yarn": f"scaling='yarn', original={OLD}",
    "linear": f"scaling='linear', original={OLD}",
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_an_extended_model_reads_beyond_its_old_length(
    place: Path, tmp_path: Path, trained: Path, how: str
) -> None:
    table = f"{{kind='context', length={NEW}, {how}}}"
    long = f"corpora.long={{train='{place / 'en.jsonl'}', validation=0.2, at_least={NEW}}}"
    sets = (
        f"model={{from='{trained / 'model'}', attention='document'}}", f"surgeries=[{table}]",
        f"length={NEW}", long, "phases=[{name='long', tokens=20_480, mixture={en=0.3, long=0.7}}]",
        "batch={tokens=1024}", "replay={share=0.0}", "update={kind='descent'}",
        "schedule={kind='constant', peak=3e-3}",
    )  # fmt: skip
    tiny.run(tiny.without(place, "tokenizer"), tmp_path / "run", *sets)
    words = tokenizer.load(trained / "model")
    store = cache.cached(str(place / "en.jsonl"), 0.2, words, place / "cache",
                         Options(at_least=NEW, quiet=True))[1]  # fmt: skip
    assert store is not None
    before, after = (by_position(at, store) for at in (trained / "model", tmp_path / "run/model"))
    assert before[OLD:].mean() > before[8:OLD].mean() + 0.05, "it had never seen so far"
    assert after[OLD:].mean() < before[OLD:].mean() - 0.1
    assert after[OLD:].mean() < after[8:OLD].mean() + 0.02


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A model trained on windows of OLD tokens."""
    sets = ("model={width=32, depth=2, heads=2, mlp=64, tied=true}", f"length={OLD}",
            "phases=[{name='short', tokens=163_840, mixture={en=1.0}}]", "batch={tokens=1024}",
            "replay={share=0.0}", "update={kind='descent'}", "evaluate.every_tokens=100_000",
            "checkpoint.every_tokens=100_000")  # fmt: skip
    tiny.run(place / "recipe.toml", place / "short", *sets)
    return place / "short"
