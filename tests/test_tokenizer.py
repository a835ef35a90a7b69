"""Tokenizers: every text comes back, special tokens in text are text, bytes add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from treering import tokenizer
from treering.config import Invalid

SCRIPTS = (
    "Hello, world! It's 12,345.\n\n\tça coûte où? Straße. "
    "Привет. مرحبا بالعالم. 日本語。한국어 🙂👩‍👧 "
)
TRAINED = tokenizer.train([SCRIPTS * 3] * 4, 400)


def sentencepiece(*, prefix: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer as Llama 2 has it: spaces as ▁, bytes as <0xNN>."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": b + 3 for b in range(256)}
    for piece in ("▁", "H", "e", "l", "o", "ö", "語", "He", "ll", "Hell", "▁H", "ol", "lo"):
        vocab[piece] = len(vocab)
    merges = [("H", "e"), ("l", "l"), ("He", "ll"), ("▁", "H"), ("o", "l"), ("l", "o")]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    before = [normalizers.Prepend("▁")] if prefix else []
    backend.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def encoded(of: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer.plain_backend(of).encode(text, add_special_tokens=False).ids
    return ids


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_every_text_comes_back_from_a_trained_tokenizer(text: str) -> None:
    ids = encoded(TRAINED, text)
    assert TRAINED.backend_tokenizer.decode(ids, skip_special_tokens=False) == text


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_bytes_of_ids_add_up_to_the_bytes_of_the_text(text: str) -> None:
    text = SCRIPTS + text
    lengths = tokenizer.byte_lengths(TRAINED)
    assert lengths[encoded(TRAINED, text)].sum() == len(text.encode())


@given(st.text())
@settings(max_examples=100, deadline=None)
def test_bytes_add_up_for_a_sentencepiece_tokenizer(text: str) -> None:
    text = SCRIPTS + text
    of = sentencepiece()
    assert tokenizer.byte_lengths(of)[encoded(of, text)].sum() == len(text.encode())
    with_space = sentencepiece(prefix=True)
    ids = encoded(with_space, text)
    assert tokenizer.byte_lengths(with_space)[ids].sum() == len(text.encode()) + 1


def test_special_tokens_have_no_bytes_and_added_ones_their_own(tmp_path: Path) -> None:
    TRAINED.save_pretrained(str(tmp_path))
    of = tokenizer.load(tmp_path)
    of.add_tokens([AddedToken("été    ", normalized=False)])
    of.add_special_tokens({"pad_token": "<pad>"})
    lengths = tokenizer.byte_lengths(of)
    assert len(lengths) == tokenizer.size(of) == tokenizer.size(TRAINED) + 2
    added, end = of.convert_tokens_to_ids("été    "), tokenizer.end_of_text(of)
    assert lengths[added] == 9
    assert lengths[end] == lengths[of.pad_token_id] == 0
    text = f"un été    à {SCRIPTS}"
    ids = encoded(of, text)
    assert added in ids
    assert lengths[ids].sum() == len(text.encode())


def test_special_tokens_spelled_out_are_text() -> None:
    text = "before <|endoftext|> after"
    ids = encoded(TRAINED, text)
    assert tokenizer.end_of_text(TRAINED) not in ids
    assert tokenizer.byte_lengths(TRAINED)[ids].sum() == len(text)
    assert tokenizer.end_of_text(TRAINED) in TRAINED(text).input_ids  # what it would be otherwise


def test_the_plain_backend_neither_cuts_nor_pads_nor_changes_the_tokenizer(tmp_path: Path) -> None:
    TRAINED.save_pretrained(str(tmp_path))
    of = tokenizer.load(tmp_path)
    assert isinstance(of, PreTrainedTokenizerFast)
    of.backend_tokenizer.enable_truncation(4)
    of.backend_tokenizer.enable_padding(length=1000)
    assert encoded(of, SCRIPTS) == encoded(TRAINED, SCRIPTS)
    assert of.backend_tokenizer.truncation is not None


def test_the_fingerprint_survives_saving_and_loading(tmp_path: Path) -> None:
    for name, of in {"bpe": TRAINED, "llama": sentencepiece(prefix=True)}.items():
        of.save_pretrained(str(tmp_path / name))
        mark = tokenizer.fingerprint(of)
        assert tokenizer.fingerprint(tokenizer.load(tmp_path / name)) == mark


def test_the_fingerprint_tells_behaviours_apart(tmp_path: Path) -> None:
    marks = {tokenizer.fingerprint(TRAINED)}
    TRAINED.save_pretrained(str(tmp_path))
    file = tmp_path / "tokenizer.json"
    facts = json.loads(file.read_text())
    facts["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(facts))
    marks.add(tokenizer.fingerprint(tokenizer.load(tmp_path)))  # the same vocabulary
    marks.add(tokenizer.fingerprint(tokenizer.train([SCRIPTS * 3] * 4, 300)))
    other_end = tokenizer.train([SCRIPTS * 3] * 4, 400)
    other_end.eos_token = "H"
    marks.add(tokenizer.fingerprint(other_end))
    assert len(marks) == 4


def test_training_gives_the_same_tokenizer_again() -> None:
    again = tokenizer.train(iter([SCRIPTS * 3] * 4), 400)
    assert tokenizer.fingerprint(again) == tokenizer.fingerprint(TRAINED)
    assert tokenizer.size(again) <= 400


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    assert tokenizer.size(tokenizer.train([SCRIPTS], 257)) == 257
    with pytest.raises(Invalid, match="256 bytes"):
        tokenizer.train([SCRIPTS], 256)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no such folder"):
        tokenizer.load(tmp_path / "none")
    with pytest.raises(Invalid, match="cannot be loaded"):
        tokenizer.load(tmp_path)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    of = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizers.Tokenizer.from_str(TRAINED.backend_tokenizer.to_str())
    )
    with pytest.raises(Invalid, match="no end of text"):
        tokenizer.end_of_text(of)


def test_bytes_of_a_tokenizer_of_whole_words_are_those_it_decodes_to() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"<end>": 0, "été": 1, "a": 2}, "<end>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    of = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, eos_token="<end>"
    )
    assert tokenizer.byte_lengths(of).tolist() == [0, 5, 1]


def test_a_folder_without_a_tokenizers_files_is_refused(tmp_path: Path) -> None:
    """transformers makes one of it that gives no token of any text."""
    settings = {"model_type": "qwen2", "vocab_size": 300}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(Invalid, match=r"tokenizer .*: gives no token of any text .are its"):
        tokenizer.load(tmp_path)
