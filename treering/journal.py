"""The records of a run as they arise: steps wait as tensors until somebody must read them.

What is written is passed on to the mirrors, in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from treering.config import Recipe
from treering.interruption import Diverged
from treering.ledger import Ledger
from treering.loop import Trained
from treering.records import Records, read
from treering.report.live import Progress
from treering.speed import Speed
from treering.trackers import Mirror

PENDING = 32  # steps that may wait; a kill loses no more records than the resumed run repeats


class Journal:
    """`records.jsonl` with the last few steps still to be written."""

    def __init__(self, path: Path | None, recipe: Recipe, speed: Speed) -> None:
        """Without a path (on all ranks but the first) nothing is kept."""
        self._max_skipped, self._in_a_row, self._speed = recipe.guard.max_skipped, 0, speed
        self._records = Records(path) if path else None
        self._phases = [phase.name for phase in recipe.phases]
        self._pending: list[tuple[Trained, Ledger, float, float]] = []
        self.mirrors: Sequence[Mirror] = ()
        self._step, self._phase = 0, ""  # the last that was written
        self.loss, self.tokens_per_second, self._pace = float("nan"), 0.0, 0.0  # seconds of a step
        self.best: dict[str, float] = {}  # loss of each corpus, in all sittings
        for record in read(path) if path else ():
            self._note(record["kind"], record)

    def step(self, done: Trained, ledger: Ledger, took: float, seconds: float) -> None:
        """Note a step that took `took` seconds of the host; what its device takes beyond that is
        added when it is waited for. `ledger` and `seconds` are cumulative."""
        if self._records is not None:
            self._pending.append((done, ledger, took, seconds))
        if len(self._pending) >= PENDING:
            self.flush()

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write a record of another kind, after the steps before it."""
        self.flush()
        self._append(kind, fields)
        self._note(kind, fields)

    def _note(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind == "score" and fields["loss"] is not None and isfinite(loss := fields["loss"]):
            self.best[fields["corpus"]] = min(loss, self.best.get(fields["corpus"], loss))

    def flush(self) -> None:
        """Write the pending steps: here alone the device is waited for. Raises Diverged."""
        if not self._pending:
            return
        steps, self._pending = self._pending, []
        began = time.monotonic()
        float(steps[-1][0].metrics.loss)  # a device is behind: what it still computes are these
        behind = (time.monotonic() - began) / len(steps)
        for done, ledger, took, seconds in steps:
            record = self._record(done, ledger, took + behind, seconds)
            self._append("step", record)
            self.loss, self._step, self._phase = record["loss"], record["step"], record["phase"]
            self._in_a_row = self._in_a_row + 1 if record["skipped"] == 1 else 0
            if self._in_a_row >= self._max_skipped:
                raise Diverged(
                    f"step {record['step']}: the last {self._in_a_row} steps were skipped (loss "
                    f"{record['loss']:.4g}, gradient norm {record['grad_norm']:.4g}); lower "
                    "schedule.peak, mend the text, or raise guard.max_skipped or guard.spike"
                )
        tokens = sum(done.batch.predicted for done, *_ in steps)
        whole = sum(took + behind for _, _, took, _ in steps)
        self.tokens_per_second = tokens / max(whole, 1e-9)
        self._pace = whole / len(steps)

    def end(self, reason: str, seconds: float, ledger: Ledger) -> None:
        """The last record of a sitting; left out on a full disk, of which the user hears anyway."""
        try:
            self.write("end", {"reason": reason, "seconds": seconds, "ledger": ledger.purposes()})
        except OSError:
            if reason == "finished":
                raise

    def progress(self, steps: int) -> Progress:
        """How far the run is in its `steps`."""
        self.flush()
        left = (steps - self._step) * self._pace
        return Progress(self._phase, self._step, steps, self.loss, self.tokens_per_second, left)

    def sync(self) -> None:
        """Return when all records lie on the disk."""
        self.flush()
        if self._records is not None:
            self._records.sync()

    def close(self) -> None:
        if self._records is not None:
            self._records.close()
        for mirror in self.mirrors:
            mirror.close()

    def _append(self, kind: str, fields: Mapping[str, Any]) -> None:
        if self._records is not None:
            self._records.append(kind, fields)
        for mirror in self.mirrors:
            mirror.write(kind, fields)

    def _record(self, done: Trained, ledger: Ledger, took: float, seconds: float) -> dict[str, Any]:
        batch, metrics = done.batch, done.metrics
        return {
            "step": batch.step + 1,
            "phase": self._phases[batch.phase],
            "rate": done.rate,
            "loss": float(metrics.loss),
            "fresh_loss": float(metrics.fresh_loss),
            "replayed_loss": float(metrics.replayed_loss),
            "grad_norm": float(metrics.grad_norm),
            "skipped": float(metrics.skipped),
            **({} if metrics.penalty is None else {"penalty": float(metrics.penalty)}),
            "replayed": float(batch.replayed.mean()),
            **self._speed.of(batch.predicted, took),
            "tokens": ledger.tokens,
            "fresh_tokens": ledger.fresh_tokens,
            "flops": ledger.flops,
            "seconds": seconds,
        }
