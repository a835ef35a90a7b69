"""One process and two on the same processors: `python bench/scaling.py`.

Each process has one thread. Strong: the same step by two processes; weak: a step twice as large.
Every measurement is a run of `treering run` on the command line, and they take turns; times are
those of its records, without the first steps. Two processes on one machine share its memory's
bandwidth and send over its loopback device, so this shows what the machinery costs, and no network.

Then how far the two part from the one: the losses of 50 steps of MER, and held-out ones after them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import work
from common import report

import treering

STEPS, LEFT_OUT = 10, 3
ARMS = {  # processes, threads of each, how many times the step
    "one process": (1, 1, 1),
    "one process of two threads": (1, 2, 1),
    "two processes, strong": (2, 1, 1),
    "two processes, weak": (2, 1, 2),
}


MER = ("replay={share=0.25,memory={kind='everything',over='all'}}",
       "update={kind='reptile',every=10,rate=0.5}")  # fmt: skip
MER_STEPS = 50


def run(folder: Path, out: Path, arm: str, steps: int, *more: str) -> list[dict[str, Any]]:
    """The records of a run."""
    processes, threads, times = ARMS[arm]
    tokens = work.ROWS * work.LENGTH * times
    command = [sys.executable, "-m", "treering", "run", str(folder / "recipe.toml")]
    command += ["--out", str(out), "--cache", str(folder / "cache")]
    command += ["--devices", str(processes)] if processes > 1 else []
    for assignment in (
        f"batch.tokens={tokens}",
        f"batch.micro={work.ROWS * work.LENGTH // (processes // times)}",
        f"phases.0.tokens={steps * tokens}",
        "compute.compile=false",  # both arms alike: it would take longer than the steps
        *more,
    ):
        command += ["--set", assignment]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return treering.read(out)


def rate(folder: Path, arm: str, rounds: str) -> float:
    """Tokens/s of a run: of its median step."""
    kept = run(folder, folder / f"{arm} {rounds}", arm, STEPS)
    steps = [record for record in kept if record["kind"] == "step"]
    return statistics.median(step["tokens_per_second"] for step in steps[LEFT_OUT:])


def parted(folder: Path, precision: str) -> dict[str, float]:
    """The largest differences of losses, in nats, between one process and two."""
    one, two = (
        run(folder, folder / f"{precision} {arm}", arm, MER_STEPS, *MER,
            f"compute.precision='{precision}'")
        for arm in ("one process", "two processes, strong")
    )  # fmt: skip
    found = {}
    for kind in ("step", "score"):
        losses = [[r["loss"] for r in kept if r["kind"] == kind] for kept in (one, two)]
        pairs = zip(*losses, strict=True)
        found[f"{precision}, {MER_STEPS} steps of MER: a loss ({kind}) differs by at most"] = max(
            abs(a - b) for a, b in pairs
        )
    return found


def main(rounds: int, size: str) -> None:
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        work.prepare(Path(name), size, "auto", 1)
        for number in range(rounds):
            for arm in list(ARMS)[:: 1 if number % 2 == 0 else -1]:
                rates[arm].append(rate(Path(name), arm, str(number)))
        differences = parted(Path(name), "fp32") | parted(Path(name), "bf16")
    medians = {f"{arm}, tokens/s": statistics.median(rates[arm]) for arm in ARMS}
    figures: dict[str, object] = {**medians}
    for arm in list(ARMS)[1:]:
        pairs = zip(rates[arm], rates["one process"], strict=True)
        figures[f"{arm} / one process"] = statistics.median(a / b for a, b in pairs)
    report("scaling", figures | differences | {"size": size, "rounds": rounds})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=sorted(work.SIZES), default="3m")
    options = parser.parse_args()
    main(options.rounds, options.size)
