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

Training and analysis meet only here. Readers ignore kinds and keys that they do not know.
Losses that are not finite are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SCORED = ("ranks", "score", "branch_score", "task")  # what a scoring writes
TIMES = ("seconds", "tokens_per_second", "tflops", "mfu")  # keys that differ between equal runs


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
    """The records of a file, or of the run folder that holds it; a torn last line is left out."""
    path = Path(path)
    return [record for record, _ in _parse(path / "records.jsonl" if path.is_dir() else path)]


def cut(path: Path, step: int, *, scored: bool = True) -> None:
    """Remove every record from the first one beyond `step`, and a torn last line; where the step
    was not `scored` to the end, from the first record of its scoring."""
    if not path.exists():
        return
    keep = 0
    for record, end in _parse(path):
        at = record.get("step", 0)
        if at > step or (at == step and not scored and record["kind"] in SCORED):
            break
        keep = end
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
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not (line.endswith(b"\n") and isinstance(record, dict)):
                break
            found.append((record, end))
    return found


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
