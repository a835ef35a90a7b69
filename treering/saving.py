"""The checkpoints of a run: what is in them, and the thread that writes them beside training.

Training stops for the copy to the host's memory alone, and for a save that is still being written
when the next one is due.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from treering import checkpoint, position, tables
from treering.config import Invalid, Table
from treering.learner import Learner, tensors
from treering.ledger import Ledger
from treering.position import State
from treering.predictions import Predictions
from treering.protocols import Update


class Saver:
    """Saves and restores the plan's State, all that learns, and numbers."""

    def __init__(
        self, out: Path, learner: Learner, update: Update, policy: tables.Checkpoint,
        predictions: Predictions | None = None,
    ) -> None:  # fmt: skip
        self._folder, self._policy = out / "checkpoints", policy
        self._learner, self._update = learner, update
        self.predictions = predictions
        self._mesh, self._aside = learner.forward.mesh, learner.forward.mesh.aside()
        self._saved = time.monotonic()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="treering-saver")
        self._writing: Future[Path] | None = None

    def due(self, ledger: Ledger, before: Ledger) -> bool:
        """Whether it is time for a checkpoint, by the tokens since the ledger `before` and by the
        clock of the first rank. All ranks ask after each step."""
        now = time.monotonic()
        late = self._mesh.rank == 0 and now - self._saved > 60 * self._policy.every_minutes
        if late:
            self._saved = now  # asked once: the answer may come a step later
        late = self._mesh.any("checkpoint", late)
        return late or ledger.passed(self._policy.every_tokens, before)

    def stays(self, ledger: Ledger, before: Ledger, *, ends: bool) -> bool:
        """Whether the checkpoint of a step, which may end a phase, is never removed."""
        passed = ledger.passed(self._policy.stay_every_tokens, before)
        return passed or (ends and self._policy.stay_at_phase)

    def save(self, state: State, numbers: Table, *, stays: bool) -> Table:
        """Begin to write the checkpoint after a step; what its record says: the folder, which will
        be there when it is whole, and the counters of update and penalties. `stays`: it is never
        removed. Raises what the one before failed with."""
        self.wait()
        if self.predictions:
            self.predictions.sync()
        plan, arrays = position.save(state)
        held = [penalty.counters() for penalty in self._learner.penalties]
        counters = {"update": self._update.counters(), "penalties": held}
        content = {"plan": plan, **counters, **numbers}
        staged = {
            name: tensor.detach().to("cpu", copy=True)
            for name, tensor in self._named(arrays).items()
        }
        self._saved = time.monotonic()
        self._writing = self._thread.submit(
            checkpoint.save, self._folder, state.step, staged, content,
            keep=self._policy.keep, stays=stays, mesh=self._aside,
        )  # fmt: skip
        path = checkpoint.place(self._folder, state.step).relative_to(self._folder.parent)
        return {"step": state.step, "path": str(path), "counters": counters}

    def check(self) -> None:
        """Raises what a save that has ended failed with; does not wait for one that goes on."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when nothing is being written any more."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """End the thread, after what it writes."""
        self._thread.shutdown()
        if self.predictions:
            self.predictions.close()

    def newest(self) -> tuple[Path, Table] | None:
        """The newest sound checkpoint: its folder and its numbers."""
        return self._learner.forward.mesh.told(lambda: checkpoint.newest(self._folder))

    def restore(self, path: Path, numbers: Table, start: State) -> State:
        """Fill all that learns in place, and return the plan's State. `start` is that before the
        run: for shapes, and for corpora that the checkpoint does not know."""
        arrays = {name: array.copy() for name, array in position.save(start)[1].items()}
        checkpoint.load(path, self._named(arrays), self._learner.forward.mesh)
        self._update.restore(numbers["update"])
        for penalty, held in zip(self._learner.penalties, numbers["penalties"], strict=True):
            penalty.restore(held)
        if self.predictions:
            self.predictions.back(numbers["plan"]["step"])
        return position.widened(position.restore(numbers["plan"], arrays), start)

    def back(self, start: State, step: int) -> None:
        """Return to the checkpoint after a step, the newest. Raises Invalid where it was damaged
        meanwhile."""
        found = self.newest()
        if found is None or found[1]["plan"]["step"] != step:
            raise Invalid(f"{checkpoint.place(self._folder, step)}: was damaged while a branch of "
                          "it was trained; give the command again to go on from an older "
                          "one")  # fmt: skip
        self.restore(*found, start)

    def _named(self, arrays: Mapping[str, NDArray[np.int64]]) -> dict[str, torch.Tensor]:
        plans = {f"plan/{name}": torch.from_numpy(array) for name, array in arrays.items()}
        return tensors(self._learner, self._update) | plans
