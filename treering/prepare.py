"""Text to stores.

    inputs -> documents -> training or validation -> ids, on every core -> writers -> both stores

One sequence per document, in the order of the input whatever the number of workers, closed by the
end of text. Broken off by anything, it leaves nothing that opens as a store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from treering import text as texts
from treering import tokenizer as tokenizers
from treering.config import Invalid
from treering.encode import Document, cores, encode
from treering.formats import Tally
from treering.store import is_store
from treering.writer import Writer, commit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SMALL = 4_000_000  # bytes of input that are not worth a second process


@dataclass(frozen=True)
class Options:
    """How to prepare: what goes to validation (a share of the documents, or a path), and more."""

    validation: float | str | None = None
    field: str = "text"
    workers: int = 0  # 0: every core
    skip_bad: bool = False
    bos: bool = False
    at_least: int = 0  # tokens of a document; shorter ones are left out
    quiet: bool = False
    label: str = ""  # what the screen calls the text; the stores' own names if empty

    def __post_init__(self) -> None:
        if isinstance(self.validation, float | int) and not 0 < self.validation < 1:
            raise Invalid(f"validation = {self.validation}: a share lies between 0 and 1")
        if self.workers < 0:
            raise Invalid(f"workers = {self.workers}: give a number, or 0 for every core")
        if self.at_least < 0:
            raise Invalid(f"at_least = {self.at_least}: give tokens of a document, or 0 for all")


DEFAULT = Options()


@dataclass
class Part:
    """One of the stores being written, and what its sidecar will say of the text."""

    writer: Writer
    tally: Tally = field(default_factory=Tally)
    bytes: int = 0
    input: hashlib._Hash = field(default_factory=hashlib.sha256)

    def add(self, text: str, ids: NDArray[np.int32]) -> None:
        """One document."""
        data = text.encode()
        self.bytes += len(data)
        self.input.update(len(data).to_bytes(8, "little") + data)
        self.writer.add(ids)

    def facts(self) -> dict[str, object]:
        """What the sidecar says of the text."""
        return {"bytes": self.bytes, "input": self.input.hexdigest()}


def prepare(
    inputs: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    out: str,
    options: Options = DEFAULT,
) -> list[str]:
    """Writes the store `out`, and `out-validation` if validation is asked for; their prefixes."""
    named = [options.validation] if isinstance(options.validation, str) else []
    total, out = size([*inputs, *named]), str(Path(out))  # without a slash at its end
    prefixes = [out] if options.validation is None else [out, f"{out}-validation"]
    vocabulary, mark = tokenizers.size(tokenizer), tokenizers.fingerprint(tokenizer)
    end = tokenizers.end_of_text(tokenizer)
    shared = {"tokenizer": mark, "end_of_text": end}
    parts: list[Part] = []
    ids = encode(
        _routed(inputs, options, parts),
        tokenizers.plain_backend(tokenizer),
        before=begin(tokenizer) if options.bos else (),
        after=[end],
        workers=1 if total is not None and total < SMALL else options.workers or cores(),
    )
    try:
        for prefix in prefixes:
            parts.append(Part(Writer(prefix, vocabulary)))
        with Bar(parts, total, options) as bar, closing(ids) as documents:
            for number, text, tokens in documents:
                if len(tokens) >= options.at_least:
                    parts[number].add(text, tokens)
                bar.update()
        _check(parts, options)
        facts = {p.writer: {**shared, **p.facts(), "skipped": p.tally.skipped} for p in parts}
        commit(facts)
        bar.report()
    except BaseException as error:
        for part in parts:
            part.writer.discard()
        if isinstance(error, OSError):
            why = error.strerror or error
            raise Invalid(f"{out}: cannot be written ({why}); name another") from error
        raise
    return prefixes


def size(inputs: Sequence[str]) -> int | None:
    """Bytes of all input files; None where one is of the hub. Checks that all are there."""
    for path in inputs:
        if is_store(path):
            raise Invalid(f"{path}: a store already; name the text, or use the store as it is")
    if any(path.startswith(texts.HUB) for path in inputs):
        return None
    return sum(file.stat().st_size for path in inputs for file in texts.files(path))


def begin(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that begin a document where one is asked for."""
    if tokenizer.bos_token_id is None:
        raise Invalid(f"--bos: tokenizer {tokenizer.name_or_path} has no bos_token; leave it out")
    return [int(tokenizer.bos_token_id)]


def _routed(inputs: Sequence[str], options: Options, parts: list[Part]) -> Iterator[Document]:
    """Each document with the number of its part: 0 training, 1 validation."""
    named = [options.validation] if isinstance(options.validation, str) else []
    share = 0.0 if named or options.validation is None else float(options.validation)
    for path in inputs:
        for text in _documents(path, options, parts[0].tally):
            yield int(share > 0 and texts.in_validation(text, share)), text
    for path in named:
        for text in _documents(path, options, parts[1].tally):
            yield 1, text


def _documents(path: str, options: Options, tally: Tally) -> Iterator[str]:
    return texts.documents(path, field=options.field, skip_bad=options.skip_bad, tally=tally)


def _check(parts: list[Part], options: Options) -> None:
    for part in parts:
        if not part.writer.documents:
            why = "no document fell to it" if len(parts) > 1 else "the input has no document"
            why += f" of at least {options.at_least} tokens" if options.at_least else ""
            raise Invalid(f"{_name(part, parts, options)}: {why} (a .txt is one, however long); "
                          "give more text, or a file as validation")  # fmt: skip


def _name(part: Part, parts: list[Part], options: Options) -> str:
    """What the screen calls a store: by the text's label, or as it is called itself."""
    held_out = "" if part is parts[0] else ", held out"
    return f"{options.label}{held_out}" if options.label else part.writer.prefix


class Bar:
    """The progress bar on the standard error: documents, tokens/s, time left; or silence."""

    def __init__(self, parts: list[Part], size: int | None, options: Options) -> None:
        self._parts, self._options, self._updates = parts, options, 0
        self._progress = Progress(
            TextColumn(f"preparing {options.label}".rstrip(), markup=False),
            BarColumn(),
            TextColumn("{task.fields[documents]:,} documents"),
            TextColumn("{task.fields[rate]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=options.quiet,
        )
        self._task = self._progress.add_task("", total=size, documents=0, rate=0.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._show()
        self._progress.stop()

    def update(self) -> None:
        """After each document; the screen is touched only every 256."""
        self._updates += 1
        if self._updates % 256 == 0:
            self._show()

    def report(self) -> None:
        """One line for each store, at the end."""
        for part in self._parts if not self._options.quiet else []:
            writer, tally = part.writer, part.tally
            name = _name(part, self._parts, self._options)
            line = f"{name}: {writer.documents:,} documents, {writer.tokens:,} tokens"
            if tally.skipped:
                line += f"; {tally.skipped:,} bad lines skipped, the first {tally.first}"
            self._progress.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _show(self) -> None:
        elapsed = self._progress.tasks[self._task].elapsed or 0.0
        tokens = sum(part.writer.tokens for part in self._parts)
        self._progress.update(
            self._task,
            completed=sum(part.tally.consumed for part in self._parts),
            documents=sum(part.writer.documents for part in self._parts),
            rate=tokens / elapsed if elapsed else 0.0,
        )
