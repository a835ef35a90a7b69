"""How documents lie in files: JSON lines, Parquet and plain text, packed or not, and hub data sets.

Each reader yields a document's text or, where none can be had, a Bad that says where and why.
Memory holds one document (of Parquet: a few hundred) at a time.
"""

from __future__ import annotations

import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import zstandard

from treering.config import Invalid

KINDS = (".jsonl", ".json", ".parquet", ".txt")
ACCEPTED = ".jsonl, .json or .txt file (also .gz, .zst), or .parquet file"
CHUNK = 1 << 16


@dataclass
class Tally:
    """What reading has met so far: bytes of the files as they lie on disk, and bad lines."""

    consumed: int = 0
    skipped: int = 0
    first: str = ""  # of the skipped: where and why


@dataclass(frozen=True)
class Bad:
    """A line that holds no document: where it stands, and why."""

    where: str
    why: str


def kind(file: Path) -> str | None:
    """The format that a file's name promises; Parquet packs itself."""
    name = Path(file.name.removesuffix(".gz").removesuffix(".zst"))
    packed = name.name != file.name
    return (
        name.suffix if name.suffix in KINDS and not (packed and name.suffix == KINDS[2]) else None
    )


def read(file: Path, field: str, tally: Tally) -> Iterator[str | Bad]:
    """The documents of one file. Blank lines between JSON lines are no lines."""
    if kind(file) == ".parquet":
        yield from _parquet(file, field, tally)
    elif kind(file) == ".txt":
        yield _decoded(b"".join(_chunks(file, tally)), str(file))
    else:
        for number, line in enumerate(_lines(_chunks(file, tally)), 1):
            if line.strip():
                yield _parsed(line, field, f"{file}, line {number}")


def read_hub(path: str, field: str) -> Iterator[str | Bad]:
    """A data set of the hub, streamed: `hf://OWNER/NAME?config=..&split=..`, or `hf:///FOLDER`."""
    try:
        import datasets
    except ImportError as error:
        raise Invalid(f"{path}: needs a package; pip install treering[hub]") from error
    parts = urlsplit(path)
    asked = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    if unknown := set(asked) - {"config", "split"}:
        raise Invalid(f"{path}: unknown option {min(unknown)!r}; there are config and split")
    name, split = parts.netloc + parts.path, asked.get("split", "train")
    try:
        rows = datasets.load_dataset(name, asked.get("config"), split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield _value(row, field, f"{path}, row {number}")
    except Exception as error:  # of any kind: the hub's, the network's, the builder's
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Invalid(f"{path}: cannot be read ({why}); correct the name") from error


@dataclass
class Plain:
    """Unpacks what is not packed."""

    eof: bool = False
    unused_data: bytes = b""

    def decompress(self, data: bytes) -> bytes:
        """The data itself."""
        return data


def _chunks(file: Path, tally: Tally) -> Iterator[bytes]:
    """The bytes of a file, unpacked; a packed file may have several members, one after another."""
    unpacker, errors = _unpacking(file)
    member, data = unpacker(), b""
    try:
        with open(file, "rb") as raw:
            while data := raw.read(CHUNK):
                tally.consumed += len(data)
                while data:
                    member = unpacker() if member.eof else member
                    yield member.decompress(data)
                    data = member.unused_data
            if raw.tell() and not member.eof and not isinstance(member, Plain):
                raise EOFError("its end is missing")
    except errors as error:
        raise Invalid(f"{file}: damaged ({error}); restore it") from error


def _unpacking(file: Path) -> tuple[Callable[[], Any], tuple[type[Exception], ...]]:
    """What makes an unpacker for one member of a file, and how it fails."""
    if file.suffix == ".gz":
        return (lambda: zlib.decompressobj(31)), (OSError, EOFError, zlib.error)
    if file.suffix != ".zst":
        return Plain, (OSError,)
    frame = zstandard.ZstdDecompressor(max_window_size=2**31)
    return frame.decompressobj, (OSError, EOFError, zstandard.ZstdError)


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        rest.append(first)
        if others:
            yield b"".join(rest)
            yield from others[:-1]
            rest = [others[-1]]
    yield b"".join(rest)


def _parsed(line: bytes, field: str, where: str) -> str | Bad:
    try:
        return _value(json.loads(line.decode()), field, where)
    except UnicodeDecodeError as error:
        return Bad(where, f"not UTF-8 (byte {error.start})")
    except (ValueError, RecursionError):
        if line.startswith(BOM_UTF8):
            return _parsed(line.removeprefix(BOM_UTF8), field, where)
        return Bad(where, "not JSON, of which one object a line is wanted")


def _value(row: object, field: str, where: str) -> str | Bad:
    """A row's field, if it is a text that UTF-8 can hold: a lone surrogate it cannot."""
    if not isinstance(row, dict):
        return Bad(where, "not an object of fields, of which one a line is wanted")
    if field not in row:
        return Bad(where, f"has no field {field!r} (another: `treering prepare --field`)")
    value = row[field]
    if not isinstance(value, str):
        return Bad(where, f"field {field!r} is not a text")
    try:
        value.encode()
    except UnicodeEncodeError:
        return Bad(where, f"field {field!r} holds half a surrogate pair")
    return value


def _decoded(data: bytes, where: str) -> str | Bad:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        return Bad(where, f"not UTF-8 (byte {error.start})")


def _parquet(file: Path, field: str, tally: Tally) -> Iterator[str | Bad]:
    import pyarrow.parquet  # here: it takes longer to import than all else

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            if field not in table.schema_arrow.names:
                raise Invalid(f"{file}: has no column {field!r}; name another: "
                              "`treering prepare --field`")  # fmt: skip
            number, share = 0, file.stat().st_size / max(1, table.metadata.num_rows)
            for rows in table.iter_batches(batch_size=256, columns=[field]):
                for cell in rows.column(0):
                    number += 1
                    yield _cell(cell, field, f"{file}, row {number}")
                tally.consumed += int(len(rows) * share)
    except (pyarrow.ArrowException, OSError) as error:
        raise Invalid(f"{file}: damaged ({error}); restore it") from error


def _cell(cell: Any, field: str, where: str) -> str | Bad:
    try:
        return _value({field: cell.as_py()}, field, where)
    except UnicodeDecodeError:
        return Bad(where, "not UTF-8")
