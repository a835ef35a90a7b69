"""A training step with replay and with Reptile against plain training: `python bench/step.py`.

All arms live in one process and take turns; each has a model of its own (3M parameters, steps of
4,096 tokens, compiled, the machine's best precision). Peak memory is measured in a process for
each arm.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from arms import Arm, arm, learner
from common import alternate, ratio, report
from turns import highest

from treering import tables
from treering.methods.updates import Descent, Reptile

LENGTH, ROWS, EVERY = 256, 16, 50
ARMS = {"plain": ("0", False), "replay": ("0.25", False), "reptile": ("0", True),
        "mer": ("0.25", True)}  # fmt: skip


def made(folder: Path, name: str) -> Arm:
    """An arm with a model of its own."""
    share, reptile = ARMS[name]
    own = learner(tables.Model(preset="3m"), tables.Compute(), ROWS, LENGTH)
    update = Reptile(EVERY, 0.5) if reptile else Descent()
    return arm(own, folder / name, update, share=share, rows=ROWS, length=LENGTH)


def peak(name: str) -> float:
    """Peak resident memory of a process that trains one arm, in MiB above its start."""
    asked = [sys.executable, __file__, "--peak", name]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str) -> None:
    before = highest()
    with tempfile.TemporaryDirectory() as folder:
        made(Path(folder), name).train(4)
    print(highest() - before)


def main(rounds: int) -> None:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        arms = {name: made(Path(folder), name) for name in ARMS}
        for each in arms.values():  # compile, and settle
            each.train(3)
        took = alternate({name: each.train for name, each in arms.items()}, rounds)
        plain = statistics.median(took["plain"])
        figures["plain step, ms"] = plain * 1e3
        figures["plain tokens/s"] = LENGTH * ROWS / plain
        for name in list(ARMS)[1:]:
            figures[f"{name} / plain, median of {rounds} rounds"] = ratio(took, name, "plain")
            whole = sum(took[name]) / sum(took["plain"])
            figures[f"{name} / plain, all steps summed"] = whole
        update = arms["reptile"].update
        assert isinstance(update, Reptile)
        turn = {"meta": lambda: update._meta_update(arms["reptile"].learner)}
        meta = alternate(turn, 25)["meta"]
        figures["meta-update, ms"] = statistics.median(meta) * 1e3
        figures[f"meta-update every {EVERY}, share of a step"] = (
            statistics.median(meta) / EVERY / plain
        )
    peaks = [{name: peak(name) for name in ARMS} for _ in range(5)]
    for name in ARMS:
        median = statistics.median(each[name] for each in peaks)
        figures[f"{name}, peak memory above start, MiB, median of 5"] = median
    report("step", {"torch": torch.__version__, **figures})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak", choices=list(ARMS))
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak)
    else:
        main(options.rounds)
