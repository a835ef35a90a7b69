"""A vocabulary that grows: merges learned on a corpus, rows for them, and what stays as it was."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from test_model import KINDS
from test_surgeries_depth import made
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import bpe, cli, model, tokenizer
from treering.config import Invalid
from treering.methods.surgeries import Vocabulary
from treering.protocols import Origin

TEXTS = ["Ça coûte où? 日本語 🙂", "naïve\n\n  x = 1", "<|endoftext|> inside"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of two languages; a tokenizer of the first, and that one with 40 tokens more."""
    place = tiny.place(tmp_path_factory.mktemp("vocabulary"))
    tokenizer.train(tiny.documents("en", 60), 300).save_pretrained(str(place / "base"))
    base = tokenizer.load(place / "base")
    bpe.extend(base, [str(place / "fr.jsonl")], 40, place / "extended", field="text")
    return place


@pytest.fixture(scope="module")
def base(place: Path) -> PreTrainedTokenizerBase:
    return tokenizer.load(place / "base")


@pytest.fixture(scope="module")
def extended(place: Path) -> PreTrainedTokenizerBase:
    return tokenizer.load(place / "extended")


def ids(words: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer.plain_backend(words).encode(text, add_special_tokens=False).ids


def by_hand(base: PreTrainedTokenizerBase, documents: list[str], add: int) -> list[tuple[str, str]]:
    """BPE written out: the most frequent pair within words, one after another (Sennrich 2016)."""
    names = {i: token for token, i in base.get_vocab().items()}
    words: Counter[tuple[str, ...]] = Counter()
    backend = tokenizer.plain_backend(base)
    for document in documents:
        assert backend.pre_tokenizer is not None
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(document):
            words[tuple(names[token.id] for token in backend.model.tokenize(word))] += 1
    merges: list[tuple[str, str]] = []
    while len(merges) < add:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        best = max(pairs.values())
        merges.append(next(pair for pair in pairs if pairs[pair] == best))
        old, words = words, Counter()
        for word, count in old.items():
            words[joined(word, merges[-1])] += count
    return merges


def joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    made: list[str] = []
    for part in word:
        if made and (made[-1], part) == pair:
            made[-1] += part
        else:
            made.append(part)
    return tuple(made)


def test_merges_are_the_most_frequent_pairs_of_the_bases_tokens(
    base: PreTrainedTokenizerBase,
) -> None:
    """Ties apart: so few documents that every count is another."""
    documents = ["zq" * 9 + " " + "xj" * 5, "zq xj zq kv kv kv zq"]
    found = bpe.learned(tokenizer.plain_backend(base), documents, 3)
    assert found == by_hand(base, documents, 3)
    assert found[0] == ("z", "q") and found[1] == ("zq", "zq")


def test_old_tokens_keep_their_ids_and_new_ones_are_learned(
    base: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase
) -> None:
    new = bpe.added(extended, base)
    assert list(new.values()) == list(range(300, 340))
    assert tokenizer.size(extended) == 340 and extended.eos_token_id == base.eos_token_id
    luck = random.Random(0)
    for language in tiny.LANGUAGES:
        before = after = 0
        for text in [tiny.sentence(language, luck) for _ in range(20)]:
            assert extended.decode(ids(extended, text)) == text
            before, after = before + len(ids(base, text)), after + len(ids(extended, text))
        assert after < 0.7 * before if language == "fr" else after <= before


@pytest.mark.parametrize("text", TEXTS)
def test_every_text_comes_back(extended: PreTrainedTokenizerBase, text: str) -> None:
    found = ids(extended, text)
    assert extended.decode(found) == text
    assert tokenizer.byte_lengths(extended)[found].sum() == len(text.encode())


def test_an_extended_tokenizer_is_extended_again_where_ids_have_holes(
    base: PreTrainedTokenizerBase, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in Qwen's and Llama's, special tokens lie beyond the model's own vocabulary."""
    words = tokenizer.load(place / "extended")
    words.add_special_tokens({"additional_special_tokens": ["<|law|>"]})
    bpe.extend(words, [str(place / "de.jsonl")], 10, tmp_path / "twice", field="text")
    found = tokenizer.load(tmp_path / "twice")
    assert list(bpe.added(found, words).values()) == list(range(341, 351))
    assert found.get_vocab()["<|law|>"] == 340
    assert len(found("a <|law|> b", add_special_tokens=False).input_ids) > 3
    assert "hole" not in "".join(capfd.readouterr())


def test_fertility_by_hand(base: PreTrainedTokenizerBase) -> None:
    found = bpe.fertility(base, ["ça va", " où "])
    assert (found.words, found.bytes) == (3, 6 + 5)
    assert found.tokens == len(ids(base, "ça va")) + len(ids(base, " où "))
    assert found.per_word == found.tokens / 3 and found.per_byte == found.tokens / 11


def test_the_verb_says_fertility_before_and_after(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["extend-tokenizer", str(place / "base"), "--corpus", str(place / "fr.jsonl")]
    asked += ["--add", "40", "--out", str(tmp_path / "out"), "--json"]
    assert cli.main(asked) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["after"]["tokens"] < 0.7 * said["before"]["tokens"]
    assert said["after"]["bytes"] == said["before"]["bytes"] > 0
    assert cli.main(asked) == 2
    assert "exists; name another" in capsys.readouterr().err
    asked = [*asked[:-2], str(tmp_path / "again")]
    assert cli.main(asked) == 0
    shown = capsys.readouterr().out
    before, words = said["before"]["tokens"], said["before"]["words"]
    assert "tokens/word" in shown and f"{before / words:.3f}" in shown


@pytest.mark.parametrize(
    ("add", "said"),
    [(0, "--add 0: must be at least 1"), (10**5, r"--add 100000: the corpus has \d+ pairs")],
)
def test_what_cannot_be_learned_is_refused(
    base: PreTrainedTokenizerBase, place: Path, tmp_path: Path, add: int, said: str
) -> None:
    with pytest.raises(Invalid, match=said):
        bpe.extend(base, [str(place / "fr.jsonl")], add, tmp_path / "out", field="text")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], unk_id=0))
    words = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<unk>")
    with pytest.raises(Invalid, match="is a Unigram that is not byte-level"):
        bpe.extend(words, [], 5, tmp_path / "out", field="text")


def tables(found: PreTrainedModel) -> list[torch.Tensor]:
    head = found.get_output_embeddings()
    return [found.get_input_embeddings().weight.detach(), head.weight.detach()]


def begun(place: Path, kind: str) -> PreTrainedModel:
    settings = KINDS[kind]()
    settings.vocab_size = 304  # 4 rows without a token
    return made(settings)


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "neox", "qwen2", "gpt2"])
def test_a_new_row_is_the_mean_of_the_pieces_rows(
    place: Path, base: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase, kind: str
) -> None:
    before = begun(place, kind)
    after = Vocabulary(multiple=64)(before, Origin(extended, str(place / "base"), 0))
    assert model.size(after) == after.config.vocab_size == 384
    letters = {v: k for k, v in bpe.added(extended, base).items()}
    for old, new in zip(tables(before), tables(after), strict=True):
        assert torch.equal(new[:300], old[:300])
        for i in range(300, 340):
            pieces = [piece.id for piece in base.backend_tokenizer.model.tokenize(letters[i])]
            assert len(pieces) > 1
            torch.testing.assert_close(new[i], sum(old[p] for p in pieces) / len(pieces))
        torch.testing.assert_close(new[340:], old.mean(0).expand(44, -1))
    tied = after.get_input_embeddings().weight is after.get_output_embeddings().weight
    assert tied == before.config.tie_word_embeddings
    text = torch.tensor([ids(base, "Ça coûte où?")])
    with torch.no_grad():
        assert torch.equal(after(text).logits[..., :300], before(text).logits[..., :300])


def test_a_description_stands_for_a_token_and_noise_for_the_others(
    place: Path, base: PreTrainedTokenizerBase, extended: PreTrainedTokenizerBase
) -> None:
    token = next(iter(bpe.added(extended, base)))
    before, origin = begun(place, "llama"), Origin(extended, str(place / "base"), 0)
    surgery = Vocabulary(rows="noise", descriptions={token: "a word of French"})
    one, again = (tables(surgery(before, origin)) for _ in range(2))
    other = tables(surgery(before, Origin(extended, str(place / "base"), 1)))
    for old, new, same, moved in zip(tables(before), one, again, other, strict=True):
        torch.testing.assert_close(new[300], old[ids(base, "a word of French")].mean(0))
        assert torch.equal(new, same) and not torch.equal(new[301:], moved[301:])
        assert len(new) == 340
        assert len({tuple(row) for row in new[301:].tolist()}) == 39
        assert (new[301:].std() / old.std()).item() == pytest.approx(1, abs=0.15)
    with pytest.raises(Invalid, match="descriptions: 'nothing' is not new"):
        Vocabulary(descriptions={"nothing": "a"})(before, origin)


def test_half_a_character_is_spelled_in_the_bases_bytes(base: PreTrainedTokenizerBase) -> None:
    """ "Ĥ" and "æĹ" are bytes that are no UTF-8."""
    found = bpe.spelled(["æĹ¥", "æĹ"], base, base)
    assert found == {"æĹ¥": ids(base, "日"), "æĹ": ids(base, "日")[:2]}


def test_a_token_that_was_added_is_spelled_as_text(
    place: Path, base: PreTrainedTokenizerBase
) -> None:
    """Also of a tokenizer that has no merges: this is how one that is not byte-level grows."""
    words = tokenizer.load(place / "base")
    words.add_tokens(["<|où|>", " loi"])
    before = begun(place, "llama")
    after = Vocabulary()(before, Origin(words, str(place / "base"), 0))
    for old, new in zip(tables(before), tables(after), strict=True):
        torch.testing.assert_close(new[300], old[ids(base, "<|où|>")].mean(0))
        torch.testing.assert_close(new[301], old[ids(base, " loi")].mean(0))
        assert len(new) == 304, "there were rows without a token"
        assert torch.equal(new[302:], old[302:])


def test_a_tokenizer_that_does_not_extend_the_models_own_is_refused(
    place: Path, extended: PreTrainedTokenizerBase
) -> None:
    tokenizer.train(tiny.documents("de", 60), 320).save_pretrained(str(place / "other"))
    other = tokenizer.load(place / "other")
    with pytest.raises(Invalid, match=r"tokenizer: '.*' is \d+ in the model's own and"):
        Vocabulary()(begun(place, "llama"), Origin(other, str(place / "base"), 0))
    with pytest.raises(Invalid, match="a fresh model has the tokenizer's vocabulary"):
        Vocabulary()(begun(place, "llama"), Origin(extended, None, 0))
    for table, said in (({"rows": "zero"}, "rows = 'zero'"), ({"multiple": 0}, "multiple = 0")):
        with pytest.raises(Invalid, match=said):
            Vocabulary(**table)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(12))
def test_one_document_is_both_what_is_learned_from_and_what_is_counted_and_that_is_said(
    base: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """A file of text, on whichever side it falls, and cut short where it is very long."""
    monkeypatch.setattr(bpe, "LIMIT", 3000)
    (tmp_path / "fr.txt").write_text("\n".join(tiny.documents("fr", 60, str(seed))))
    with pytest.warns(UserWarning, match="no document is held out"):
        before, after = bpe.extend(
            base, [str(tmp_path / "fr.txt")], 8, tmp_path / "out", field="text"
        )
    assert after.tokens < before.tokens and before.bytes == 3000
