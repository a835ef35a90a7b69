"""Tokenizers: loaded or trained, told apart by a fingerprint, and measured in bytes.

Anything of `transformers` that has a fast backend. Text is encoded by a copy of that backend
which takes special tokens spelled out in the text for what they are there: text.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from treering.config import Invalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END = "<|endoftext|>"
NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # of the hub
PROBE = (
    "The quick brown fox's 12,345.67 jumps\tover\n\n  two   lines.\r\n"
    "Ça coûte où? Straße, Übergröße. Привет, мир! مرحبا بالعالم، كتاب. 日本語のテキスト、東京。"
    "中文字符 한국어 हिन्दी 🙂👩‍👩‍👧 def f(x):\n        return x**2 - 1e-8\n"
)


def is_folder(source: str, what: str) -> bool:
    """Whether it is one; else it may be a name of the hub. Raises Invalid, before the hub is asked,
    for a path that leads nowhere."""
    found = Path(source).is_dir()
    if not found and not NAME.fullmatch(source):
        raise Invalid(f"{what}: no such folder; correct the path")
    return found


def load(source: str | Path, *, remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, or of a name of the hub."""
    is_folder(str(source), f"tokenizer {source}")
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    try:
        found = AutoTokenizer.from_pretrained(str(source), trust_remote_code=remote_code)
    except Exception as error:  # transformers fails in as many ways as there are tokenizers
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Invalid(f"tokenizer {source}: cannot be loaded ({why}); name another") from error
    assert isinstance(found, PreTrainedTokenizerBase)
    if not found.encode(PROBE, add_special_tokens=False):
        raise Invalid(f"tokenizer {source}: gives no token of any text (are its files there?); "
                      "name another by [tokenizer] from")  # fmt: skip
    return found


def train(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE whose only special token is the end of text.

    It has an id for each of the 256 bytes, so that every text can be encoded and comes back.
    """
    if vocabulary < 257:
        raise Invalid(f"tokenizer.train = {vocabulary}: 256 bytes and the end of text need 257")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    from transformers import PreTrainedTokenizerFast

    make: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast  # itself untyped
    return make(tokenizer_object=backend, eos_token=END, clean_up_tokenization_spaces=False)


def save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that `load` reads. Raises OSError where the disk is full."""
    with writing(folder):
        tokenizer.save_pretrained(folder)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A full disk is an OSError here, too."""
    try:
        yield
    except Exception as error:
        if type(error) is Exception:  # how the backend, which is Rust, says so
            raise OSError(f"{path}: {error}") from error
        raise


def plain_backend(tokenizer: PreTrainedTokenizerBase) -> tokenizers.Tokenizer:
    """A copy of the fast backend that cuts nothing, pads nothing, and sees only text in text."""
    from transformers import PreTrainedTokenizerFast

    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise Invalid(f"tokenizer {tokenizer.name_or_path}: has no fast version; name one that has")
    return as_plain(tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))


def as_plain(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same backend with these settings, which its JSON does not keep."""
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A name for what a tokenizer does: its vocabulary, its end of text, the ids of a probe.

    It is the same after saving and loading, wherever the folder stands.
    """
    ids = plain_backend(tokenizer).encode(PROBE, add_special_tokens=False).ids
    facts = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, ids]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a document."""
    if tokenizer.eos_token_id is None:
        raise Invalid(f"tokenizer {tokenizer.name_or_path}: has no end of text; give it eos_token")
    return int(tokenizer.eos_token_id)


def size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def byte_lengths(tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """How many bytes of text each id decodes to: int64[size]; special tokens are none.

    For byte-level BPE and for byte fallback they add up to the text's own bytes. A SentencePiece
    tokenizer that puts a space before each text counts that space, one byte a document.
    """
    backend = plain_backend(tokenizer)
    parts = json.loads(backend.to_str())["decoder"]
    kinds = {part["type"] for part in _decoders(parts)}
    lengths = np.zeros(size(tokenizer), dtype=np.int64)
    for token, id in backend.get_vocab(with_added_tokens=True).items():
        if "ByteLevel" in kinds:
            lengths[id] = len(token)  # one character stands for one byte
        elif kinds & {"ByteFallback", "Metaspace"}:
            byte = re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token)
            lengths[id] = 1 if byte else len(token.replace("▁", " ").encode())
        else:
            lengths[id] = len(backend.decode([id], skip_special_tokens=False).encode())
    for id, added in backend.get_added_tokens_decoder().items():
        lengths[id] = 0 if added.special else len(added.content.encode())
    lengths[[id for id in tokenizer.all_special_ids if id is not None]] = 0
    return lengths


def _decoders(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The decoders in a sequence of them, or the one, or none."""
    if part is None:
        return []
    return list(part["decoders"]) if part["type"] == "Sequence" else [part]
