"""Treering's stream against mosaicml-streaming, litdata and `datasets`: `python bench/readers.py`.

The same samples in random order, each reader in a process of its own; they take turns. First each
is seen to yield every sample of an epoch exactly once. Tokens/s are those of int64 tensors, after
the first batch; the files are in the page cache. A resumed position is that of a saved state, with
no workers. `--python` is the interpreter that has the others (`bench/requirements-readers.txt`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import report, synthetic
from loaders import READERS, WRITERS
from reading import PLACES, digest

ARMS = [("treering", 0), *((name, n) for n in (0, 2) for name in READERS if name != "treering")]


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=".venv-readers/bin/python")
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


class Bench:
    """The samples' folder, and readers called on it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        store = synthetic(folder, "tokens", options.tokens)
        even = 2 * options.rows  # as many batches for each of two workers
        self.samples = store.samples(options.length) // even * even
        index = np.arange(self.samples)
        self.all = digest(store.read(index, options.length).astype(np.int64))

    def call(self, what: str, reader: str, workers: int = 0, place: str = "") -> Any:
        """One process's answer."""
        options = self.options
        numbers = {"length": options.length, "rows": options.rows, "samples": self.samples}
        command = [sys.executable if reader == "treering" else options.python]
        command += [str(Path(__file__).with_name("reading.py")), what, reader]
        command += ["--folder", str(self.folder), "--workers", str(workers)]
        command += [part for name, n in numbers.items() for part in (f"--{name}", str(n))]
        command += ["--place", place, "--began", str(time.monotonic())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    def check(self) -> dict[str, dict[str, str]]:
        """Whether all readers do the same work; what each yields after each place."""
        following = {}
        for reader, workers in ARMS:
            found = self.call("check", reader, workers)
            assert (found["samples"], found["all"]) == (self.samples, self.all), (
                f"{reader}, {workers} workers: {found['samples']:,} samples of {self.samples:,}, "
                "or others"
            )
            if workers == 0:
                following[reader] = found["following"]
        return following


def main() -> None:
    options = asked()
    rates: dict[str, list[float]] = {f"{reader}, {n} workers": [] for reader, n in ARMS}
    resumed: dict[str, list[dict[str, Any]]] = {
        f"{reader} at {place:.0%}": [] for reader in READERS for place in PLACES
    }
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for reader in WRITERS:
            bench.call("write", reader)
        following = bench.check()
        for round_ in range(options.rounds):
            turn = 1 if round_ % 2 == 0 else -1
            for reader, workers in ARMS[::turn]:
                rates[f"{reader}, {workers} workers"].append(
                    bench.call("read", reader, workers)["tokens/s"]
                )
            for reader, place in list(itertools.product(READERS, PLACES))[::turn]:
                found = bench.call("read", reader, place=str(place))
                resumed[f"{reader} at {place:.0%}"].append(found)
    report("readers", figures(options, rates, resumed, following))


def figures(
    options: argparse.Namespace,
    rates: dict[str, list[float]],
    resumed: dict[str, list[dict[str, Any]]],
    following: dict[str, dict[str, str]],
) -> dict[str, object]:
    """Medians over the rounds; ratios are those of the same round."""
    ours = rates["treering, 0 workers"]
    found: dict[str, object] = {
        "rows x length of a batch": f"{options.rows} x {options.length}",
        "rounds": options.rounds,
    }
    for name, each in rates.items():
        found[f"{name}, tokens/s"] = statistics.median(each)
        if each is not ours:
            pairs = zip(ours, each, strict=True)
            found[f"treering / {name}"] = statistics.median(a / b for a, b in pairs)
    for name, runs in resumed.items():
        reader, place = name.split(" at ")
        for since in ("from process start", "from construction"):
            found[f"{name}, first batch, s {since}"] = statistics.median(r[since] for r in runs)
        expected = following[reader][str(int(place[:-1]) / 100)]
        found[f"{name}, goes on with the same samples"] = all(r["first"] == expected for r in runs)
    return found


if __name__ == "__main__":
    main()
