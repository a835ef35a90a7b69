"""Which samples come next (plan), then their tokens (read), ahead of training in a thread.

State --plan--> Plan(refs, replayed, State after) --read--> Batch
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from treering.batch import Batch, Refs
from treering.config import Invalid
from treering.plan import Plan, Planner
from treering.position import State
from treering.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Stream:
    """The batches of a run: a plan, the stores it names samples of, and the phases' lengths.

    Each batch comes with the plan's State after it, which is what a checkpoint saves.
    """

    planner: Planner
    stores: Sequence[Store | None]  # None for a corpus that no step can see
    steps: tuple[int, ...]
    length: int
    vocabulary: int

    def batches(self, state: State, depth: int = 4) -> Iterator[tuple[Batch, State]]:
        """The batches from a State to the run's end, read at most `depth` steps ahead."""
        return ahead(lambda: self._read_on(state), depth)

    def _read_on(self, state: State) -> Iterator[tuple[Batch, State]]:
        while self.planner.entered(state, self.steps).phase < len(self.steps):
            plan = self.planner.plan(state, self.steps)
            yield self.read(plan), plan.after
            state = plan.after

    def read(self, plan: Plan) -> Batch:
        """The tokens of a plan. Raises Invalid for a store that shrank, or that holds an id which
        the model does not have."""
        tokens = self.tokens(plan.refs)
        return Batch(
            tokens, plan.refs, plan.replayed, plan.step, plan.phase, plan.ends_phase,
            plan.begins_phase,
        )  # fmt: skip

    def tokens(self, refs: Refs) -> NDArray[np.int64]:
        """The tokens of samples, int64[n, length + 1]."""
        tokens = np.empty((len(refs), self.length + 1), np.int64)
        for source in np.unique(refs.source).tolist():
            rows, store = refs.source == source, self.stores[source]
            assert store is not None, "a planned corpus has no store"
            found = store.read(refs.index[rows], self.length)
            tokens[rows], largest = found, int(found.max())
            if largest >= self.vocabulary:
                raise Invalid(
                    f"store {store.path}: token id {largest} is beyond the model's vocabulary of "
                    f"{self.vocabulary}; prepare the text with the model's tokenizer"
                )
        return tokens


def ahead(make: Callable[[], Iterator[T]], depth: int) -> Iterator[T]:
    """What `make()` yields, computed in a thread that runs at most `depth` items ahead.

    Its errors are raised here; a thread that ends without a word is an error too. Closing the
    iterator stops the thread.
    """
    assert depth > 1, "one item is in the thread's hand, the others wait in the queue"
    items: queue.Queue[tuple[str, Any]] = queue.Queue(depth - 1)
    closed = threading.Event()

    def put(kind: str, item: Any) -> None:
        while not closed.is_set():
            try:
                return items.put((kind, item), timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in make():
                put("item", item)
                if closed.is_set():
                    return
            put("done", None)
        except BaseException as error:  # whatever it was, the training loop raises it
            put("error", error)

    thread = threading.Thread(target=work, name="treering-reader", daemon=True)
    thread.start()
    try:
        while True:
            try:
                kind, item = items.get(timeout=1.0)
            except queue.Empty:
                if thread.is_alive() or not items.empty():
                    continue
                raise RuntimeError("the reader thread ended without a word") from None
            if kind == "error":
                raise item
            if kind == "done":
                return
            yield item
    finally:
        closed.set()
        thread.join()
