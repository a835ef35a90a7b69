"""Text to stores beyond one machine: the first and the last step of a datatrove pipeline.

    Texts -> filters, formatters and deduplication of datatrove -> Shards

datatrove's executors, local, Slurm or Ray, run the tasks, know which are done, and do the others
again. Each task writes one shard, whole or not at all. In workers this imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from treering import encode, shards
from treering import text as texts
from treering import tokenizer as tokenizers
from treering.config import Invalid
from treering.prepare import Options, Part, begin, size
from treering.writer import Writer, clear, commit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Texts(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Reads the files that `treering prepare` reads, and as it does: a bad line is an error.

    Each task has the files that begin in its part of all bytes, so that the shards one after
    another are the input in its order. A file is not divided: give as many as there are tasks.
    """

    type, name = "TREERING", "Texts"

    def __init__(self, inputs: Sequence[str], *, field: str = "text") -> None:
        super().__init__()
        if size(inputs) is None:
            raise Invalid(f"inputs = {list(inputs)}: for the hub, take a reader of datatrove's")
        self.inputs, self.field = list(inputs), field

    def run(
        self, data: Iterable[Document] | None = None, rank: int = 0, world_size: int = 1
    ) -> Iterator[Document]:
        """The documents of one task, after those of an earlier reader."""
        yield from data or ()
        for file in self._files(rank, world_size):
            for number, text in enumerate(texts.documents(str(file), field=self.field)):
                yield Document(text=text, id=f"{file}/{number}")

    def _files(self, rank: int, world_size: int) -> Iterator[Path]:
        files = [file for path in self.inputs for file in texts.files(path)]
        sizes = [file.stat().st_size for file in files]
        at, total = 0, max(1, sum(sizes))
        for file, length in zip(files, sizes, strict=True):
            if min(at * world_size // total, world_size - 1) == rank:
                yield file
            at += length


class Shards(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Writes the documents of each task as a shard of the store `out`, a folder, as
    `treering prepare` would: encoded by `tokenizer`, each closed by the end of text.

    `validation` is the share of the documents that goes to shards of `out-validation`. A shard
    that an earlier attempt of the task has left is replaced.
    """

    type, name = "TREERING", "Shards"

    def __init__(
        self,
        out: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        validation: float | None = None,
        bos: bool = False,
    ) -> None:
        super().__init__()
        if "://" in out:
            raise Invalid(f"{out}: not a folder; name one that every machine sees, and this one")
        self.share = Options(validation=validation).validation
        self.folders = [out] if validation is None else [out, f"{out}-validation"]
        self.backend = tokenizers.plain_backend(tokenizer)
        self.vocabulary = tokenizers.size(tokenizer)
        self.before = begin(tokenizer) if bos else []
        self.end = tokenizers.end_of_text(tokenizer)
        self.mark = tokenizers.fingerprint(tokenizer)

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> None:
        """Writes the shard of one task."""
        shared = {"tokenizer": self.mark, "end_of_text": self.end}
        shared |= {"shard": rank, "shards": world_size}
        parts: list[Part] = []
        ids = encode.encode(self._routed(data), self.backend, before=self.before, after=[self.end])
        try:
            for folder in self.folders:
                clear(shards.prefix(folder, rank))
                parts.append(Part(Writer(shards.prefix(folder, rank), self.vocabulary)))
            with closing(ids) as documents:
                for number, text, tokens in documents:
                    parts[number].add(text, tokens)
                    self.stat_update("tokens", value=tokens.size)
            commit({part.writer: {**shared, **part.facts()} for part in parts})
        except BaseException:
            for part in parts:
                part.writer.discard()
            raise

    def _routed(self, data: Iterable[Document]) -> Iterator[encode.Document]:
        """Each document's text with the number of its part: 0 training, 1 validation."""
        share = float(self.share or 0.0)
        for document in data:
            try:
                document.text.encode()
            except UnicodeEncodeError as error:
                raise Invalid(
                    f"document {document.id}: not a text that UTF-8 can hold; filter it out"
                ) from error
            yield int(texts.in_validation(document.text, share)), document.text
