"""Damaged stores: named, refused, and never a crash."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from test_store import DOCUMENTS, FACTS, everything, megatron, ours

from treering.config import Invalid
from treering.store import open_store
from treering.writer import Writer, commit


@pytest.mark.parametrize(
    ("at", "data", "what"),
    [
        (0, b"XXXXXXX", "not a Megatron index"),
        (9, struct.pack("<Q", 2), "version 1"),
        (17, b"\x07", "no integer"),
        (18, struct.pack("<Q", 2**62), "does not fit"),
        (26, struct.pack("<Q", 0), "does not fit"),
        (34, struct.pack("<i", -4), "negative"),
        (34, struct.pack("<i", 2**31 - 1), "truncated"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, at: int, data: bytes, what: str) -> None:
    prefix = megatron(tmp_path / "x", DOCUMENTS, 8, "<u2")
    with open(f"{prefix}.idx", "r+b") as file:
        file.seek(at)
        file.write(data)
    with pytest.raises(Invalid, match=what):
        open_store(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_half_is_named(tmp_path: Path, suffix: str) -> None:
    prefix = ours(tmp_path / "x")
    Path(f"{prefix}{suffix}").unlink()
    for name in (prefix, f"{prefix}.bin"):  # without its index ours is no flat store either
        with pytest.raises(Invalid, match=rf"x\{suffix}"):
            open_store(name)


def test_a_truncated_store_is_refused(tmp_path: Path) -> None:
    for prefix in (ours(tmp_path / "mine"), megatron(tmp_path / "theirs", DOCUMENTS, 8, "<u2")):
        os.truncate(f"{prefix}.bin", 22)
        with pytest.raises(Invalid, match="truncated"):
            open_store(prefix)


def test_a_store_that_shrinks_while_open_is_named_and_no_crash(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    store = open_store(prefix)
    os.truncate(f"{prefix}.bin", 10)
    assert store.read(np.array([0]), 3).tolist() == [[5, 6, 7, 0]]
    with pytest.raises(Invalid, match=r"x\.bin: ends too early; restore"):
        store.read(np.array([0, 2]), 3)


def test_a_store_that_vanishes_while_open_is_read_on(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    store = open_store(prefix)
    Path(f"{prefix}.bin").unlink()
    assert len(everything(store)) == 12


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_store_edited_by_one_byte_is_refused(tmp_path: Path, suffix: str) -> None:
    prefix = ours(tmp_path / "x")
    data = bytearray(Path(f"{prefix}{suffix}").read_bytes())
    data[-1] ^= 1
    Path(f"{prefix}{suffix}").write_bytes(data)
    os.utime(f"{prefix}{suffix}", ns=(1, 1))
    with pytest.raises(Invalid, match=rf"x\{suffix}: was changed"):
        open_store(prefix)


def test_a_copied_store_whose_time_differs_is_hashed_and_opens(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    os.utime(f"{prefix}.bin", ns=(1, 1))
    assert open_store(prefix).tokens == 12


def test_negative_tokens_are_refused_when_read(tmp_path: Path) -> None:
    prefix = megatron(tmp_path / "x", [[3, -2, 1]], 4, "<i4")
    with pytest.warns(UserWarning, match="without a sidecar"):
        store = open_store(prefix)
    with pytest.raises(Invalid, match="negative"):
        store.read(np.array([0]), 2)


def test_a_writer_refuses_to_overwrite(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    with pytest.raises(Invalid, match=r"x\.idx: exists already"):
        Writer(prefix, 300)


def test_a_writer_that_was_killed_between_its_renames_is_written_anew(tmp_path: Path) -> None:
    prefix = ours(tmp_path / "x")
    whole = Path(f"{prefix}.idx").read_bytes()
    Path(f"{prefix}.idx").unlink()
    assert Path(f"{ours(prefix)}.idx").read_bytes() == whole
    Path(f"{prefix}.idx").unlink()
    Path(f"{prefix}.json").write_text("{}")  # somebody else's
    with pytest.raises(Invalid, match=r"x\.bin: exists already"):
        ours(prefix)


def test_stores_committed_together_come_together_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, done = os.rename, []

    def fail_at_the_last(source: Path, target: Path) -> None:
        done.append(target)
        if len(done) == 6:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("treering.writer.os.rename", fail_at_the_last)
    writers = [Writer(tmp_path / name, 300) for name in ("train", "validation")]
    for writer in writers:
        writer.add(np.array([1, 2]))
    with pytest.raises(KeyboardInterrupt):
        commit(dict.fromkeys(writers, FACTS))
    assert len(done) == 6
    assert list(tmp_path.iterdir()) == []
