"""What trainers are compared over: a recipe over text found on this machine, and its batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

from treering import build, config
from treering.demo import texts
from treering.stream import Stream

LENGTH, ROWS, VOCABULARY = 256, 16, 8192
SIZES = {
    "3m": {"preset": "3m"},
    "20m": {"depth": 10, "width": 384, "heads": 6, "mlp": 1024, "tied": True},
}


def prepare(folder: Path, size: str, precision: str, steps: int) -> None:
    """Fill a folder: the recipe, its corpora prepared, and in `batches.npy` the samples of the
    first steps, int64[steps * rows, length + 1]."""
    names = list(texts.collect(folder / "text"))
    table = {
        "length": LENGTH,
        "tokenizer": {"train": VOCABULARY},
        "model": SIZES[size],
        "corpora": {name: {"train": f"text/{name}.jsonl", "validation": 0.05} for name in names},
        "phases": [{"name": "all", "tokens": 10**9, "mixture": dict.fromkeys(names, 1.0)}],
        "schedule": {"kind": "constant", "peak": 1e-3},
        "batch": {"tokens": ROWS * LENGTH},
        "evaluate": {"tokens": ROWS * LENGTH},
        "compute": {"precision": precision},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(table))
    _, data = load(folder)
    stream = Stream(data.planner, data.train, data.steps, LENGTH, VOCABULARY)
    batches = [batch.tokens for batch, _ in islice(stream.batches(data.planner.start()), steps)]
    np.save(folder / "batches.npy", np.concatenate(batches))


def load(folder: Path) -> tuple[config.Recipe, build.Data]:
    """The recipe of a prepared folder, and what it reads."""
    recipe = config.load(folder / "recipe.toml")
    return recipe, build.data(recipe, folder / "cache")


def samples(folder: Path) -> NDArray[np.int64]:
    """The samples of the first steps, in the order of training."""
    found: NDArray[np.int64] = np.load(folder / "batches.npy")
    return found
