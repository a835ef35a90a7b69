"""What evaluation, checkpoints and Reptile's anchor cost: `python bench/overhead.py`.

The model and the steps of `step.py`. A checkpoint is begun before some steps: written beside them,
or waited for. The disk is that of the temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from arms import arm, learner
from common import alternate, ratio, report, synthetic
from step import EVERY, LENGTH, ROWS

from treering import tables
from treering.evaluate import HeldOut, score
from treering.learner import Learner
from treering.methods.updates import Descent, Reptile
from treering.position import State
from treering.protocols import Update
from treering.saving import Saver

STEPS = 4  # between two checkpoints, as the arms take turns
INTERVAL = 204_800  # tokens between two evaluations of one corpus
BETWEEN = 409_600  # tokens between two checkpoints
HELD_OUT = tables.Evaluate().tokens


def main(rounds: int) -> None:
    figures: dict[str, object] = {"torch": torch.__version__}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        own = learner(tables.Model(preset="3m"), tables.Compute(), ROWS, LENGTH)
        plainly = arm(own, folder, Descent(), rows=ROWS, length=LENGTH)
        plainly.train(3)
        store = synthetic(folder, "held out", HELD_OUT * 2)
        read = store.read(np.arange(HELD_OUT // LENGTH), LENGTH).astype(np.int64)
        text = HeldOut("held out", read, None)
        score(own.forward, text)  # compiles
        saves = Saves(folder / "checkpoints", own, Descent())

        def steps() -> float:
            return plainly.train(STEPS)

        def beside() -> None:
            saves.begin()
            steps()
            saves.wait()

        def waited_for() -> None:
            saves.begin()
            saves.wait()
            steps()

        took = alternate(
            {
                "plain": steps,
                "evaluation": lambda: score(own.forward, text),
                "beside": beside,
                "waited for": waited_for,
            },
            rounds,
        )
        saves.close()
        plain = statistics.median(took["plain"]) / STEPS
        token = plain / (LENGTH * ROWS)
        evaluation, pause = statistics.median(took["evaluation"]), statistics.median(saves.pauses)
        both = f"{STEPS} steps and a checkpoint"
        figures |= {
            "step, ms": plain * 1e3,
            f"evaluation of {HELD_OUT:,} tokens, in steps": evaluation / plain,
            f"the same every {INTERVAL:,} tokens, share of time": evaluation / (INTERVAL * token),
            "checkpoint, ms until training goes on": pause * 1e3,
            f"the same every {BETWEEN:,} tokens, share of time": pause / (BETWEEN * token),
            f"{both} beside them / without": ratio(took, "beside", "plain"),
            f"{both} waited for / without": ratio(took, "waited for", "plain"),
        }
        figures |= anchors(own, plain, max(rounds, 25))
    report("overhead", figures | {"rounds": rounds})


def anchors(own: Learner, step: float, rounds: int) -> dict[str, float]:
    """Meta-updates with the anchor on the device and on the host, where a step takes so long."""
    updates = {place: Reptile(EVERY, 0.5, anchor=place) for place in ("device", "cpu")}
    for update in updates.values():
        update._window.opens(own)
    turns = {f"anchor on {p}": lambda u=u: meta(u, own) for p, u in updates.items()}
    found = {}
    for name, times in alternate(turns, rounds).items():
        found[f"{name}, ms of a meta-update"] = statistics.median(times) * 1e3
        found[f"{name}, share of {EVERY} steps"] = statistics.median(times) / (EVERY * step)
    return found


def meta(update: Reptile, learner: Learner) -> None:
    """A meta-update, and the anchor of the next."""
    update._meta_update(learner)
    update._window.opens(learner)


class Saves:
    """Checkpoints after one another, and how long training stood still for each."""

    def __init__(self, folder: Path, learner: Learner, update: Update) -> None:
        self._saver = Saver(folder, learner, update, tables.Checkpoint())
        self._step = 0
        self.pauses: list[float] = []
        self.wait, self.close = self._saver.wait, self._saver.close

    def begin(self) -> None:
        self._step += 1
        began = time.perf_counter()
        self._saver.save(State(self._step, 0, 0, (0,), (0,), {}, {}), {}, stays=False)
        self.pauses.append(time.perf_counter() - began)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    main(parser.parse_args().rounds)
