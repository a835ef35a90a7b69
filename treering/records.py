"""What a run leaves behind: `records.jsonl`, one JSON object a line, each with its `kind`.

    header      recipe, corpora, versions, commit, hardware; one for each sitting of the run
    step        step (completed steps, from 1), phase; of this step: rate, loss, fresh_loss,
                replayed_loss, grad_norm, skipped (0 or 1, in between where a step has many of the
                optimizer's), penalty (the sum, where there are any), replayed (share of its
                tokens), tokens_per_second, tflops and mfu of a device (null where its peak is not
                known; the header names the convention);
                cumulative: tokens, fresh_tokens, flops, seconds
    score       step (0 before training), phase, corpus, loss (nats/token), bits_per_byte, tokens
    branch_score  as score, of weights beside the trained ones: branch ("average 0.99"); of an
                annealed branch also what it spent after the step: tokens_beyond,
                fresh_tokens_beyond, flops_beyond, evaluation_flops_beyond
    task        step, phase (at row 0 and phase ends), task, metric, value, stderr (or null), n
    probe       step (before which it was made), phase, cosine, earlier_cosine, dot, fresh_norm,
                earlier_norm, tokens: see probe.Alignment
    ranks       step, phase; since the last scoring: seconds, waited_for_text, computed and memory
                of each rank, slowest, waited_for_slowest: see ranks.Ranks
    checkpoint  step, path, ledger
    end         reason (finished, interrupted, preempted, failed), seconds, ledger

A ledger has the FLOPs of all sittings by purpose, see LEDGER; records of before have none.

Training and analysis meet only here. Readers ignore kinds and keys that they do not know; of those
they know, `read` sees to it that they are of their types.
Losses that are not finite are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treering.schema import Invalid
from treering.shape import misfit

Record = dict[str, Any]
ANNEALED = "annealed"  # the branch, and the folder of its runs
SCORED = ("ranks", "score", "branch_score", "task")  # what a scoring writes
TIMES = ("seconds", "tokens_per_second", "tflops", "mfu")  # keys that differ between equal runs

LEDGER = ("training_flops", "meta_flops", "evaluation_flops", "probe_flops", "anneal_flops")
SPEED = ("devices", "peak_tflops", "flops_per_token", "causal_flops_per_token")

# Of each kind what its readers rely on: see shape.py. The rest of a record is free.
PLACE = {"step": int, "phase?": str}
SPENT = {"ledger?": {f"{name}?": float for name in LEDGER}}
SCORE = PLACE | {"corpus": str, "loss?": float, "bits_per_byte?": float}
KINDS: dict[str, Any] = {
    "header": {
        "recipe": {
            "seed": int,
            "corpora": dict,
            "phases": [{"name": str, "mixture": dict}],
            "replay?": {"share?": float, "past?": [str]},
        },
        "phases": [{"name": str, "end_step": int}],
        "identity?": dict,
        "versions?": dict,
        "hardware?": dict,
        "speed?": {f"{name}?": float for name in SPEED},
        "parameters?": float,
    },
    "step": PLACE | dict.fromkeys(
        ("loss?", "rate?", "tokens?", "fresh_tokens?", "flops?", *(f"{t}?" for t in TIMES)), float
    ),
    "score": SCORE,
    "branch_score": SCORE | {"branch": str} | {f"{spent}_beyond?": float for spent in
        ("tokens", "fresh_tokens", "flops", "evaluation_flops")},
    "task": PLACE | {"phase": str, "task": str, "metric": str, "value?": float, "stderr?": float},
    "probe": PLACE | {"cosine": float},
    "ranks": PLACE | {
        "seconds": float,
        "waited_for_text": [float],
        "slowest?": float,
        "waited_for_slowest?": float,
        "memory": [int],
    },
    "checkpoint": PLACE | SPENT,
    "end": SPENT,
}  # fmt: skip


class Records:
    """The open `records.jsonl` of a run, append only."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write one record, or none of it: OSError on a full disk leaves no torn line."""
        record = _finite({"kind": kind, **fields})
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
    found, rest = _parse(path)
    if any(map(_record, rest[1:])):
        raise Invalid(f"{path}: line {len(found) + 1} is damaged; restore the file")
    for number, (record, _) in enumerate(found, 1):
        wrong = misfit(record, KINDS.get(record["kind"], dict))
        if record["kind"] == "header":
            wrong = wrong or _contradiction(record)
        if wrong:
            raise Invalid(f"{path}: line {number} is damaged ({wrong}); restore the file")
    return [record for record, _ in found]


def cut(path: Path, step: int, *, scored: bool = True) -> None:
    """Remove every record from the first one beyond `step` or of a branch annealed there, and a
    torn last line; where the step was not `scored` to the end, from the first record of its
    scoring. Raises Invalid where they do not reach it; and where `step` is -1, as there is no
    checkpoint, although there once was one."""
    if not path.exists():
        return
    keep = last = 0
    found = _parse(path)[0]
    if step < 0 and (lost := _saved([record for record, _ in found])) is not None:
        raise Invalid(
            f"{path}: the checkpoint after step {lost} is gone or damaged; restore checkpoints/, "
            "or start anew with --fresh"
        )
    for record, end in found:
        at = record.get("step", 0)
        again = record.get("branch") == ANNEALED or (not scored and record["kind"] in SCORED)
        if at > step or (at == step and again):
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


def _saved(found: list[Record]) -> int | None:
    """The step of the last checkpoint that was written to its end, None if there was none: its
    record is made when it is begun, so another came after it, or the sitting ended in order."""
    steps = [record.get("step", 0) for record in found if record["kind"] == "checkpoint"]
    ended = bool(found) and found[-1].get("reason") in ("finished", "preempted")
    sound = steps if ended else steps[:-1]
    return sound[-1] if sound else None


def _parse(path: Path) -> tuple[list[tuple[Record, int]], list[bytes]]:
    """Records with the byte offset at which each ends, up to the first line that is none; and the
    lines from there on. Read at once: a run may be writing."""
    lines = path.read_bytes().split(b"\n")
    found: list[tuple[Record, int]] = []
    end = 0
    for i, line in enumerate(lines[:-1]):
        record = _record(line)
        if record is None:
            return found, lines[i:]
        end += len(line) + 1
        found.append((record, end))
    return found, lines[-1:]


def _record(line: bytes) -> Record | None:
    """What a line holds; None if that is no record."""
    try:
        record = json.loads(line)
        if b"\\u" in line:
            json.dumps(record, ensure_ascii=False).encode()  # half a character has no bytes
    except (ValueError, RecursionError):
        return None
    is_one = isinstance(record, dict) and isinstance(record.get("kind"), str)
    return record if is_one else None


def _contradiction(header: Record) -> str | None:
    """What of a header, whose shape is right, cannot be."""
    recipe = header["recipe"]
    wrong = misfit(recipe, object, "recipe")
    if wrong:
        return wrong
    named = {*recipe.get("replay", {}).get("past", ())}.union(
        *(p["mixture"] for p in recipe["phases"])
    )
    if not named <= recipe["corpora"].keys():
        return f"corpora {sorted(named - recipe['corpora'].keys())} are named and not there"
    ends = [phase["end_step"] for phase in header["phases"]]
    if not ends or [0, *ends] != sorted({0, *ends}) or len(ends) != len(recipe["phases"]):
        return f"phases end at {ends}"
    return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
