"""The sidecar of a store, `X.json`: read, and compared with the files that it was written for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from treering.config import Invalid
from treering.segments import File

VERSION = 1


def read(path: Path) -> dict[str, Any] | None:
    """The facts of our own sidecar; None if there is none, or a file that is not one of ours."""
    if not path.exists():
        return None
    file = File(path)
    if b'"treering_store"' not in file.read(0, min(64, file.size)):
        return None
    try:
        facts = json.loads(file.read(0, file.size))
        if not isinstance(facts, dict):
            raise ValueError("not a table")
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{path}: damaged; restore it or prepare the store anew") from error
    return facts


def verify(facts: dict[str, Any], tokens: File, index: File, whole: bool) -> None:
    """Whether the files are those that the sidecar was written for. The index is hashed at each
    opening, the tokens where their time of change differs, or all are asked for."""
    remedy = "restore it or prepare the store anew"
    if facts["treering_store"] != VERSION:
        raise Invalid(f"{tokens.path}: made by another version of treering; prepare it anew")
    if tokens.size != facts["bin"]["bytes"]:
        raise Invalid(f"{tokens.path}: its size is not what was prepared; {remedy}")
    if index.sha256() != facts["idx"]["sha256"]:
        raise Invalid(f"{index.path}: was changed after it was prepared; {remedy}")
    unchanged = not whole and tokens.mtime_ns == facts["bin"]["mtime_ns"]
    if not unchanged and tokens.sha256() != facts["bin"]["sha256"]:
        raise Invalid(f"{tokens.path}: was changed after it was prepared; {remedy}")
