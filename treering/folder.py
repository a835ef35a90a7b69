"""A run's folder: locked while in use, compared with the recipe before it is resumed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from treering import records
from treering.config import Invalid, Table
from treering.mesh import Mesh
from treering.schema import differences


@contextmanager
def locked(out: Path, mesh: Mesh) -> Iterator[bool]:
    """Hold the folder's lock, where it exists; yields whether it does.

    It is the folder itself that rank 0 locks (flock), so nothing is left behind. Raises Invalid
    where another run holds it.
    """
    handles: list[int] = []

    def lock() -> bool:
        if out.exists() and not out.is_dir():
            raise Invalid(f"--out {out}: is a file; name a folder")
        if not out.exists():
            return False
        handles.append(os.open(out, os.O_RDONLY))
        try:
            fcntl.flock(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Invalid(f"--out {out}: another run is using it; wait, or name another") from None
        return True

    try:
        yield mesh.told(lock)
    finally:
        for handle in handles:
            os.close(handle)


def make(out: Path, *, fresh: bool) -> Path | None:
    """Make the folder; a `fresh` one in the place of an older, which is renamed to the first free
    `NAME.old-K`, and returned."""
    aside: Path | None = None
    if fresh and out.exists():
        names = (out.with_name(f"{out.name}.old-{k}") for k in count(1))
        aside = out.rename(next(name for name in names if not name.exists()))
    out.mkdir(parents=True, exist_ok=True)
    return aside


def check(out: Path) -> None:
    """Raises Invalid where the folder holds something that is no run at all."""
    if out.exists() and any(out.iterdir()) and not (out / "records.jsonl").exists():
        raise Invalid(f"--out {out}: holds files but no run; name another folder")


def compare(out: Path, identity: Table) -> None:
    """Raises Invalid where the folder holds another run than `identity` (a recipe by values and
    store digests), naming the first differences."""
    path = out / "records.jsonl"
    if not path.exists():
        return
    headers = [r for r in records.read(path) if r["kind"] == "header"]
    found = differences(headers[0].get("identity", {}), identity) if headers else []
    if found:
        more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
        raise Invalid(
            f"--out {out}: the recipe changed: {'; '.join(found[:3])}{more}; "
            "undo it, name another folder, or start anew with --fresh"
        )


def finished(out: Path) -> bool:
    """Whether the folder's run came to its end."""
    path = out / "records.jsonl"
    ends = [r for r in records.read(path) if r["kind"] == "end"] if path.exists() else []
    return bool(ends) and ends[-1].get("reason") == "finished" and (out / "summary.json").exists()


def summary(out: Path) -> Table:
    """The summary of a run that came to its end."""
    table: Table = json.loads((out / "summary.json").read_text())
    return table
