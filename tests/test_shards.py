"""Shards: a folder of stores reads as the one store that they are pieces of, or says why not."""

from __future__ import annotations

import json
import os
import resource
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_store import DOCUMENTS, FACTS, everything, ours

from treering import cli
from treering.config import Invalid
from treering.shards import prefix
from treering.store import is_store, open_store
from treering.writer import Writer, clear, commit

Documents = Sequence[Sequence[int]]


def shard(
    folder: Path, number: int, of: int, documents: Documents, vocabulary: int = 300,
    tokenizer: str = "abc",
) -> None:  # fmt: skip
    writer = Writer(prefix(folder, number), vocabulary)
    for document in documents:
        writer.add(np.array(document, np.int64))
    commit({writer: {**FACTS, "tokenizer": tokenizer, "shard": number, "shards": of}})


def folder_of(folder: Path, *shards: Documents) -> Path:
    for number, documents in enumerate(shards):
        shard(folder, number, len(shards), documents)
    return folder


documents = st.lists(st.lists(st.integers(0, 299), min_size=1, max_size=20), max_size=6)


@given(st.lists(documents, min_size=1, max_size=6).filter(any), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_any_shards_read_as_the_one_store(rows: list[list[list[int]]], length: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        one = open_store(ours(Path(temporary) / "one", [row for part in rows for row in part]))
        many = open_store(folder_of(Path(temporary) / "many", *rows))
        assert (many.tokens, many.documents) == (one.tokens, one.documents)
        assert many.samples(length) == one.samples(length)
        order = np.random.default_rng(length).permutation(one.samples(length))
        assert (many.read(order, length) == one.read(order, length)).all()
        many.close()
        one.close()


def test_a_folder_of_shards_is_a_store_and_knows_its_facts(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "s", DOCUMENTS[:1], [], DOCUMENTS[1:])
    assert is_store(folder) and not is_store(tmp_path)
    store = open_store(folder)
    assert (store.path, store.tokens, store.documents) == (str(folder), 12, 3)
    assert (store.bytes, store.tokenizer) == (3 * 40, "abc")
    assert everything(open_store(prefix(folder, 2))) == [8, 0, 9, 10, 11, 12, 13, 0]
    for index in (-1, 11):
        with pytest.raises(AssertionError, match="outside"):
            store.read(np.array([index]), 1)
    store.close()
    store.close()  # a second time does nothing


def test_the_digest_follows_contents_and_order_but_not_the_place(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", DOCUMENTS[:1], DOCUMENTS[1:])
    shutil.copytree(one, tmp_path / "copy")
    folder_of(tmp_path / "turned", DOCUMENTS[1:], DOCUMENTS[:1])
    digests = [open_store(tmp_path / name).digest for name in ("one", "copy", "turned")]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (1, 2)])
def test_a_missing_shard_is_named(tmp_path: Path, gone: tuple[int, ...]) -> None:
    folder = folder_of(tmp_path / "s", *([row] for row in DOCUMENTS))
    for number in gone:
        os.unlink(f"{prefix(folder, number)}.idx")
    with pytest.raises(Invalid, match=f"0000{gone[0]}.idx: missing, {len(gone)} of 3 shards are"):
        open_store(folder)


def test_shards_of_two_preparations_are_told_apart(tmp_path: Path) -> None:
    cases = {
        "tokenizer xyz, but abc of shard 0": (2, 300, "xyz"),
        "vocabulary 70000, but 300 of shard 0": (2, 70_000, "abc"),
        "shards 3, but 2 of shard 0": (3, 300, "abc"),
    }
    for number, (what, (of, vocabulary, tokenizer)) in enumerate(cases.items()):
        folder = tmp_path / str(number)
        shard(folder, 0, 2, DOCUMENTS)
        shard(folder, 1, of, DOCUMENTS, vocabulary, tokenizer)
        with pytest.raises(Invalid, match=f"00001: {what}"):
            open_store(folder)


def test_a_folder_that_is_none_of_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="holds no shard"):
        open_store(tmp_path)
    ours(tmp_path / "00000")  # a store, but it knows of no other
    with pytest.raises(Invalid, match=r"00000\.json: does not say that this is shard 0"):
        open_store(tmp_path)
    with pytest.raises(Invalid, match="its shards hold no tokens"):
        open_store(folder_of(tmp_path / "empty", [], []))
    with pytest.raises(Invalid, match=r"00001\.idx: the store holds no tokens"):
        open_store(prefix(tmp_path / "empty", 1))


def test_a_renamed_shard_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "s", DOCUMENTS, DOCUMENTS)
    for suffix in (".json", ".bin", ".idx"):
        os.rename(f"{prefix(folder, 1)}{suffix}", f"{prefix(folder, 2)}{suffix}")
    with pytest.raises(Invalid, match=r"00002\.json: does not say that this is shard 2"):
        open_store(folder)


def test_a_changed_byte_of_any_shard_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of(tmp_path / "s", DOCUMENTS, DOCUMENTS)
    assert cli.main(["verify", str(folder)]) == 0
    assert "24 tokens, as it was prepared" in capsys.readouterr().out
    file = Path(f"{prefix(folder, 1)}.bin")
    data, times = bytearray(file.read_bytes()), file.stat()
    data[3] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert cli.main(["verify", str(folder)]) == 1
    assert "00001.bin: was changed" in capsys.readouterr().out


@pytest.mark.parametrize("key", ["shard", "shards"])
@pytest.mark.parametrize("value", [None, -1, "0", 1.5, [], 10**30])
def test_a_damaged_sidecar_of_a_shard_is_invalid(tmp_path: Path, key: str, value: object) -> None:
    folder = folder_of(tmp_path / "s", DOCUMENTS)
    sidecar = Path(f"{prefix(folder, 0)}.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {key: value}))
    with pytest.raises(Invalid, match="00000"):
        open_store(folder)
    sidecar.write_text('["treering_store"]')
    with pytest.raises(Invalid, match=r"00000\.json: damaged"):
        open_store(folder)


def test_too_many_open_files_say_what_helps(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "s", *[DOCUMENTS] * 40)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
    try:
        with pytest.raises(Invalid, match="Too many open files.*ulimit -n"):
            open_store(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_cleared_store_can_be_written_again_and_its_neighbours_stay(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "s", DOCUMENTS, DOCUMENTS)
    killed = Writer(prefix(folder, 2), 300)
    clear(prefix(folder, 1))
    assert sorted(file.suffix for file in folder.glob("*0000[02]*")) == [
        ".bin", ".idx", ".json", ".tmp", ".tmp"]  # fmt: skip
    shard(folder, 1, 2, DOCUMENTS)
    clear(prefix(folder, 2))
    assert len(list(folder.iterdir())) == 6 and open_store(folder).tokens == 24
    killed.discard()
