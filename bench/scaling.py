"""One process and two on the same processors: `python bench/scaling.py`.

Each process has one thread. Strong: the same step by two processes; weak: a step twice as large.
Every measurement is a run of `treering run` on the command line, and they take turns; times are
those of its records, without the first steps. Two processes on one machine share its memory's
bandwidth and send over its loopback device, so this shows what the machinery costs, and no network.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

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


def rate(folder: Path, arm: str, rounds: str) -> float:
    """Tokens/s of a run: of its median step."""
    processes, threads, times = ARMS[arm]
    tokens = work.ROWS * work.LENGTH * times
    out = folder / f"{arm} {rounds}"
    command = [sys.executable, "-m", "treering", "run", str(folder / "recipe.toml")]
    command += ["--out", str(out), "--cache", str(folder / "cache")]
    command += ["--devices", str(processes)] if processes > 1 else []
    for assignment in (
        f"batch.tokens={tokens}",
        f"batch.micro={work.ROWS * work.LENGTH // (processes // times)}",
        f"phases.0.tokens={STEPS * tokens}",
        "compute.compile=false",  # both arms alike: it would take longer than the steps
    ):
        command += ["--set", assignment]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    steps = [record for record in treering.read(out) if record["kind"] == "step"]
    return statistics.median(step["tokens_per_second"] for step in steps[LEFT_OUT:])


def main(rounds: int, size: str) -> None:
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as name:
        work.prepare(Path(name), size, "auto", 1)
        for number in range(rounds):
            for arm in list(ARMS)[:: 1 if number % 2 == 0 else -1]:
                rates[arm].append(rate(Path(name), arm, str(number)))
    medians = {f"{arm}, tokens/s": statistics.median(rates[arm]) for arm in ARMS}
    figures: dict[str, object] = {**medians}
    for arm in list(ARMS)[1:]:
        pairs = zip(rates[arm], rates["one process"], strict=True)
        figures[f"{arm} / one process"] = statistics.median(a / b for a, b in pairs)
    report("scaling", figures | {"size": size, "rounds": rounds})


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", choices=sorted(work.SIZES), default="3m")
    options = parser.parse_args()
    main(options.rounds, options.size)
