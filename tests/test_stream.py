"""The stream: a plan's tokens, read ahead of training in a thread that cannot fail in silence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from updating import LearnerOf, same

from treering.batch import Batch, refs
from treering.config import Invalid
from treering.lengths import lengths
from treering.loop import Rules, train
from treering.methods.memories import Balanced, Everything, Reservoir
from treering.methods.updates import Descent
from treering.plan import Planner, Stage
from treering.protocols import Memory
from treering.rng import key, permute
from treering.store import Store
from treering.stream import Stream, ahead

LENGTH = 4
StoreOf = Callable[..., Store]


def stream_of(*stores: Store, share: str = "1/4", samples: int = 60) -> Stream:
    """One phase for each store."""
    n = len(stores)
    planner = Planner(
        seed=0,
        names=tuple("abc"[:n]),
        sizes=tuple(store.samples(LENGTH) for store in stores),
        past=(False,) * n,
        stages=tuple(Stage(samples, tuple(int(i == p) for i in range(n))) for p in range(n)),
        rows=4,
        share=Fraction(share),
        budget="total",
        memory=Everything(),
        over="all",
    )
    return Stream(planner, stores, lengths(planner), LENGTH, 64)


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "treering-reader"]


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_the_tokens_of_a_batch_are_those_of_the_bin_at_its_places(
    store_of: StoreOf, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    stores = [store_of(name, random.integers(0, 64, n)) for name, n in (("x", 701), ("y", 333))]
    raw = [np.fromfile(tmp_path / f"{name}.bin", "u1") for name in ("x", "y")]
    stream, count = stream_of(*stores), 0
    for batch, after in stream.batches(stream.planner.start()):
        assert batch.tokens.shape == (4, LENGTH + 1)
        for row, (source, index) in zip(batch.tokens, batch.refs.pairs(), strict=True):
            at = index * LENGTH
            assert row.tolist() == raw[source][at : at + LENGTH + 1].tolist()
        count += 1
        assert after.step == batch.step + 1 == count
    assert count == sum(stream.steps) == 30
    assert readers() == []


def test_the_last_sample_of_a_store_is_read_whole(store_of: StoreOf) -> None:
    store = store_of("x", range(21))  # five samples of 4, exactly; 22 would be one token idle
    stream = stream_of(store, share="0", samples=5)
    rows = [row for batch, _ in stream.batches(stream.planner.start()) for row in batch.tokens]
    assert sorted(row.tolist() for row in rows[:5]) == [
        list(range(i, i + 5)) for i in range(0, 20, 4)
    ]


def test_the_batches_from_a_later_state_are_the_same(store_of: StoreOf) -> None:
    stream = stream_of(store_of("x", range(60)), store_of("y", range(50)))
    whole = list(stream.batches(stream.planner.start()))
    again = list(stream.batches(whole[11][1]))
    assert len(again) == len(whole) - 12
    for (a, _), (b, _) in zip(again, whole[12:], strict=True):
        assert (a.tokens == b.tokens).all()
        assert (a.replayed == b.replayed).all()
        assert (a.step, a.phase, a.ends_phase) == (b.step, b.phase, b.ends_phase)


def test_a_token_id_beyond_the_vocabulary_is_refused_with_the_name_of_its_store(
    store_of: StoreOf,
) -> None:
    good, bad = (
        store_of("good", range(60)),
        store_of("bad", [*range(20), 64, *range(30)], vocabulary=200),
    )
    stream = stream_of(good, bad)
    with pytest.raises(Invalid, match=r"bad\.bin: token id 64 is beyond .* vocabulary of 64; \w+"):
        for batch, _ in stream.batches(stream.planner.start()):
            assert batch.tokens.max() < 64
    assert readers() == []


def test_a_store_that_shrinks_mid_run_raises_in_the_loop(store_of: StoreOf, tmp_path: Path) -> None:
    stream = stream_of(store_of("x", list(range(60)) * 20), samples=1200)
    seen = 0
    with pytest.raises(Invalid, match=r"x\.bin: ends too early"):
        for batch, _ in stream.batches(stream.planner.start()):
            assert len(batch) == 4  # never less than was planned
            seen += 1
            if seen == 3:
                os.truncate(tmp_path / "x.bin", 100)
    assert 3 <= seen <= 3 + 4  # what was read before the cut
    assert readers() == []


def test_ahead_yields_everything_in_order() -> None:
    assert list(ahead(lambda: iter(range(50)), 3)) == list(range(50))


def test_an_error_of_the_reader_is_raised_where_it_is_consumed() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("no such disk")

    got = []
    with pytest.raises(OSError, match="no such disk"):
        for item in ahead(failing, 4):
            got.append(item)
    assert got == [1, 2]  # what was read before is not lost
    assert readers() == []


def test_even_an_exit_in_the_reader_is_raised() -> None:
    def leaving() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        list(ahead(leaving, 2))


@pytest.mark.parametrize("depth", [2, 4])
def test_the_reader_runs_at_most_depth_items_ahead(depth: int) -> None:
    made: list[int] = []

    def counting() -> Iterator[int]:
        for i in range(30):
            made.append(i)
            yield i

    items = ahead(counting, depth)
    for i in range(12):
        assert next(items) == i
        until(lambda: len(made) >= min(30, i + 1 + depth))  # noqa: B023
        time.sleep(0.02)
        assert len(made) == i + 1 + depth
    items.close()  # type: ignore[attr-defined]


def test_closing_the_iterator_ends_the_thread_also_when_its_queue_is_full() -> None:
    def endless() -> Iterator[int]:
        i = 0
        while True:
            yield i
            i += 1

    items = ahead(endless, 3)
    assert next(items) == 0
    assert len(readers()) == 1
    begin = time.monotonic()
    items.close()  # type: ignore[attr-defined]
    assert readers() == []
    assert time.monotonic() - begin < 2


def test_a_thread_that_dies_without_a_word_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "run", lambda self: None)
    with pytest.raises(RuntimeError, match="the reader thread ended without a word"):
        next(ahead(lambda: iter(range(3)), 2))


def test_a_slow_reader_is_waited_for() -> None:
    def slow() -> Iterator[int]:
        yield 0
        time.sleep(1.2)  # longer than one wait of the consumer
        yield 1

    assert list(ahead(slow, 2)) == [0, 1]


@pytest.mark.parametrize("memory", [Everything(), Reservoir(9), Balanced()])
def test_share_0_trains_bit_for_bit_as_sequential_training(
    learner_of: LearnerOf, store_of: Callable[..., Store], memory: Memory
) -> None:
    random, length = np.random.default_rng(0), 8
    tokens = [random.integers(0, 64, 401), random.integers(0, 64, 241)]
    stores = [store_of(f"{type(memory).__name__}{i}", part) for i, part in enumerate(tokens)]
    stages = (Stage(20, (1, 0)), Stage(12, (0, 1)))
    sizes = tuple(store.samples(length) for store in stores)
    planner = Planner(
        7, ("a", "b"), sizes, (False, True), stages, 4, Fraction(0), "total", memory, "all"
    )
    stream = Stream(planner, stores, lengths(planner), length, 64)
    replay, sequential = learner_of(), learner_of()
    rules = Rules(7, lambda step: 1e-2 / (step + 1))
    for done in train(replay, Descent(), stream.batches(planner.start()), rules):
        assert not done.batch.replayed.any()
    step = 0
    for name, part, size, count in zip("ab", tokens, sizes, (20, 12), strict=True):
        order = permute(np.arange(count), size, key(7, "order", name, 0))
        for first in range(0, count, 4):
            at = order[first : first + 4] * length
            rows = np.stack([part[i : i + length + 1] for i in at])
            empty = Batch(rows, refs([(0, 0)] * 4), np.zeros(4, bool), step, 0, False)
            sequential.set_rate(1e-2 / (step + 1))
            Descent()(sequential, empty)
            step += 1
    assert same(replay.params, sequential.params)
