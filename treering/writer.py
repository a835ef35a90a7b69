"""Writing a store: beside its place, in one pass, and whole or not at all.

Everything goes into files with names of their own; at the end they are renamed, the index last,
because the index is what makes a store open. Until then a store that was broken off is litter.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treering.config import Invalid
from treering.segments import CHUNK
from treering.sidecar import VERSION, read
from treering.store import CODES, HEADER, MAGIC

SUFFIXES = (".json", ".bin", ".idx")  # in the order in which they are put in place


def token_dtype(vocabulary: int) -> np.dtype[np.generic]:
    """The smallest integer of the format that holds every id below `vocabulary`."""
    if vocabulary <= 256:
        return np.dtype("u1")
    return np.dtype("<u2" if vocabulary <= 65_535 else "<i4")


class Writer:
    """Takes a store's documents one by one, in memory that does not grow with them.

    The lengths go straight into the index, whose other tables are computed from them at the end.
    """

    def __init__(self, prefix: str | Path, vocabulary: int) -> None:
        self.prefix, self.vocabulary = str(prefix), vocabulary
        for suffix in (".idx", ".bin"):
            if Path(self.prefix + suffix).exists() and not _unfinished(self.prefix):
                raise Invalid(f"{self.prefix}{suffix}: exists already; remove it or name another")
        self.documents = self.tokens = 0
        self.dtype = token_dtype(vocabulary)
        self._sha256 = hashlib.sha256()
        target = Path(self.prefix)
        beside = target.parent / f".{target.name}.{uuid.uuid4().hex[:12]}"
        self._beside = {suffix: Path(f"{beside}{suffix}.tmp") for suffix in SUFFIXES}
        self._placed: list[Path] = []
        try:
            with contextlib.ExitStack() as undo:
                target.parent.mkdir(parents=True, exist_ok=True)
                self._bin = undo.enter_context(open(self._beside[".bin"], "xb", buffering=CHUNK))
                undo.callback(self._beside[".bin"].unlink)
                self._idx = undo.enter_context(open(self._beside[".idx"], "x+b", buffering=CHUNK))
                undo.callback(self._beside[".idx"].unlink)
                self._idx.write(bytes(HEADER.size))  # the counts are known at the end
                undo.pop_all()
        except OSError as error:
            raise Invalid(
                f"{prefix}: cannot be written ({error.strerror}); name another"
            ) from error

    def add(self, tokens: NDArray[np.integer]) -> None:
        """One document's tokens, as one sequence."""
        assert tokens.size < 2**31, "the format's lengths are int32"
        data = tokens.astype(self.dtype).tobytes()
        self._sha256.update(data)
        self._bin.write(data)
        self._idx.write(tokens.size.to_bytes(4, "little"))
        self.documents += 1
        self.tokens += tokens.size

    def seal(self, facts: Mapping[str, object]) -> None:
        """Finishes the three files beside their places; `facts` go into the sidecar."""
        self._write_tables()
        for file in (self._bin, self._idx):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        state = self._beside[".bin"].stat()
        sidecar = {
            "treering_store": VERSION,  # first: it is how the file is known for ours
            **facts,
            "vocabulary": self.vocabulary,
            "documents": self.documents,
            "tokens": self.tokens,
            "bin": {
                "bytes": state.st_size,
                "sha256": self._sha256.hexdigest(),
                "mtime_ns": state.st_mtime_ns,
            },
            "idx": {"sha256": _sha256(self._beside[".idx"])},
        }
        with open(self._beside[".json"], "x", encoding="utf-8") as text:
            json.dump(sidecar, text, indent=1)
            text.flush()
            os.fsync(text.fileno())

    def place(self, suffix: str) -> None:
        """Renames one of the three files to its place."""
        target = Path(self.prefix + suffix)
        self._placed.append(target)
        os.rename(self._beside[suffix], target)

    def discard(self) -> None:
        """Removes whatever this writer has written, in place or beside it."""
        for file in (self._bin, self._idx):
            with contextlib.suppress(OSError):  # what is left in the buffer may find no room
                file.close()
        for path in (*reversed(self._placed), *self._beside.values()):
            path.unlink(missing_ok=True)

    def _write_tables(self) -> None:
        """The header, the offsets and the document starts, out of the lengths already written."""
        number, width, at = self.documents, self.dtype.itemsize, 0
        for first in range(0, number, CHUNK):
            self._idx.seek(HEADER.size + 4 * first)
            lengths = np.frombuffer(self._idx.read(4 * min(CHUNK, number - first)), "<i4")
            ends = at + width * np.cumsum(lengths, dtype=np.int64)
            self._idx.seek(0, os.SEEK_END)
            self._idx.write((ends - width * lengths.astype(np.int64)).astype("<i8").tobytes())
            at = int(ends[-1])
        self._idx.seek(0, os.SEEK_END)
        for first in range(0, number + 1, CHUNK):
            self._idx.write(np.arange(first, min(first + CHUNK, number + 1), dtype="<i8").tobytes())
        code = next(code for code, name in CODES.items() if np.dtype(name) == self.dtype)
        self._idx.seek(0)
        self._idx.write(HEADER.pack(MAGIC, 1, code, number, number + 1))


def commit(writers: Mapping[Writer, Mapping[str, object]]) -> None:
    """Puts stores in place together, each with the facts of its sidecar; or none of them."""
    try:
        for writer, facts in writers.items():
            writer.seal(facts)
        for suffix in SUFFIXES:
            for writer in writers:
                writer.place(suffix)
        for folder in {Path(writer.prefix).parent for writer in writers}:
            _sync(folder)
    except BaseException:
        for writer in writers:
            writer.discard()
        raise


def clear(prefix: str | Path) -> None:
    """Removes a store and what writers that were killed left beside it; the index first, so that
    it does not open by halves."""
    place = Path(prefix)
    left = place.parent.glob(f".{glob.escape(place.name)}.*.tmp")
    for path in (*(Path(f"{prefix}{suffix}") for suffix in reversed(SUFFIXES)), *left):
        path.unlink(missing_ok=True)


def _unfinished(prefix: str) -> bool:
    """Whether a writer was killed between its renames: our tokens, but no index that opens them."""
    return not Path(f"{prefix}.idx").exists() and read(Path(f"{prefix}.json")) is not None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    """Makes the renames last through a power failure."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
