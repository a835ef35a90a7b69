"""What a run leaves behind: `records.jsonl`, one JSON object a line, each with its `kind`.

    header      recipe, corpora, versions, commit, hardware; one for each sitting of the run
    step        step (completed steps, from 1), phase; of this step: rate, loss, fresh_loss,
                replayed_loss, grad_norm, skipped (0 or 1, in between where a step has many of the
                optimizer's), replayed (share of its tokens), tokens_per_second, tflops and mfu of
                a device (null where its peak is not known; the header names the convention);
                cumulative: tokens, fresh_tokens, flops, seconds
    score       step (0 before training), phase, corpus, loss (nats/token), bits_per_byte, tokens
    branch_score  as score, of weights beside the trained ones: branch ("average 0.99")
    task        step, phase (at row 0 and phase ends), task, metric, value, stderr (or null), n
    probe       step (before which it was made), phase, cosine, earlier_cosine, dot, fresh_norm,
                earlier_norm, tokens: see probe.Alignment
    checkpoint  step, path
    end         reason (finished, interrupted, preempted, failed), seconds

Training and analysis meet only here. Readers ignore kinds and keys that they do not know; of those
they know, `read` sees to it that they are of their types.
Losses that are not finite are written as null.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treering.schema import Invalid

Record = dict[str, Any]
SCORES = ("score", "branch_score", "task")
TIMES = ("seconds", "tokens_per_second", "tflops", "mfu")  # keys that differ between equal runs

MOST = 1e100  # of any number that a run has written

# What `read` holds a record to: "name?" may be left out, "*" is any other name, float is a finite
# number or null, object is all that TOML can say. The rest of a record is free.
PLACE = {"step": int, "phase?": str}
SCORE = PLACE | {"corpus": str, "loss?": float, "bits_per_byte?": float}
KINDS: dict[str, Any] = {
    "header": {
        "recipe": {
            "seed": int,
            "corpora": dict,
            "phases": [{"name": str, "mixture": dict}],
            "replay?": {"share?": float, "past?": [str]},
            "*": object,
        },
        "phases": [{"name": str, "end_step": int}],
        "identity?": dict,
        "versions?": dict,
        "hardware?": dict,
        "speed?": dict,
        "parameters?": float,
    },
    "step": PLACE | dict.fromkeys(
        ("loss?", "rate?", "tokens?", "fresh_tokens?", "flops?", *(f"{t}?" for t in TIMES)), float
    ),
    "score": SCORE,
    "branch_score": SCORE | {"branch": str},
    "task": PLACE | {"phase": str, "task": str, "metric": str, "value?": float, "stderr?": float},
    "probe": PLACE | {"cosine": float},
    "checkpoint": PLACE,
}  # fmt: skip


class Records:
    """The open `records.jsonl` of a run, append only."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one record, or none of it: OSError on a full disk leaves no torn line."""
        record = {"kind": kind, **{name: _finite(value) for name, value in fields.items()}}
        line = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()
        start = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, start)
            raise

    def sync(self) -> None:
        """Return when all records lie on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def read(path: str | Path) -> list[Record]:
    """The records of a file, or of the run folder that holds it; a torn last line is left out.

    Raises Invalid where another line is damaged, or holds what no run has written.
    """
    path = Path(path)
    path = path / "records.jsonl" if path.is_dir() else path
    found = _parse(path)
    with open(path, "rb") as file:
        file.seek(found[-1][1] if found else 0)
        damaged = len(file.readline()) > 0 and any(map(_record, file))
    if damaged:
        raise Invalid(f"{path}: line {len(found) + 1} is damaged; restore the file")
    for number, (record, _) in enumerate(found, 1):
        wrong = _wrong(record, KINDS.get(record["kind"], dict))
        if record["kind"] == "header":
            wrong = wrong or _contradiction(record)
        if wrong:
            raise Invalid(f"{path}: line {number} is damaged ({wrong}); restore the file")
    return [record for record, _ in found]


def cut(path: Path, step: int, *, scored: bool = True) -> None:
    """Remove every record from the first one beyond `step`, and a torn last line; where the step
    was not `scored` to the end, from its first score. Raises Invalid where they do not reach it."""
    if not path.exists():
        return
    keep = last = 0
    for record, end in _parse(path):
        at = record.get("step", 0)
        if at > step or (at == step and not scored and record["kind"] in SCORES):
            break
        keep, last = end, max(last, at)
    if last < step:
        raise Invalid(
            f"{path}: ends at step {last}, the checkpoint is of {step}; restore it, or start anew "
            "with --fresh"
        )
    with open(path, "r+b") as file:
        file.truncate(keep)
        os.fsync(file.fileno())


def _parse(path: Path) -> list[tuple[Record, int]]:
    """Records with the byte offset at which each ends, up to the first torn line."""
    found: list[tuple[Record, int]] = []
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            record = _record(line)
            if record is None:
                break
            found.append((record, end))
    return found


def _record(line: bytes) -> Record | None:
    """What a line holds; None if it is torn."""
    try:
        record = json.loads(line)
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # half a character has no bytes
    except (ValueError, RecursionError):
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict)
    return record if whole and isinstance(record.get("kind"), str) else None


def _wrong(value: Any, shape: Any, where: str = "") -> str | None:
    """The first part of a value that is not as its shape says: its place, and what it is."""
    parts: list[tuple[Any, Any, Any]] = []
    if isinstance(value, list) and (shape is object or isinstance(shape, list)):
        part = object if shape is object else shape[0]
        parts = [(i, item, part) for i, item in enumerate(value)]
    elif isinstance(value, dict) and (shape is object or isinstance(shape, dict)):
        known = {"*": object} if shape is object else shape
        names = {name.rstrip("?"): name for name in known if name != "*"}
        for key, name in names.items():
            if key == name and key not in value:
                return f"{where}{key} is missing"
        parts = [(key, value[key], known[name]) for key, name in names.items() if key in value]
        if "*" in known:
            parts += [(k, item, known["*"]) for k, item in value.items()]
    elif not isinstance(shape, type) or not _is(shape, value):
        return f"{where.rstrip('.')} = {str(value)[:40]}"
    each = (_wrong(item, part, f"{where}{key}.") for key, item, part in parts)
    return next((wrong for wrong in each if wrong), None)


def _contradiction(header: Record) -> str | None:
    """What of a header, whose shape is right, cannot be."""
    recipe = header["recipe"]
    named = {*recipe.get("replay", {}).get("past", ())}.union(
        *(p["mixture"] for p in recipe["phases"])
    )
    if not named <= recipe["corpora"].keys():
        return f"corpora {sorted(named - recipe['corpora'].keys())} are named and not there"
    ends = [phase["end_step"] for phase in header["phases"]]
    if not ends or [0, *ends] != sorted({0, *ends}) or len(ends) != len(recipe["phases"]):
        return f"phases end at {ends}"
    return None


def _is(kind: type, value: Any) -> bool:
    if kind is float and value is None:
        return True
    if kind in (int, float):
        whole = isinstance(value, int if kind is int else int | float)
        return whole and not isinstance(value, bool) and abs(value) < MOST
    return isinstance(value, kind) and value is not None


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
