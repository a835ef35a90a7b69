"""Tokens one after another, in one file or in several, read by position.

Reading never maps memory: a map of a file that shrinks kills the process without a word.
"""

from __future__ import annotations

import errno
import hashlib
import os
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from treering.config import Invalid

CHUNK = 1 << 20


class File:
    """A file read by position; a read that comes back short is the user's to mend, not a crash."""

    def __init__(self, path: Path) -> None:
        try:
            self._number = os.open(path, os.O_RDONLY)
        except OSError as error:
            many = error.errno == errno.EMFILE
            remedy = "allow more with `ulimit -n`" if many else "correct the path"
            raise Invalid(f"{path}: cannot be opened ({error.strerror}); {remedy}") from error
        self.path, self.size = path, os.fstat(self._number).st_size
        self.mtime_ns = os.fstat(self._number).st_mtime_ns
        self.close = weakref.finalize(self, os.close, self._number)  # once, whoever calls it

    def read(self, at: int, size: int) -> bytes:
        """Exactly `size` bytes from the position `at`."""
        data = bytearray(size)
        self.fill(at, memoryview(data))
        return bytes(data)

    def fill(self, at: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from the position `at` on."""
        try:
            size = os.preadv(self._number, [buffer], at)
        except OSError as error:
            raise Invalid(f"{self.path}: cannot be read ({error.strerror}); restore it") from error
        if size != len(buffer):
            raise Invalid(f"{self.path}: ends too early; restore it or prepare it anew")

    def sha256(self) -> str:
        """The digest of all its bytes."""
        digest = hashlib.sha256()
        for at in range(0, self.size, CHUNK):
            digest.update(self.read(at, min(CHUNK, self.size - at)))
        return digest.hexdigest()


@dataclass(frozen=True)
class Segment:
    """So many tokens of a file, from the byte `start` on."""

    file: File
    start: int
    tokens: int


class Row:
    """The tokens of segments as if they lay in one file."""

    def __init__(self, segments: Sequence[Segment], dtype: np.dtype[np.generic]) -> None:
        self.segments, self.dtype = tuple(segments), dtype
        self._ends = list(accumulate(segment.tokens for segment in segments))

    def fill(self, first: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes of tokens, from the token `first` on."""
        number, width = bisect_right(self._ends, first), self.dtype.itemsize
        while buffer:
            segment = self.segments[number]
            at = first - (self._ends[number] - segment.tokens)
            count = min(len(buffer) // width, segment.tokens - at)
            segment.file.fill(segment.start + at * width, buffer[: count * width])
            number, first, buffer = number + 1, first + count, buffer[count * width :]

    def close(self) -> None:
        """Gives the files back; a second call does nothing."""
        for segment in self.segments:
            segment.file.close()
