"""`prepare` against the tokenizer alone: `python bench/prepare.py`, up to 1 GB with `--full`.

The ceiling is `encode_batch_fast` of the `tokenizers` library with all its threads, over the same
documents, in memory already; `prepare` also reads JSON, hashes the text and writes the store. Its
time begins when everything is imported. The text is made up: words of random letters, Zipf's
frequencies, documents of log-normal length. Each measurement has a process of its own, in turn;
memory is looked at in a run that is not timed, as looking takes a fifth of the time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from common import VOCABULARY, ratio, report

from treering import prepare, tokenizer

WORDS, BATCH = 50_000, 1024  # different words; documents that the ceiling is given at once
SIZES = {"10 MB": 10**7, "100 MB": 10**8}
FULL = {"1 GB": 10**9}
TEXT = "text.jsonl"
WAYS = ("prepare", "ceiling")  # and "watched", which is not timed


def documents(size: int) -> Iterator[str]:
    """So many characters, always the same: about 400 words a document, some of them very long."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(draw.choice(letters, n)) for n in 1 + draw.poisson(4, WORDS)])
    shares = np.cumsum(1 / np.arange(1, WORDS + 1))
    while size > 0:
        number = max(1, int(draw.lognormal(5.5, 1.0)))
        ranks = np.searchsorted(shares, draw.random(number) * shares[-1])
        text = " ".join(words[ranks])
        size -= len(text)
        yield text


def write(path: Path, size: int) -> None:
    with open(path, "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in documents(size))


def proportional(process: int) -> int:
    """Memory of a process, in KiB, where what several share is divided among them; with its
    children's. 0 if it has just ended."""
    folder = Path(f"/proc/{process}")
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
        children = (folder / "task" / str(process) / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return own + sum(proportional(int(child)) for child in children)


class Watch:
    """The peak memory of this process and its children, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak, self._ended = 0, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.peak = max(self.peak, proportional(os.getpid()))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


def measure(folder: Path, text: Path, way: str) -> dict[str, float]:
    """One way's seconds, or the peak memory of its processes in MiB."""
    made = tokenizer.load(folder / "tokenizer")
    if way in ("prepare", "watched"):
        watch = Watch()
        with tempfile.TemporaryDirectory(dir=folder) as out:
            began = time.perf_counter()
            with watch if way == "watched" else nullcontext():
                quiet = prepare.Options(quiet=True)
                prepare.prepare([str(text)], made, f"{out}/store", quiet)
            took = time.perf_counter() - began
        return {"MiB": watch.peak / 2**10} if way == "watched" else {"s": took}
    backend, took = tokenizer.plain_backend(made), 0.0
    with open(text) as lines:
        while batch := [json.loads(line)["text"] for line in itertools.islice(lines, BATCH)]:
            began = time.perf_counter()
            backend.encode_batch_fast(batch, add_special_tokens=False)
            took += time.perf_counter() - began
    return {"s": took}


def measured(folder: Path, way: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), str(folder / TEXT), way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def compared(folder: Path, name: str, size: int, rounds: int) -> dict[str, float]:
    """The figures of one size."""
    write(folder / TEXT, size)
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_ in range(rounds):
        for way in WAYS[:: 1 if round_ % 2 == 0 else -1]:
            took[way].append(measured(folder, way)["s"])
    return {
        f"{name}, prepare, MB/s": size / 1e6 / statistics.median(took["prepare"]),
        f"{name}, the tokenizer alone, MB/s": size / 1e6 / statistics.median(took["ceiling"]),
        f"{name}, speed of prepare / of the tokenizer alone": ratio(took, "ceiling", "prepare"),
        f"{name}, peak memory of prepare's processes, MiB": measured(folder, "watched")["MiB"],
    }


def main(sizes: dict[str, int], rounds: int) -> None:
    figures: dict[str, object] = {"rounds": rounds, "vocabulary": VOCABULARY}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer").mkdir()
        made = tokenizer.train(documents(2_000_000), VOCABULARY)
        tokenizer.save(made, folder / "tokenizer")
        for label, size in sizes.items():
            figures |= compared(folder, label, size, rounds)
    report("prepare", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="1 GB too")
    parser.add_argument("--small", action="store_true", help="10 MB alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=3, metavar=("FOLDER", "TEXT", "WAY"))
    options = parser.parse_args()
    if options.measure:
        place, source, asked = options.measure
        print(json.dumps(measure(Path(place), Path(source), asked)))
    else:
        chosen = {"10 MB": SIZES["10 MB"]} if options.small else SIZES
        main({**chosen, **(FULL if options.full else {})}, options.rounds)
