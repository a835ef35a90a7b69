"""What the benches share: a synthetic store, alternation, the machine's name, a results file."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from treering.store import Store, open_store
from treering.writer import Writer, commit

VOCABULARY = 8192


def synthetic(folder: Path, name: str, tokens: int) -> Store:
    """A store of random tokens in documents of 1,000."""
    draw = np.random.default_rng(len(name))
    writer = Writer(str(folder / name), VOCABULARY)
    for start in range(0, tokens, 1000):
        writer.add(draw.integers(0, VOCABULARY, min(1000, tokens - start), np.uint16))
    commit({writer: {"tokenizer": "synthetic", "end_of_text": 0, "bytes": tokens}})
    return open_store(folder / name)


def alternate(arms: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, the arms taking turns, every other round in the other order."""
    took: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(rounds):
        names = list(arms) if round_ % 2 == 0 else list(arms)[::-1]
        for name in names:
            began = time.perf_counter()
            arms[name]()
            took[name].append(time.perf_counter() - began)
    return took


def ratio(took: dict[str, list[float]], arm: str, plain: str) -> float:
    """Median over rounds of one arm's time over the plain arm's in the same round."""
    pairs = zip(took[arm], took[plain], strict=True)
    return statistics.median(a / b for a, b in pairs)


def machine() -> str:
    """The processor and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def report(name: str, figures: dict[str, Any]) -> None:
    """Print the figures and keep them in bench/results/NAME.json."""
    figures = {"machine": machine(), **figures}
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=1) + "\n")
    for key, value in figures.items():
        print(f"{key:44} {value}")
