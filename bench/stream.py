"""Tokens per second that the stream alone plans and reads: `python bench/stream.py`."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from common import VOCABULARY, report, synthetic

from treering.batch import Batch
from treering.lengths import lengths
from treering.methods.memories import Everything
from treering.plan import Planner, Stage
from treering.position import State
from treering.store import Store
from treering.stream import Stream

TOKENS, STEPS, ROUNDS = 50_000_000, 50, 7


def stream(stores: list[Store], *, length: int, rows: int) -> Iterator[tuple[Batch, State]]:
    """Two corpora with a quarter of replay, in steps of rows * length tokens."""
    sizes = tuple(store.samples(length) for store in stores)
    rule = Planner(
        seed=0,
        names=("a", "b"),
        sizes=sizes,
        past=(True, False),
        stages=(Stage(10**9, (1, 1)),),
        rows=rows,
        share=Fraction(1, 4),
        budget="total",
        memory=Everything(),
        over="all",
    )
    made = Stream(rule, stores, lengths(rule), length, VOCABULARY)
    return made.batches(rule.start())


def main() -> None:
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        stores = [synthetic(Path(folder), name, TOKENS) for name in ("a", "bb")]
        for length, rows in ((256, 16), (2048, 64), (4096, 256)):
            rates = []
            batches = stream(stores, length=length, rows=rows)
            next(batches)
            for _ in range(ROUNDS):
                began = time.perf_counter()
                for _ in range(STEPS):
                    next(batches)
                rates.append(STEPS * rows * length / (time.perf_counter() - began))
            batches.close()  # type: ignore[attr-defined]
            figures[f"{rows} x {length} tokens a step, tokens/s"] = statistics.median(rates)
    report("stream", figures)


if __name__ == "__main__":
    main()
