"""Memory of a datatrove pipeline's workers over text of 100 MB and 1 GB, or as many MB as named:
`python bench/prepare_sharded.py [MB ...]`."""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from common import report
from datatrove.executor import LocalPipelineExecutor

from treering import tokenizer
from treering.pipeline import Shards, Texts
from treering.store import open_store

FILES, TASKS, WORKERS, VOCABULARY = 16, 4, 2, 8192


def documents(seed: object, size: int) -> Iterator[str]:
    """About so many bytes of text: words of a fixed list, and one in twenty never seen before."""
    fixed, luck = random.Random("words"), random.Random(str(seed))
    words = ["".join(fixed.choices("abcdefghijklmnop", k=2 + n % 9)) for n in range(20_000)]
    while size > 0:
        new = (f"{luck.getrandbits(40):x}" for _ in range(luck.randrange(1, 60)))
        text = " ".join(word for one in new for word in (*luck.choices(words, k=19), one))
        yield text
        size -= len(text)


def peak(folder: str, data: None, rank: int, world_size: int) -> None:
    """The last step of a task: the most memory that its process has had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path(folder, str(rank)).write_text(str(most))


def measure(folder: Path, megabytes: int) -> dict[str, float]:
    """One corpus, generated and prepared."""
    for name in ("texts", "peaks"):
        (folder / name).mkdir(parents=True)
    for number in range(FILES):
        with open(folder / f"texts/{number:02}.jsonl", "w") as file:
            for text in documents(number, megabytes * 10**6 // FILES):
                file.write(json.dumps({"text": text}) + "\n")
    words = tokenizer.train(documents("tokenizer", 10**6), VOCABULARY)
    steps = [Texts([str(folder / "texts")]), Shards(str(folder / "store"), words)]
    began = time.perf_counter()
    LocalPipelineExecutor(
        [*steps, partial(peak, str(folder / "peaks"))],
        tasks=TASKS,
        workers=WORKERS,
        logging_dir=str(folder / "log"),
    ).run()
    took = time.perf_counter() - began
    tokens = open_store(folder / "store").tokens
    peaks = [int(file.read_text()) / 2**10 for file in (folder / "peaks").iterdir()]
    assert len(peaks) == TASKS
    return {
        f"{megabytes} MB, tokens": tokens,
        f"{megabytes} MB, seconds": took,
        f"{megabytes} MB, peak memory of a worker, MiB": max(peaks),
    }


def main() -> None:
    figures: dict[str, float] = {"workers": WORKERS, "tasks": TASKS}
    for megabytes in map(int, sys.argv[1:] or ("100", "1000")):
        with tempfile.TemporaryDirectory() as folder:
            figures |= measure(Path(folder), megabytes)
    report("prepare_sharded", figures)


if __name__ == "__main__":  # workers import this file again
    main()
