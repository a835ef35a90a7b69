"""Named parts, saved whole or not at all.

A checkpoint is a folder `step-N`: tensors by `torch.distributed.checkpoint`, numbers in
`state.json`, and last of all `manifest.json` with the size and SHA-256 of every file. It is written
beside and renamed, so a folder with that name was once complete; the manifest tells whether it
still is. DCP's `.metadata` is a pickle: it is opened only after its digest agrees.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from treering.mesh import Mesh

Numbers = dict[str, Any]
DAMAGED = (OSError, ValueError, TypeError, AttributeError, RecursionError)  # of JSON of any shape


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, torch.Tensor],
    numbers: Numbers,
    *,
    keep: int,
    stays: bool = False,
    mesh: Mesh,
) -> Path:
    """Write `folder/step-N`, then remove all but the last `keep` and those that stay for good; each
    rank writes what lies on it. Raises OSError, and leaves the earlier checkpoints as they were,
    where there is no room."""
    final = place(folder, step)
    beside = folder / f".{final.name}.tmp"

    def write() -> dict[str, tuple[int, str]]:
        writer = FileSystemWriter(beside, thread_count=1)
        group = {"process_group": mesh.hosts} if mesh.hosts else {"no_dist": True}
        _quiet(lambda: state_dict_saver.save(dict(tensors), storage_writer=writer, **group))
        return _digests(beside, f"__{mesh.rank}_*")

    def seal() -> None:
        _write(beside / "state.json", {"step": step, "stays": stays, **numbers})
        digests = _digests(beside, ".metadata") | _digests(beside, "state.json")
        _write(beside / "manifest.json", dict(ChainMap(digests, *written)))
        shutil.rmtree(final, ignore_errors=True)  # damaged: a sound one would have been resumed
        beside.rename(final)
        _sync(folder)
        # Later ones are damaged, or this step would not have been trained again: they don't count.
        earlier = [path for number, path in found(folder) if number <= step]
        for old in [path for path in earlier if not _stays(path)][keep:]:
            shutil.rmtree(old, ignore_errors=True)

    try:
        mesh.told(lambda: _clear(folder))
        written = mesh.together(write)
        mesh.told(seal)
    except BaseException:
        if mesh.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    return final


def _clear(folder: Path) -> None:
    """Make the folder, without what a killed run left half written."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def newest(folder: Path) -> tuple[Path, Numbers] | None:
    """The last sound checkpoint and its numbers, or None. Each damaged one is named in a warning
    and passed over."""
    for _, path in found(folder):
        damage = damaged(path)
        if damage is None:
            return path, numbers_of(path)
        warnings.warn(f"checkpoint {path} is passed over: {damage}", stacklevel=2)
    return None


def numbers_of(path: Path) -> Numbers:
    """What a sound checkpoint holds beside its tensors."""
    numbers: Numbers = json.loads((path / "state.json").read_text())
    return numbers


def load(path: str | Path, tensors: Mapping[str, torch.Tensor], mesh: Mesh) -> None:
    """Fill tensors in place from a sound checkpoint, whatever mesh it was saved on."""
    group = {"process_group": mesh.hosts} if mesh.hosts else {"no_dist": True}
    _quiet(lambda: state_dict_loader.load(dict(tensors), checkpoint_id=path, **group))


def sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a sound checkpoint."""
    stored = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: tuple(of.size) for name, of in stored.items()
            if isinstance(of, TensorStorageMetadata)}  # fmt: skip


def damaged(path: Path) -> str | None:
    """What is wrong with a checkpoint: which file is missing, short or changed; None if sound."""
    try:
        manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
        tensors = [file.name for file in path.glob("__*")]
        unnamed = [name for name in (".metadata", "state.json", *tensors) if name not in manifest]
        if unnamed:
            return f"manifest.json does not name {unnamed[0]}"
        for name, (size, digest) in manifest.items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes, not {size}"
            if _digest(path / name) != digest:
                return f"{name} was changed"
    except DAMAGED as error:
        return f"{type(error).__name__}: {error}"
    return None


def place(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after a step."""
    return folder / f"step-{step:09d}"


def _stays(path: Path) -> bool:
    try:
        return bool(json.loads((path / "state.json").read_text()).get("stays"))
    except DAMAGED:
        return False


def found(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of all checkpoints, sound or not, newest first, by number and not by name."""
    named = re.compile(r"step-(\d+)")
    paths = folder.iterdir() if folder.is_dir() else []
    both = [(named.fullmatch(path.name), path) for path in paths]
    return sorted(((int(m[1]), path) for m, path in both if m), reverse=True)


def _digests(folder: Path, pattern: str) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in folder.glob(pattern) if path.is_file())
    return {path.name: (path.stat().st_size, _digest(path)) for path in files}


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, content: object) -> None:
    with open(path, "w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _quiet(work: Any) -> None:
    """DCP warns about one process even where `no_dist` says so, and wraps what happened there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        try:
            work()
        except CheckpointException as error:
            raise _cause(next(iter(error.failures.values()))[0]) from None


def _cause(error: BaseException) -> BaseException:
    """The OSError behind an error: of a full disk torch says at last that a position is wrong."""
    behind: BaseException | None = error
    while behind is not None and not isinstance(behind, OSError):
        behind = behind.__context__
    return behind or error
