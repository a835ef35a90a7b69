"""More merges for a byte-level BPE, learned on a corpus, and what they change.

    words of the corpus -> the base's tokens, each written as one letter -> the library's trainer
    -> its merges, letters read as tokens again -> appended to the base's own

So the base's merges come first and every old token keeps its id: a text is cut as before, and then
the new merges join what lies side by side.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from treering import text as texts
from treering.atomic import replacing
from treering.config import Invalid
from treering.tokenizer import load, plain_backend, save, size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LETTER = 0x10000  # of id 0: beyond all that could be taken for a space
SHARE = 0.1  # of the documents is held out, for fertility
LIMIT = 100_000_000  # bytes of each corpus that are looked at
BATCH = 256  # documents
Merge = tuple[str, str]


@dataclass(frozen=True)
class Fertility:
    """Tokens, words (between spaces) and bytes of a text."""

    tokens: int
    words: int
    bytes: int

    @property
    def per_word(self) -> float:
        """Tokens of a word."""
        return self.tokens / max(1, self.words)

    @property
    def per_byte(self) -> float:
        """Tokens of a byte."""
        return self.tokens / max(1, self.bytes)


def extend(
    base: PreTrainedTokenizerBase, corpus: Sequence[str], add: int, out: Path, *, field: str
) -> tuple[Fertility, Fertility]:
    """Write the tokenizer `base` with `add` more tokens, learned on the corpus's documents, into
    the folder `out`; the fertility of its held-out documents before and after.

    Raises Invalid for a tokenizer of another kind, or a corpus that has not as many merges.
    """
    if add < 1:
        raise Invalid(f"--add {add}: must be at least 1 token")
    if out.exists():
        raise Invalid(f"--out {out}: exists; name another folder")
    check(base)
    trained, held_out = _documents(corpus, field)
    if not (trained and held_out):
        warnings.warn("no document is held out (a file of text is one): tokens per word are of "
                      "what the merges are learned from", stacklevel=2)  # fmt: skip
        trained = held_out = trained or held_out
    merges = learned(plain_backend(base), trained, add)
    with replacing(out) as beside:
        save(base, beside)
        file = beside / "tokenizer.json"
        whole = json.loads(file.read_text(encoding="utf-8"))
        _append(whole, merges, size(base))
        file.write_text(json.dumps(whole, ensure_ascii=False), encoding="utf-8")
        made = load(beside)
        if len(found := added(made, base)) != add:
            raise Invalid(f"tokenizer {base.name_or_path}: {type(made).__name__} took {len(found)} "
                          f"of {add} new tokens; it cannot be extended by merges")  # fmt: skip
    return fertility(base, held_out), fertility(made, held_out)


def check(base: PreTrainedTokenizerBase) -> None:
    """Raises Invalid for a tokenizer to which merges of bytes cannot be appended."""
    whole = json.loads(plain_backend(base).to_str())
    first = whole["pre_tokenizer"] or {}
    kinds = [part["type"] for part in first.get("pretokenizers", [first]) if part]
    if whole["model"]["type"] != "BPE" or "ByteLevel" not in kinds:
        raise Invalid(f"tokenizer {base.name_or_path}: is a {whole['model']['type']} that is not "
                      "byte-level; only a byte-level BPE is extended by merges")  # fmt: skip


def learned(backend: tokenizers.Tokenizer, documents: Iterable[str], add: int) -> list[Merge]:
    """Merges, most frequent first, of which `add` make a token that the base has not."""
    known, names = set(backend.get_vocab()), {i: t for t, i in backend.get_vocab().items()}
    letters = list(_spelled(backend, documents))
    asked = add
    while True:
        found = [(_read(a, names), _read(b, names)) for a, b in _trained(letters, asked)]
        new, merges = set(known), list[Merge]()
        for a, b in found:
            if len(new) - len(known) == add:
                return merges
            new.add(a + b)
            merges.append((a, b))
        if len(new) - len(known) == add:
            return merges
        if len(found) < asked:
            raise Invalid(f"--add {add}: the corpus has {len(new) - len(known)} pairs that occur "
                          "twice; give more text or a smaller number")  # fmt: skip
        asked += add  # some made a token that there is, by another way


def _trained(letters: Sequence[str], merges: int) -> list[Merge]:
    """So many merges of letters, most frequent first; fewer where no pair occurs twice."""
    blank = tokenizers.Tokenizer(models.BPE())
    blank.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = {letter for text in letters for letter in text} - {" "}
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, min_frequency=2, show_progress=False
    )
    blank.train_from_iterator(letters, trainer=trainer)
    return [(a, b) for a, b in json.loads(blank.to_str())["model"]["merges"]]


def _spelled(backend: tokenizers.Tokenizer, documents: Iterable[str]) -> Iterator[str]:
    """Each document as the base cuts it: a letter for a token, a space between words."""
    batch: list[str] = []
    for document in (*documents, None):
        if document is not None:
            batch.append(document)
        if batch and (document is None or len(batch) == BATCH):
            for each in backend.encode_batch(batch, add_special_tokens=False):
                last, text = None, []
                for i, word in zip(each.ids, each.word_ids, strict=True):
                    text += [" "] * (word != last) + [chr(LETTER + i)]
                    last = word
                yield "".join(text)
            batch = []


def _read(letters: str, names: dict[int, str]) -> str:
    return "".join(names[ord(letter) - LETTER] for letter in letters)


def _append(whole: dict[str, Any], merges: Sequence[Merge], first: int) -> None:
    """Put merges behind a tokenizer's own, and ids from `first` on for their tokens."""
    model = whole["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for each in whole["added_tokens"]:  # else the ids would have a hole
        vocabulary.setdefault(each["content"], each["id"])
    for a, b in merges:
        if a + b not in vocabulary:
            vocabulary[a + b] = first
            first += 1
    pairs = all(isinstance(merge, list) for merge in model["merges"])
    model["merges"] += [[a, b] if pairs else f"{a} {b}" for a, b in merges]


def fertility(words: PreTrainedTokenizerBase, documents: Iterable[str]) -> Fertility:
    """How many tokens a tokenizer needs for texts."""
    backend, tokens, spaced, length = plain_backend(words), 0, 0, 0
    for text in documents:
        tokens += len(backend.encode(text, add_special_tokens=False).ids)
        spaced, length = spaced + len(text.split()), length + len(text.encode())
    return Fertility(tokens, spaced, length)


def added(words: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase) -> dict[str, int]:
    """The tokens that `words` has beyond those of `base`, with their ids, in order. Raises Invalid
    where an old token has another id: its row would be that of another token."""
    vocabulary, old = words.get_vocab(), base.get_vocab()
    for token, i in old.items():
        if vocabulary.get(token) != i:
            raise Invalid(
                f"tokenizer: {token!r} is {i} in the model's own and {vocabulary.get(token)} here; "
                "extend the model's own by `treering extend-tokenizer`"
            )
    found = {token: i for token, i in vocabulary.items() if token not in old}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def spelled(
    tokens: Sequence[str], words: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase
) -> dict[str, list[int]]:
    """The ids of `base` by which it spells tokens of `words`; none where it cannot."""
    backend, found = plain_backend(base), {}
    texts = {each.content for each in words.added_tokens_decoder.values()}
    for token in tokens:
        if token in texts:
            found[token] = backend.encode(token, add_special_tokens=False).ids
        else:  # in the letters of the model itself, so that half a character is spelled, too
            found[token] = [piece.id for piece in backend.model.tokenize(token)]
    return found


def _documents(corpus: Sequence[str], field: str) -> tuple[list[str], list[str]]:
    """Those that are learned from, and those that are held out."""
    trained, held_out = list[str](), list[str]()
    for path in corpus:
        for text in texts.limited(texts.documents(path, field=field), LIMIT):
            (held_out if texts.in_validation(text, SHARE) else trained).append(text)
    return trained, held_out
