"""Stores: the layout, byte for byte; and that damage is named, never a crash."""

from __future__ import annotations

import errno
import json
import struct
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from treering import writer
from treering.config import Invalid
from treering.store import Store, is_store, open_store
from treering.writer import Writer, commit, token_dtype

DOCUMENTS = [[5, 6, 7, 0], [8, 0], [9, 10, 11, 12, 13, 0]]
FACTS = {"tokenizer": "abc", "end_of_text": 0, "bytes": 40, "input": "def", "skipped": 0}


def megatron(prefix: Path, documents: Sequence[Sequence[int]], code: int, dtype: str) -> Path:
    """The format written out by hand."""
    lengths = [len(document) for document in documents]
    width = np.dtype(dtype).itemsize
    starts = [sum(lengths[:i]) * width for i in range(len(lengths))]
    n = len(documents)
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", code)
        + struct.pack("<Q", n)
        + struct.pack("<Q", n + 1)
        + struct.pack(f"<{n}i", *lengths)
        + struct.pack(f"<{n}q", *starts)
        + struct.pack(f"<{n + 1}q", *range(n + 1))
    )
    np.array([t for document in documents for t in document], dtype).tofile(f"{prefix}.bin")
    return prefix


def ours(
    prefix: Path, documents: Sequence[Sequence[int]] = DOCUMENTS, vocabulary: int = 300
) -> Path:
    writer = Writer(prefix, vocabulary)
    for document in documents:
        writer.add(np.array(document, np.int64))
    commit({writer: FACTS})
    return prefix


def everything(store: Store) -> list[int]:
    """All tokens of a store, read as samples of one prediction each."""
    rows = store.read(np.arange(store.samples(1)), 1)
    return [*rows[:, 0].tolist(), int(rows[-1, 1])]


@pytest.mark.parametrize(
    ("code", "dtype"), [(1, "u1"), (2, "i1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")]
)
def test_a_store_written_by_megatron_opens_and_reads(tmp_path: Path, code: int, dtype: str) -> None:
    prefix = megatron(tmp_path / "web_text_document", DOCUMENTS, code, dtype)
    for name in (prefix, f"{prefix}.bin", f"{prefix}.idx"):
        with pytest.warns(UserWarning, match="without a sidecar"):
            store = open_store(name)
        assert (store.tokens, store.documents) == (12, 3)
        assert (store.bytes, store.tokenizer) == (None, None)
        assert everything(store) == [t for document in DOCUMENTS for t in document]


def test_modes_of_a_multimodal_index_are_accepted(tmp_path: Path) -> None:
    prefix = megatron(tmp_path / "x", DOCUMENTS, 8, "<u2")
    with open(f"{prefix}.idx", "ab") as file:
        file.write(bytes(3))
    with pytest.warns(UserWarning, match="without a sidecar"):
        assert open_store(prefix).tokens == 12


@pytest.mark.parametrize(
    ("vocabulary", "code", "dtype"), [(256, 1, "u1"), (65_535, 8, "<u2"), (65_536, 4, "<i4")]
)
def test_ours_is_byte_for_byte_the_format_in_the_smallest_integer(
    tmp_path: Path, vocabulary: int, code: int, dtype: str
) -> None:
    hand = megatron(tmp_path / "hand", DOCUMENTS, code, dtype)
    mine = ours(tmp_path / "mine", vocabulary=vocabulary)
    for suffix in (".bin", ".idx"):
        assert Path(f"{mine}{suffix}").read_bytes() == Path(f"{hand}{suffix}").read_bytes()


def test_ours_opens_without_a_warning_and_knows_its_facts(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = open_store(prefix)
    assert (store.tokens, store.documents, store.bytes, store.tokenizer) == (12, 3, 40, "abc")
    sidecar = json.loads(Path(f"{prefix}.json").read_text())
    assert sidecar["treering_store"] == 1
    assert store.digest == sidecar["bin"]["sha256"]


def test_neighbouring_samples_share_one_token_and_a_partial_one_is_none(tmp_path: Path) -> None:
    with Opened(ours(tmp_path / "x")) as store:
        assert [store.samples(length) for length in (1, 3, 5, 11, 12)] == [11, 3, 2, 1, 0]
        read = store.read(np.array([1, 0]), 5)
    assert read.tolist() == [[0, 9, 10, 11, 12, 13], [5, 6, 7, 0, 8, 0]]
    assert read.dtype == np.uint16


class Opened:
    """A store that is given back at the end."""

    def __init__(self, path: Path) -> None:
        self.store = open_store(path)

    def __enter__(self) -> Store:
        return self.store

    def __exit__(self, *error: object) -> None:
        self.store.close()
        self.store.close()  # a second time does nothing


def test_a_sample_outside_the_store_is_never_read(tmp_path: Path) -> None:
    store = open_store(ours(tmp_path / "x"))
    for index in (-1, 3):
        with pytest.raises(AssertionError, match="outside"):
            store.read(np.array([index]), 3)


@pytest.mark.parametrize(("dtype", "vocabulary"), [("<u2", None), ("<u2", 65_536), ("<u4", 65_537)])
def test_a_flat_bin_opens_as_its_vocabulary_says(
    tmp_path: Path, dtype: str, vocabulary: int | None
) -> None:
    np.arange(10, dtype=dtype).tofile(tmp_path / "flat.bin")
    with pytest.warns(UserWarning, match="unverified"):
        store = open_store(tmp_path / "flat.bin", vocabulary=vocabulary)
    assert everything(store) == list(range(10))
    assert store.documents is None


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", "<i8", "<u8"])
def test_a_flat_npy_opens(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "flat.npy", np.arange(10, dtype=dtype))
    with pytest.warns(UserWarning, match="without a sidecar"):
        assert everything(open_store(tmp_path / "flat.npy")) == list(range(10))


@pytest.mark.parametrize("array", [np.zeros(4), np.zeros((2, 2), np.int64), np.array(["a"])])
def test_an_npy_that_is_no_row_of_integers_is_refused(
    tmp_path: Path, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]
) -> None:
    np.save(tmp_path / "flat.npy", array)
    with pytest.raises(Invalid, match=r"flat\.npy.*one row of integers"):
        open_store(tmp_path / "flat.npy")


def test_a_writer_that_cannot_begin_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: Path, *how: object, **more: object) -> object:
        if ".idx" in path.name:
            raise OSError(errno.EMFILE, "Too many open files")
        return open(path, *how, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(writer, "open", opened, raising=False)
    with pytest.raises(Invalid, match="cannot be written"):
        Writer(tmp_path / "x", 300)
    assert not list(tmp_path.iterdir())


def test_what_is_a_store_and_what_is_text(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    (tmp_path / "en.jsonl").write_text("")
    np.save(tmp_path / "flat.npy", np.arange(3))
    stores: list[str | Path] = [prefix, f"{prefix}.bin", f"{prefix}.idx", tmp_path / "flat.npy"]
    assert all(is_store(path) for path in stores)
    assert not any(is_store(tmp_path / name) for name in ("en.jsonl", "none", "none.bin", ""))
    assert not is_store("hf://owner/name")


def test_the_digest_of_a_foreign_store_follows_its_contents(tmp_path: Path) -> None:
    stores = [megatron(tmp_path / str(i), [[1, 2, i]], 8, "<u2") for i in (3, 3, 4)]
    with pytest.warns(UserWarning, match="without a sidecar"):
        digests = [open_store(prefix).digest for prefix in stores]
    assert digests[0] == digests[1] != digests[2]


def test_a_file_beside_a_foreign_store_that_is_not_our_sidecar_is_left_alone(
    tmp_path: Path,
) -> None:
    prefix = megatron(tmp_path / "x", DOCUMENTS, 8, "<u2")
    Path(f"{prefix}.json").write_text('{"text": "the raw text of the store"}\n' * 2)
    with pytest.warns(UserWarning, match="without a sidecar"):
        open_store(prefix)


documents = st.lists(
    st.lists(st.integers(0, 299), min_size=1, max_size=20), min_size=1, max_size=20
)


@given(documents, st.sampled_from([300, 65_535, 70_000]))
@settings(max_examples=50, deadline=None)
def test_what_was_written_is_read(rows: list[list[int]], vocabulary: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(ours(Path(folder) / "x", rows, vocabulary))
        flat = [token for row in rows for token in row]
        assert (store.tokens, store.documents) == (len(flat), len(rows))
        if len(flat) > 1:
            assert everything(store) == flat
        assert token_dtype(vocabulary).itemsize in (2, 4)
        store.close()
