"""What a model predicted of each sample when it first learned it: kept in the run's folder, by the
sample's name.

Two files for each corpus, NUMBER its place in the recipe:

    NUMBER.steps     int64 for each sample: after how many steps it was recorded; 0: never
    NUMBER.top       a slot for each sample: ids, then log-chances in float16; holes where none is

A sample is recorded once, so what a step reads was written by an earlier one. A run that goes on
from a checkpoint knows what was recorded before that, and records the rest again.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.batch import Batch, Recorded
from treering.config import Invalid, Recipe
from treering.protocols import Metrics


class Predictions:
    """Slots for the samples of corpora of `sizes` samples: the `top` tokens of `length` predictions
    by a model of `vocabulary` ids."""

    def __init__(
        self, folder: Path, sizes: tuple[int, ...], *, length: int, top: int, vocabulary: int
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._shape = folder, (length, top)
        self._ids = _ids(vocabulary)
        self._slot = slot(length, top, vocabulary)
        flags = os.O_RDWR | os.O_CREAT
        self._steps: list[NDArray[np.int64]] = []  # nothing is known until `back`
        self._files: list[tuple[int, int]] = []
        self._new: list[bool] = []  # whether something is not on the disk yet
        for number, size in enumerate(sizes):
            marks, top_file = (
                os.open(folder / f"{number}.{kind}", flags, 0o644) for kind in ("steps", "top")
            )
            self._files.append((marks, top_file))
            self._steps.append(np.zeros(size, np.int64))
            self._new.append(False)

    def back(self, step: int) -> None:
        """Know again what was recorded in the first `step` steps, and nothing else. Raises Invalid
        where nothing is there."""
        for number, ((marks, _), steps) in enumerate(zip(self._files, self._steps, strict=True)):
            data = _read(marks, steps.nbytes, 0)
            if len(data) % steps.itemsize:
                raise Invalid(f"{self._folder}/{number}.steps: is torn; bring the file back, or "
                              "start anew with --fresh")  # fmt: skip
            found = np.frombuffer(data, np.int64)
            steps[:] = 0  # also of a corpus that grew
            steps[: len(found)] = np.where(found > step, 0, found)
            self._new[number] = bool((found > step).any())  # so that they are not believed later
        if step and not any(steps.any() for steps in self._steps):
            raise Invalid(
                f"{self._folder}: nothing is recorded there, although {step} steps were trained; "
                "bring the files back, or start anew with --fresh"
            )

    def known(self, batch: Batch) -> Batch:
        """With what is recorded of each replayed row."""
        length, top = self._shape
        ids = np.zeros((len(batch), length, top), np.int32)
        logs = np.zeros((len(batch), length, top), np.float16)
        there = np.zeros(len(batch), bool)
        for row in np.flatnonzero(batch.replayed).tolist():
            source, index = int(batch.refs.source[row]), int(batch.refs.index[row])
            if not self._steps[source][index]:
                continue
            slot = _read(self._files[source][1], self._slot, index * self._slot)
            if len(slot) < self._slot:
                raise Invalid(
                    f"{self._folder / f'{source}.top'}: ends before sample {index}; bring the file "
                    "back, or start anew with --fresh"
                )
            ids[row] = np.frombuffer(slot, self._ids, length * top).reshape(length, top)
            rest = np.frombuffer(slot, np.float16, offset=length * top * self._ids.itemsize)
            logs[row], there[row] = rest.reshape(length, top), True
        return replace(batch, recorded=Recorded(ids, logs, there))

    def write(self, batch: Batch, metrics: Metrics) -> None:
        """Record the fresh rows of a step that are not recorded yet. Raises OSError where the disk
        is full."""
        assert metrics.predictions is not None, "an update that does not ask the learner"
        every, chances = (found.cpu().numpy() for found in metrics.predictions)
        for row in np.flatnonzero(~batch.replayed).tolist():
            source, index = int(batch.refs.source[row]), int(batch.refs.index[row])
            if self._steps[source][index]:
                continue  # of an earlier epoch
            slot = every[row].astype(self._ids).tobytes() + chances[row].astype("f2").tobytes()
            _write(self._files[source][1], slot, index * self._slot)
            self._steps[source][index] = batch.step + 1
            self._new[source] = True

    def sync(self) -> None:
        """All is on the disk on return; before it, what is there is that of the last call."""
        for number, ((marks, top), steps) in enumerate(zip(self._files, self._steps, strict=True)):
            if self._new[number]:
                os.fsync(top)
                _write(marks, steps.tobytes(), 0)
                os.fsync(marks)
                self._new[number] = False

    def close(self) -> None:
        """Let the files go."""
        for file in (file for both in self._files for file in both):
            os.close(file)
        self._files = []


def slot(length: int, top: int, vocabulary: int) -> int:
    """Bytes of what is recorded of a sample."""
    return length * top * (_ids(vocabulary).itemsize + 2)


def _ids(vocabulary: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary <= 2**16 else np.int32)


def predictions(
    recipe: Recipe, sizes: tuple[int, ...], vocabulary: int, run: Path
) -> Predictions | None:
    """Those of a run in its folder, where its recipe wants them."""
    wanted = recipe.objective.der
    if not wanted.weight:
        return None
    known = {"length": recipe.length, "top": wanted.top, "vocabulary": vocabulary}
    return Predictions(run / "predictions", sizes, **known)


def _read(file: int, size: int, at: int) -> bytes:
    """So many bytes, or those that there are."""
    parts = []
    while size and (part := os.pread(file, size, at)):
        parts.append(part)
        size, at = size - len(part), at + len(part)
    return b"".join(parts)


def _write(file: int, data: bytes, at: int) -> None:
    while data:
        done = os.pwrite(file, data, at)
        data, at = data[done:], at + done
