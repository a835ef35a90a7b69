"""A run's folder: locked while in use, compared with the recipe before it is resumed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from treering import config, records
from treering.atomic import replacing
from treering.config import Invalid, Recipe, Table
from treering.mesh import Mesh
from treering.tokenizer import save


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


def make(out: Path, say: Callable[[str], None], *, fresh: bool) -> None:
    """Make the folder; a `fresh` one in the place of an older, which is renamed to the first free
    `NAME.old-K`, and said."""
    if fresh and out.exists():
        names = (out.with_name(f"{out.name}.old-{k}") for k in count(1))
        aside = out.rename(next(name for name in names if not name.exists()))
        say(f"the old folder is kept as {aside}")
    out.mkdir(parents=True, exist_ok=True)


def describe(out: Path, recipe: Recipe, words: PreTrainedTokenizerBase) -> None:
    """Write what the run is: its recipe, and once for all the tokenizer that it trained. It is not
    finished any more: the summary of a run that has grown is of what it was."""
    (out / "summary.json").unlink(missing_ok=True)
    with replacing(out / "recipe.toml") as beside:
        beside.write_text(config.to_toml(recipe), encoding="utf-8")
    if recipe.tokenizer.train is not None and not (out / "tokenizer").exists():
        with replacing(out / "tokenizer") as beside:
            save(words, beside)


def check(out: Path) -> None:
    """Raises Invalid where the folder holds something that is no run at all, or where a run that
    is to go on cannot be written."""
    if out.exists() and any(out.iterdir()) and not (out / "records.jsonl").exists():
        raise Invalid(f"--out {out}: holds files but no run; name another folder")
    if not finished(out):
        check_writable(out)


def check_writable(out: Path) -> None:
    """Raises Invalid where nothing may be written in a folder, or where it would be made."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise Invalid(f"--out {out}: {there} is read-only; name another folder, or allow writing")


def finished(out: Path, steps: int | None = None) -> bool:
    """Whether the folder's run came to its end, after so many steps if they are given."""
    path = out / "records.jsonl"
    found = records.read(path) if path.exists() else []
    ends = [r for r in found if r["kind"] == "end"]
    trained = max((r["step"] for r in found if r["kind"] == "step"), default=0)
    whole = bool(ends) and ends[-1].get("reason") == "finished" and steps in (None, trained)
    return whole and (out / "summary.json").exists()


def summary(out: Path) -> Table:
    """The summary of a run that came to its end."""
    try:
        table: Table = json.loads((out / "summary.json").read_text())
    except ValueError as error:
        raise Invalid(f"{out / 'summary.json'}: damaged ({error}); remove it, and the same command "
                      "writes it anew") from error  # fmt: skip
    return table
