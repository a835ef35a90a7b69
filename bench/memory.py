"""Replay draws from the stores against a buffer of whole files: `python bench/memory.py`.

Ours draws among all samples and reads those. The other way is that of the code published with arXiv
2508.01908, written anew: the buffer lies in files of 2,000 samples, a thread reads whole files in
random order into a queue of 20, and a batch is random rows, with repetition, of the next one. Its
files are full, and uint16 as the store is (published: int64); where the queue is empty it is waited
for (published: a step without replay). Each round has a process for each way; the files are in the
page cache, so that no disk is measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from common import VOCABULARY, report, synthetic
from numpy.typing import NDArray
from turns import highest

from treering.lengths import lengths
from treering.methods.memories import Everything
from treering.plan import Planner, Stage
from treering.rng import key
from treering.store import open_store
from treering.stream import Stream

LENGTH, FILE, QUEUE = 256, 2000, 20
SECONDS, COUNTED = 2.0, 50  # of drawing; batches whose repetitions are counted

Draw = Callable[[int], NDArray[np.int64]]  # rows -> tokens


def treering(folder: Path) -> Draw:
    """The plan's own draw among what was seen, and the stream's own reading."""
    store = open_store(folder / "tokens")
    samples = store.samples(LENGTH)
    rule = Planner(
        seed=0,
        names=("a",),
        sizes=(samples,),
        past=(True,),
        stages=(Stage(samples, (1,)),),
        rows=1,
        share=Fraction(0),
        budget="total",
        memory=Everything(),
        over="all",
    )
    stream = Stream(rule, [store], lengths(rule), LENGTH, VOCABULARY)
    state, step = rule.start(), itertools.count()

    def draw(rows: int) -> NDArray[np.int64]:
        at = key(0, "replay", next(step))
        return stream.tokens(rule.earlier(state, rule.memory, rows, at))

    return draw


def whole_files(folder: Path) -> Draw:
    """A thread reads whole files ahead; each batch is drawn out of one of them."""
    files = sorted((folder / "files").iterdir())
    ahead: queue.Queue[NDArray[np.uint16]] = queue.Queue(QUEUE)
    random = np.random.default_rng(0)

    def work() -> None:
        chosen = np.random.default_rng(1)
        while True:
            if ahead.full():
                time.sleep(0.1)
                continue
            path = files[chosen.integers(len(files))]
            ahead.put(np.frombuffer(path.read_bytes(), np.uint16).reshape(-1, LENGTH + 1))

    threading.Thread(target=work, daemon=True).start()

    def draw(rows: int) -> NDArray[np.int64]:
        samples = ahead.get()
        return samples[random.integers(len(samples), size=rows)].astype(np.int64)

    return draw


WAYS = {"treering": treering, "whole files": whole_files}


def write(folder: Path, samples: int) -> None:
    """The same samples for both."""
    store = synthetic(folder, "tokens", samples * LENGTH + 1)
    (folder / "files").mkdir()
    for first in range(0, samples, FILE):
        rows = store.read(np.arange(first, min(first + FILE, samples)), LENGTH)
        (folder / "files" / f"{first:012}").write_bytes(rows.astype(np.uint16).tobytes())


def characters() -> int:
    """Bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(folder: Path, way: str, rows: int) -> dict[str, float]:
    """Draws batches for some seconds."""
    memory, read = highest(), characters()
    draw = WAYS[way](folder)
    draw(rows)
    batches, began = 1, time.perf_counter()
    while time.perf_counter() - began < SECONDS:
        draw(rows)
        batches += 1
    took = time.perf_counter() - began
    found = {
        "draws/s": (batches - 1) * rows / took,
        "bytes read per sample": (characters() - read) / (batches * rows),
        "peak memory above start, MiB": highest() - memory,
    }
    distinct = statistics.mean(len({row.tobytes() for row in draw(rows)}) for _ in range(COUNTED))
    return {**found, "repeated samples in a batch, share": 1 - distinct / rows}


def main(samples: int, rows: int, rounds: int) -> None:
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), samples)
        for round_ in range(rounds):
            for way in list(WAYS)[:: 1 if round_ % 2 == 0 else -1]:
                command = [sys.executable, __file__, "--rows", str(rows), "--measure", folder, way]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found[way].append(json.loads(done.stdout))
    figures: dict[str, object] = {
        "samples on disk": samples,
        "rows of a batch": rows,
        "rounds": rounds,
    }
    for figure in found["treering"][0]:
        for way, each in found.items():
            figures[f"{way}, {figure}"] = statistics.median(one[figure] for one in each)
    pairs = zip(found["treering"], found["whole files"], strict=True)
    figures["draws/s, treering / whole files"] = statistics.median(
        a["draws/s"] / b["draws/s"] for a, b in pairs
    )
    report("memory", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "WAY"))
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(Path(options.measure[0]), options.measure[1], options.rows)))
    else:
        main(options.samples, options.rows, options.rounds)
