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
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import torch
from common import VOCABULARY, alternate, highest, ratio, report, synthetic

from treering import config, learner, model
from treering.forward import forward
from treering.ledger import flops_per_token
from treering.lengths import lengths
from treering.loop import Rules, train
from treering.mesh import Mesh
from treering.methods.memories import Everything
from treering.methods.objectives.next_token import NextToken
from treering.methods.updates import Descent, Reptile
from treering.plan import Planner, Stage
from treering.protocols import Update
from treering.stream import Stream

LENGTH, ROWS, EVERY = 256, 16, 50
ARMS = {"plain": ("0", False), "replay": ("0.25", False), "reptile": ("0", True),
        "mer": ("0.25", True)}  # fmt: skip


def arm(folder: Path, name: str) -> tuple[Callable[[], object], learner.Learner, Update]:
    """A function that trains one step, with its parts."""
    share, reptile = ARMS[name]
    store = synthetic(folder, name, 2_000_000)
    rule = Planner(
        seed=0,
        names=("a",),
        sizes=(store.samples(LENGTH),),
        past=(False,),
        stages=(Stage(10**9, (1,)),),
        rows=ROWS,
        share=Fraction(share),
        budget="total",
        memory=Everything(),
        over="all",
    )
    stream = Stream(rule, [store], lengths(rule), LENGTH, VOCABULARY)
    begun = model.fresh(model.llama(config.Model(preset="3m"), VOCABULARY, LENGTH), seed=0)
    layers, width = model.shape(begun)
    cost = flops_per_token(model.count(begun)[1], layers=layers, width=width, length=LENGTH)
    root = model.Root(begun, NextToken())
    run = forward(root, config.Compute(), ROWS, Mesh())
    learns = learner.Learner(run, config.Optimizer(), config.Guard(), flops_per_token=cost)
    update: Update = Reptile(EVERY, 0.5) if reptile else Descent()
    steps = train(learns, update, stream.batches(rule.start()), Rules(0, lambda step: 1e-4))
    return lambda: next(steps).metrics.loss.item(), learns, update


def peak(name: str) -> float:
    """Peak resident memory of a process that trains one arm, in MiB above its start."""
    asked = [sys.executable, __file__, "--peak", name]
    return float(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def measure_peak(name: str) -> None:
    before = highest()
    with tempfile.TemporaryDirectory() as folder:
        step, _, _ = arm(Path(folder), name)
        for _ in range(8):
            step()
    print((highest() - before) / 2**10)


def main(rounds: int) -> None:
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        made = {name: arm(Path(folder), name) for name in ARMS}
        for step, _, _ in made.values():  # compile, and settle
            for _ in range(3):
                step()
        took = alternate({name: parts[0] for name, parts in made.items()}, rounds)
        plain = statistics.median(took["plain"])
        figures["plain step, ms"] = plain * 1e3
        figures["plain tokens/s"] = LENGTH * ROWS / plain
        for name in list(ARMS)[1:]:
            figures[f"{name} / plain, median of {rounds} rounds"] = ratio(took, name, "plain")
            whole = sum(took[name]) / sum(took["plain"])
            figures[f"{name} / plain, all steps summed"] = whole
        _, learns, update = made["reptile"]
        assert isinstance(update, Reptile)
        meta = alternate({"meta": lambda: update._meta_update(learns)}, 25)["meta"]
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
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    if options.peak:
        measure_peak(options.peak)
    else:
        main(options.rounds)
