"""Documents to token ids, on every core, in the order in which they came.

    documents -> batches -> worker processes -> ids of one document after another

A worker imports the `tokenizers` library and nothing heavier. Only so many batches are on their
way at once, so memory does not grow with the input.
"""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from treering.config import Invalid
from treering.tokenizer import as_plain, writing

CHARACTERS = 1 << 19  # of a batch, so that a worker has 0.1 s of work
DOCUMENTS = 1 << 12

Document = tuple[int, str]  # the number of the store it goes to, its text
Encoded = tuple[int, str, NDArray[np.int32]]
Ids = tuple[NDArray[np.int32], NDArray[np.int64]]  # of all documents of a batch; their lengths


@dataclass(frozen=True)
class Job:
    """How texts become ids, as it is sent with each batch: the backend itself lies in a file.

    `before` and `after` are the ids written around each document.
    """

    file: str
    before: tuple[int, ...]
    after: tuple[int, ...]


def encode(
    documents: Iterable[Document],
    backend: tokenizers.Tokenizer,
    *,
    before: Sequence[int] = (),
    after: Sequence[int] = (),
    workers: int = 1,
) -> Generator[Encoded, None, None]:
    """Each document with its ids; one worker is this process, more are that many others."""
    with tempfile.TemporaryDirectory(prefix="treering-") as folder:
        job = Job(str(Path(folder) / "tokenizer.json"), tuple(before), tuple(after))
        with writing(job.file):
            backend.save(job.file, pretty=False)
        runs = _here(documents, job) if workers == 1 else _pool(_batches(documents), job, workers)
        for batch, (ids, lengths) in runs:
            parts = np.split(ids, np.cumsum(lengths)[:-1])
            for (number, text), part in zip(batch, parts, strict=True):
                yield number, text, part


def cores() -> int:
    """How many cores this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= CHARACTERS or len(batch) == DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _here(documents: Iterable[Document], job: Job) -> Iterator[tuple[list[Document], Ids]]:
    """One by one: of a batch, the library would take every core."""
    for document in documents:
        yield [document], _work(job, [document[1]])


def _pool(
    batches: Iterable[list[Document]], job: Job, workers: int
) -> Iterator[tuple[list[Document], Ids]]:
    """Encodes in worker processes, at most two batches for each on their way."""
    waiting: deque[tuple[list[Document], Future[Ids]]] = deque()
    spawn = multiprocessing.get_context("spawn")  # a fork would copy locks in any state
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start)
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(_work, job, [text for _, text in batch])))
            if len(waiting) == 2 * workers:
                first, ids = waiting.popleft()
                yield first, ids.result()
        for batch, ids in waiting:
            yield batch, ids.result()
    except BrokenProcessPool as error:
        raise Invalid("a worker that encodes died (out of memory?); `treering prepare` takes fewer "
                      "with --workers") from error  # fmt: skip
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    """A worker leaves Ctrl-C to its parent, does not outlive it, and has one thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


@functools.lru_cache(maxsize=1)
def _backend(file: str) -> tokenizers.Tokenizer:
    """Read once by each worker: the name is new for each `encode`."""
    return as_plain(tokenizers.Tokenizer.from_file(file))


def _work(job: Job, texts: list[str]) -> Ids:
    encodings = _backend(job.file).encode_batch_fast(texts, add_special_tokens=False)
    rows = [[*job.before, *encoding.ids, *job.after] for encoding in encodings]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    return np.concatenate([np.array(row, dtype=np.int32) for row in rows]), lengths
