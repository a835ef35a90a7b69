"""Is what lies on the disk what was written? Every byte of stores and checkpoints is read again
and laid beside its digest; of an exported model it is seen whether its files are whole."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from treering import checkpoint, config, records
from treering.config import Invalid, Recipe
from treering.schema import read
from treering.store import is_store, open_store
from treering.weights import check


@dataclass(frozen=True)
class Finding:
    """A store, a checkpoint, an exported model or records: what is wrong with it, None if nothing;
    and what there is to say of it."""

    path: str
    damage: str | None
    note: str = ""


def verify(name: str) -> Iterator[Finding]:
    """The findings of a store or of a run folder, one after another. Raises Invalid where the name
    is of neither."""
    folder = Path(name)
    if (folder / "records.jsonl").exists():
        yield from _run(folder)
    elif is_store(name):
        yield _store(name)
    else:
        raise Invalid(
            f"{name}: is neither a store (X of X.bin and X.idx, or a folder of shards) nor the "
            "folder of a run"
        )


def _run(folder: Path) -> Iterator[Finding]:
    yield _records(folder / "records.jsonl")
    for path in sorted((folder / "checkpoints").glob("step-*")):
        yield Finding(str(path), checkpoint.damaged(path))
    if (folder / "model").exists():
        yield Finding(str(folder / "model"), check(folder / "model"))
    path = folder / "recipe.toml"
    try:
        recipe = read(Recipe, config.toml(path), "")  # its texts may have moved
    except Invalid as error:
        yield Finding(str(path), str(error))
        return
    for corpus in recipe.corpora.values():
        for text in (corpus.train, corpus.validation):
            if isinstance(text, str) and is_store(text):
                yield _store(text)
            elif isinstance(text, str) and not (text.startswith("hf://") or Path(text).exists()):
                yield Finding(str(path), None, f"{text} is no longer there")


def _records(path: Path) -> Finding:
    *lines, rest = path.read_bytes().split(b"\n")  # first: a run may be writing
    try:
        found = records.read(path)
    except Invalid as error:
        return Finding(str(path), str(error))
    if len(found) < len(lines):
        return Finding(str(path), f"line {len(lines)} is damaged; restore the file")
    torn = rest != b""
    said = "the last line is torn; it is left out" if torn else f"{len(found):,} records"
    return Finding(str(path), None if found else "holds no record", said)


def _store(name: str) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a foreign one, which is said below
            store = open_store(name, whole=True)
        store.close()
    except Invalid as error:
        return Finding(name, str(error))
    known = store.tokenizer is not None
    note = "as it was prepared" if known else "foreign: nobody wrote down what it was"
    return Finding(name, None, f"{store.tokens:,} tokens, {note}")
