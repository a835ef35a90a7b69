"""Immutable token stores, read by position and bounds-checked.

A store is one row of tokens, `X.bin`, with Megatron's index beside it, `X.idx` (MMIDIDX): Megatron,
GPT-NeoX and datatrove open ours and we open theirs. Our sidecar, `X.json`, says what a foreign
store leaves open: the tokenizer, the bytes of text, what the tokens must hash to.

    X.idx   magic 9 bytes, version u64, type u8, sequences u64, documents + 1 u64,
            lengths i32[sequences], byte offsets i64[sequences], document starts i64[documents + 1]
"""

from __future__ import annotations

import hashlib
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from treering import shards, sidecar
from treering.config import Invalid
from treering.segments import CHUNK, File, Row, Segment

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
CODES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats


@dataclass(frozen=True, eq=False)
class Store:
    """Tokens that never change: sample i is tokens [i * length, i * length + length], inclusive.

    Neighbouring samples share one token, so that each sample is `length` predictions. `documents`
    and `bytes` (of UTF-8 text) and `tokenizer` (a fingerprint) are None where nobody wrote them
    down; `digest` names the contents.
    """

    path: str
    tokens: int
    digest: str
    documents: int | None
    bytes: int | None
    tokenizer: str | None
    _row: Row

    def samples(self, length: int) -> int:
        """How many whole samples there are; an incomplete last one is none."""
        return max(0, (self.tokens - 1) // length)

    def read(self, index: NDArray[np.int64], length: int) -> NDArray[np.integer]:
        """The samples named by `index`: integers of the file's type, [n, length + 1]."""
        n = self.samples(length)
        assert index.size == 0 or (index.min() >= 0 and index.max() < n), "sample outside the store"
        tokens = np.empty((len(index), length + 1), self._row.dtype)
        for i, row in zip(index.tolist(), tokens, strict=True):
            self._row.fill(i * length, memoryview(row).cast("B"))
        if self._row.dtype.kind == "i" and tokens.size and tokens.min() < 0:
            raise Invalid(f"{self.path}: holds negative tokens; prepare it anew")
        return tokens

    def close(self) -> None:
        """Gives the files back; a second call does nothing."""
        self._row.close()


def is_store(path: str | Path) -> bool:
    """Whether the path names a store, or a folder of shards, rather than text."""
    if Path(f"{path}.idx").is_file() or shards.is_folder(path):
        return True
    return Path(path).suffix in (".bin", ".idx", ".npy") and Path(path).is_file()


def open_store(path: str | Path, *, vocabulary: int | None = None, whole: bool = False) -> Store:
    """Opens the prefix `X` of X.bin and X.idx, either of the two, a folder of shards, or a flat
    file of tokens.

    A flat file is a `.npy` of integers, or a `.bin` without an index: uint16 if the vocabulary is
    unknown or at most 65,536, else uint32. Foreign stores open with a warning. `whole`: every byte
    is compared with what was prepared, not only where the file's time says that it was changed.
    """
    name = str(path)
    if Path(name).is_dir() and not Path(f"{name}.idx").is_file():
        return _joined(name, [_indexed(prefix, whole) for prefix in shards.find(name)])
    if name.endswith(".npy"):
        return _numpy(File(Path(name)))
    prefix = name.removesuffix(".bin").removesuffix(".idx")
    if name.endswith(".bin") and not Path(f"{prefix}.idx").exists():
        return _flat(File(Path(name)), prefix, vocabulary)
    store = _indexed(prefix, whole)
    if not store.tokens:
        raise Invalid(f"{prefix}.idx: the store holds no tokens; prepare it anew")
    return store


def _joined(folder: str, parts: list[Store]) -> Store:
    """Shards as one store; its digest is one of theirs."""
    tokens = sum(part.tokens for part in parts)
    if not tokens:
        raise Invalid(f"{folder}: its shards hold no tokens; give more text or filter less")
    row = Row([part._row.segments[0] for part in parts], parts[0]._row.dtype)
    assert all(part._row.dtype == row.dtype for part in parts), "they have one vocabulary"
    digest = hashlib.sha256(" ".join(part.digest for part in parts).encode()).hexdigest()
    documents = sum(part.documents or 0 for part in parts)
    text = sum(part.bytes or 0 for part in parts)
    return Store(folder, tokens, digest, documents, text, parts[0].tokenizer, row)


def _indexed(prefix: str, whole: bool) -> Store:
    """A store that has an index, ours or foreign; ours may be empty, as a shard is."""
    index, tokens = File(Path(f"{prefix}.idx")), File(Path(f"{prefix}.bin"))
    dtype, count, documents = _parse(index)
    if count * dtype.itemsize != tokens.size:
        raise Invalid(
            f"{tokens.path}: holds {tokens.size:,} bytes where its index says "
            f"{count * dtype.itemsize:,} (truncated?); restore both files or prepare them anew"
        )
    facts = sidecar.read(Path(f"{prefix}.json"))
    if facts is None:
        return _foreign(tokens, dtype, documents=documents, index=index.sha256())
    try:
        sidecar.verify(facts, tokens, index, whole)
        digest, text = str(facts["bin"]["sha256"]), int(facts["bytes"])
        fingerprint = str(facts["tokenizer"])
    except Invalid:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"{prefix}.json: damaged; restore it or prepare the store anew") from error
    row = Row([Segment(tokens, 0, count)], dtype)
    return Store(str(tokens.path), count, digest, documents, text, fingerprint, row)


def _parse(index: File) -> tuple[np.dtype[np.generic], int, int]:
    """Type, tokens and documents of an index; nothing is allocated by what it claims."""
    remedy = "restore it or prepare the store anew"
    magic, version, code, sequences, starts = HEADER.unpack(index.read(0, HEADER.size))
    if magic != MAGIC or version != 1:
        raise Invalid(f"{index.path}: not a Megatron index (MMIDIDX version 1); {remedy}")
    if code not in CODES:
        raise Invalid(f"{index.path}: type {code} is no integer; token stores hold integers")
    size = HEADER.size + 12 * sequences + 8 * starts
    if starts < 1 or index.size not in (size, size + sequences):  # modes i8[sequences] may follow
        raise Invalid(f"{index.path}: its size does not fit its counts (truncated?); {remedy}")
    tokens = 0
    for first in range(0, sequences, CHUNK):
        some = index.read(HEADER.size + 4 * first, 4 * min(CHUNK, sequences - first))
        lengths = np.frombuffer(some, "<i4")
        if lengths.min() < 0:
            raise Invalid(f"{index.path}: a length is negative; {remedy}")
        tokens += int(lengths.sum(dtype=np.int64))
    return np.dtype(CODES[code]), tokens, starts - 1


def _flat(file: File, prefix: str, vocabulary: int | None) -> Store:
    """A `.bin` that has no index."""
    if sidecar.read(Path(f"{prefix}.json")) is not None:
        raise Invalid(f"{prefix}.idx: missing, the store is unfinished; prepare it anew")
    dtype = np.dtype("<u2" if vocabulary is None or vocabulary <= 65_536 else "<u4")
    if file.size % dtype.itemsize:
        raise Invalid(f"{file.path}: not a whole number of {dtype.name} tokens; restore it")
    return _foreign(file, dtype)


def _numpy(file: File) -> Store:
    """A `.npy` of integers; the map is only how numpy tells us where they start."""
    try:
        array = np.load(file.path, mmap_mode="r", allow_pickle=False)
        dtype, shape, start = array.dtype, array.shape, int(array.offset)
    except Exception as error:  # numpy's parser of headers fails in many ways
        raise Invalid(f"{file.path}: not a readable .npy file; write it anew") from error
    if len(shape) != 1 or dtype.kind not in "iu":
        raise Invalid(f"{file.path}: {dtype.name}{list(shape)} is not one row of integers")
    if start + shape[0] * dtype.itemsize != file.size:
        raise Invalid(f"{file.path}: its size does not fit its header; write it anew")
    return _foreign(file, dtype, start=start)


def _foreign(
    file: File,
    dtype: np.dtype[np.generic],
    *,
    documents: int | None = None,
    index: str = "",
    start: int = 0,
) -> Store:
    """A store that nobody described; its digest covers the index, the size, and both ends."""
    if file.size <= start:
        raise Invalid(f"{file.path}: the store holds no tokens; prepare it anew")
    warnings.warn(
        f"{file.path}: a store without a sidecar, so its tokenizer is unverified and its bytes "
        "of text unknown; `treering prepare` writes one",
        stacklevel=4,
    )
    head = file.read(0, min(CHUNK, file.size))
    tail = file.read(max(0, file.size - CHUNK), min(CHUNK, file.size))
    digest = hashlib.sha256(f"{index} {file.size} ".encode() + head + tail).hexdigest()
    count = (file.size - start) // dtype.itemsize
    row = Row([Segment(file, start, count)], dtype)
    return Store(str(file.path), count, digest, documents, None, None, row)
