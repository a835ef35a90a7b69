"""What several tests need: a store of integers, a tiny model that learns, batches for it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tiny
from hypothesis import settings

from treering.batch import Batch, refs
from treering.store import Store, open_store
from treering.writer import Writer, commit

if TYPE_CHECKING:
    from treering.learner import Learner

LENGTH, VOCABULARY = 8, 64
settings.register_profile("thorough", max_examples=3000, deadline=None)
# What nohup and a shell's "&" leave ignored would stay so in the processes that tests start.
for number, heard in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, heard)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny recipe and its texts."""
    return tiny.place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def recipe(place: Path) -> Path:
    return place / "recipe.toml"


@pytest.fixture(scope="module")
def forks(place: Path) -> Iterator[tiny.Forks]:
    """A warm process that runs the tiny recipe in forks of its own."""
    with tiny.Forks(place) as forks:
        yield forks


@pytest.fixture(scope="module")
def unbroken(forks: tiny.Forks) -> Path:
    """The tiny recipe's run, uninterrupted, on one rank."""
    out = forks.place / "unbroken"
    assert forks.run(out)[0] == 0
    return out


@pytest.fixture
def store_of(tmp_path: Path) -> Callable[..., Store]:
    """`store_of(name, tokens)` writes the tokens as a store of one document and opens it."""

    def make(name: str, tokens: Sequence[int], vocabulary: int = VOCABULARY) -> Store:
        writer = Writer(tmp_path / name, vocabulary)
        writer.add(np.array(tokens, np.int64))
        commit({writer: {"tokenizer": "abc", "end_of_text": 0, "bytes": 1, "skipped": 0}})
        return open_store(tmp_path / name)

    return make


@pytest.fixture
def learner_of() -> Iterator[Callable[..., Learner]]:
    """`learner_of(rows=2, decay=0.1, ...)`: a Llama of one layer, eager, with its optimizer.

    One thread: at this size more of them only wait for one another.
    """
    import torch

    from treering import groups, model, tables
    from treering.forward import forward
    from treering.learner import Learner
    from treering.mesh import Mesh
    from treering.methods.objectives import NextToken

    shape = tables.Model(width=16, depth=1, heads=2, mlp=32, tied=False)

    def make(
        *,
        rows: int = 4,
        precision: str = "fp32",
        spike: float = 0.0,
        rate: float = 1e-2,
        seed: int = 0,
        objective: tables.Objective | None = None,
        **optimizer: object,
    ) -> Learner:
        settings = tables.Optimizer(**optimizer)  # type: ignore[arg-type]
        fresh = model.fresh(model.llama(shape, VOCABULARY, LENGTH), seed)
        groups.frozen(fresh, settings.groups)
        compute = tables.Compute(compile=False, precision=precision, deterministic=True)
        call = forward(model.Root(fresh, NextToken()), compute, rows, Mesh())
        guard = tables.Guard(spike)
        made = Learner(call, settings, guard, objective=objective, flops_per_token=100.0)
        made.set_rate(rate)
        return made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make
    torch.set_num_threads(threads)


def batches(
    *phases: int, rows: int = 4, seed: int = 0, length: int = LENGTH, replayed: int = 0
) -> list[Batch]:
    """Random tokens for phases of so many steps; the last `replayed` rows count as replayed."""
    random = np.random.default_rng(seed)
    made: list[Batch] = []
    for phase, steps in enumerate(phases):
        for step in range(steps):
            made.append(
                Batch(
                    random.integers(0, VOCABULARY, (rows, length + 1)),
                    refs([(0, len(made) * rows + row) for row in range(rows)]),
                    np.arange(rows) >= rows - replayed,
                    len(made),
                    phase,
                    ends_phase=step + 1 == steps,
                    begins_phase=step == 0,
                )
            )
    return made


@pytest.fixture
def batches_of() -> Callable[..., list[Batch]]:
    """`batches_of(3, 2)`: five steps of random tokens in two phases."""
    return batches


def chance(counts: np.ndarray, draws: int) -> float:
    """Probability that `draws` draws of equally many distinct items, uniform, are as uneven as
    these counts of each item: chi-square, corrected for drawing without replacement (the variance
    shrinks by (n - k) / (n - 1)), its tail by Wilson and Hilferty's approximation."""
    from math import erfc, sqrt

    n, k = counts.size, counts.sum() / draws
    expected = draws * k / n
    statistic = ((counts - expected) ** 2 / expected).sum() * (n - 1) / (n - k)
    freedom = n - 1
    spread = 2 / (9 * freedom)
    z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / sqrt(spread)
    return erfc(z / sqrt(2)) / 2


@pytest.fixture(scope="session")
def chance_of() -> Callable[[np.ndarray, int], float]:
    """Chi-square test of uniformity: the smaller, the less believable."""
    return chance
