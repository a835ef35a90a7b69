"""Raw text in a recipe: prepared on first use, kept by what it holds.

    CACHE/stores/KEY/tokens.{bin,idx,json}   KEY names the text, the tokenizer and the split
    CACHE/tokenizers/KEY/                    KEY names the text, the split and the size

An entry is written beside its place and renamed, under a lock: it is there whole or not at all,
and two runs that want the same one make it once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from treering import text as texts
from treering import tokenizer as tokenizers
from treering.config import Invalid
from treering.prepare import DEFAULT, Options, prepare
from treering.store import Store, is_store, open_store
from treering.tables import Corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

FORMAT = 1  # of the entries; another number makes them all anew
LIMIT = 20_000_000  # bytes of each corpus that a tokenizer is trained on


def cache_folder(explicit: str | None = None) -> Path:
    """Where entries lie: what is asked for, else $TREERING_CACHE, else ~/.cache/treering."""
    return Path(explicit or os.environ.get("TREERING_CACHE") or Path.home() / ".cache/treering")


def of_corpus(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, cache: Path
) -> tuple[str, str | None]:
    """The stores of a recipe's corpus, as of `cached`."""
    options = replace(DEFAULT, at_least=corpus.at_least)
    return cached(corpus.train, corpus.validation, tokenizer, cache, options)


def cached(
    train: str,
    validation: str | float | None,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    options: Options = DEFAULT,
) -> tuple[str, str | None]:
    """The stores of a corpus, for training and validation; a text is prepared on first use."""
    share = None if isinstance(validation, str) else validation
    held_out: str | None = None
    if options.at_least and is_store(train):
        raise Invalid(f"at_least = {options.at_least}: {train} is a store, whose documents stay; "
                      "make it with `treering prepare --at-least`")  # fmt: skip
    if not is_store(train):
        train, held_out = _prepared(train, share, tokenizer, cache, options)
    elif share is not None:
        raise Invalid(
            f"validation = {share}: {train} is a store, which is not split; "
            "make both with `treering prepare --validation`"
        )
    if isinstance(validation, str):
        held_out = validation
        if not is_store(validation):
            held_out, _ = _prepared(validation, None, tokenizer, cache, options)
    return train, held_out


def cached_tokenizer(
    sources: Sequence[tuple[str, float | None]], vocabulary: int, cache: Path, field: str = "text"
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on corpora, given as (text, share that goes to validation), in order.

    Validation documents are left out; of each corpus it sees the first 20 MB.
    """
    for source, _ in sources:
        if is_store(source):
            raise Invalid(f"tokenizer.train: {source} is a store, without text; use tokenizer.from")
    digests = [(texts.digest(source), share) for source, share in sources]
    key = _key("tokenizer", digests, vocabulary, LIMIT, field)

    def make(folder: Path) -> None:
        tokenizers.save(tokenizers.train(_training(sources, field), vocabulary), folder)

    found = tokenizers.load(_entry(cache / "tokenizers", key, make))
    from transformers import PreTrainedTokenizerFast

    assert isinstance(found, PreTrainedTokenizerFast)
    return found


def _prepared(
    text: str,
    share: float | None,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    options: Options,
) -> tuple[str, str | None]:
    """The prefixes of a text's stores in the cache."""
    options = replace(options, validation=share, label=Path(text).name)
    how: tuple[object, ...] = (share, options.field, options.bos, options.skip_bad)
    how += (options.at_least,) if options.at_least else ()
    key = _key("store", texts.digest(text), tokenizers.fingerprint(tokenizer), *how)

    def make(folder: Path) -> None:
        prepare([text], tokenizer, str(folder / "tokens"), options)

    prefix = str(_entry(cache / "stores", key, make) / "tokens")
    return prefix, None if share is None else f"{prefix}-validation"


def _training(sources: Sequence[tuple[str, float | None]], field: str) -> Iterator[str]:
    for source, share in sources:
        every = texts.documents(source, field=field)
        kept = (t for t in every if share is None or not texts.in_validation(t, share))
        yield from texts.limited(kept, LIMIT)


def opened(path: str, key: str, mark: str, vocabulary: int) -> Store:
    """A store for a run whose tokenizer is `mark`; `key` of the recipe names it. Raises Invalid if
    another tokenizer made it."""
    store = open_store(path, vocabulary=vocabulary)
    if store.tokenizer is not None and store.tokenizer != mark:
        raise Invalid(
            f"{key} = {path!r}: made with tokenizer {store.tokenizer[:12]}, the run uses "
            f"{mark[:12]}; prepare it with the run's tokenizer, or name that one in [tokenizer]"
        )
    return store


def _key(*facts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *facts]).encode()).hexdigest()[:32]


def _entry(shelf: Path, key: str, make: Callable[[Path], None]) -> Path:
    """The folder of an entry, made if it is not there."""
    folder, beside = shelf / key, shelf / f"{key}.part"
    if folder.is_dir():
        return folder
    try:
        shelf.mkdir(parents=True, exist_ok=True)
        with FileLock(shelf / f"{key}.lock"):
            if not folder.is_dir():
                shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
                make(beside)
                os.rename(beside, folder)
    except OSError as error:
        why = error.strerror or str(error)
        raise Invalid(f"{shelf}: cannot be written ({why}); name another --cache") from error
    return folder
