"""The readers: how each writes the samples in its format, and gives them in random order.

Treering's sample i is the tokens [i * length, i * length + length], both ends included; the others
are given the same samples, each cut out of the same tokens, in uint16 and a format of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

CHUNK = 1 << 26  # bytes of a file of the formats that have several: their own default


@dataclass(frozen=True)
class Work:
    """What every reader is asked: the tokens' folder, the samples' shape, and its processes."""

    folder: Path
    length: int
    rows: int
    samples: int
    workers: int

    def sample(self, index: int) -> NDArray[np.uint16]:
        tokens = np.memmap(self.folder / "tokens.bin", np.uint16, "r")
        return np.array(tokens[index * self.length : (index + 1) * self.length + 1])


Batches = Iterator[torch.Tensor]
Opened = tuple[Batches, Callable[[], Any]]  # from a state on (None: the start); the state now


def int64(samples: Iterable[Any]) -> torch.Tensor:
    """A batch as training takes it."""
    rows = [sample["tokens"] for sample in samples]
    return torch.from_numpy(np.stack(rows).astype(np.int64, copy=False))


def treering(work: Work, state: Any) -> Opened:
    from fractions import Fraction

    from treering.lengths import lengths
    from treering.methods.memories import Everything
    from treering.plan import Planner, Stage
    from treering.store import open_store
    from treering.stream import Stream

    store = open_store(work.folder / "tokens")
    rule = Planner(
        seed=0,
        names=("a",),
        sizes=(work.samples,),
        past=(False,),
        stages=(Stage(work.samples, (1,)),),
        rows=work.rows,
        share=Fraction(0),
        budget="total",
        memory=Everything(),
        over="all",
    )
    stream = Stream(rule, [store], lengths(rule), work.length, 65_536)
    now = [state or rule.start()]

    def batches() -> Batches:
        for batch, after in stream.batches(now[0]):
            now[0] = after
            yield torch.from_numpy(batch.tokens)

    return batches(), lambda: now[0]


def mosaicml_write(work: Work) -> None:
    from streaming import MDSWriter

    column = {"tokens": f"ndarray:uint16:{work.length + 1}"}
    with MDSWriter(columns=column, out=str(work.folder / "mosaicml"), size_limit=CHUNK) as out:
        for index in range(work.samples):
            out.write({"tokens": work.sample(index)})


def mosaicml(work: Work, state: Any) -> Opened:
    from streaming import StreamingDataLoader, StreamingDataset

    data = StreamingDataset(local=str(work.folder / "mosaicml"), shuffle=True, batch_size=work.rows)
    loader = StreamingDataLoader(
        data, batch_size=work.rows, num_workers=work.workers, collate_fn=int64
    )
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader), loader.state_dict


@dataclass(frozen=True)
class Block:
    """A sample as litdata's workers are sent it."""

    work: Work

    def __call__(self, index: int) -> Iterator[torch.Tensor]:
        yield torch.from_numpy(self.work.sample(index))


def litdata_write(work: Work) -> None:
    from litdata import TokensLoader, optimize

    block = work.length + 1
    optimize(
        Block(work),
        list(range(work.samples)),
        str(work.folder / "litdata"),
        num_workers=1,
        chunk_size=block * max(1, CHUNK // (2 * block)),  # whole samples in each chunk
        item_loader=TokensLoader(block_size=block),
        verbose=False,
    )


def litdata(work: Work, state: Any) -> Opened:
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    data = StreamingDataset(
        str(work.folder / "litdata"),
        item_loader=TokensLoader(block_size=work.length + 1),
        shuffle=True,
    )
    loader = StreamingDataLoader(data, batch_size=work.rows, num_workers=work.workers)
    if state is not None:
        loader.load_state_dict(state)
    return (batch.long() for batch in loader), loader.state_dict


def datasets_write(work: Work) -> None:
    import datasets
    import pyarrow as pa

    flat = np.concatenate([work.sample(index) for index in range(work.samples)])
    rows = pa.FixedSizeListArray.from_arrays(pa.array(flat), work.length + 1)
    datasets.Dataset(pa.table({"tokens": rows})).save_to_disk(str(work.folder / "datasets"))


def datasets(work: Work, state: Any) -> Opened:
    """Map-style: a sampler's batch is asked for at once. The library has no state: the sampler,
    whose order is that of a seed, is taken up where it was."""
    from datasets import load_from_disk

    data = load_from_disk(str(work.folder / "datasets")).with_format("numpy")
    order = RandomSampler(range(work.samples), generator=torch.Generator().manual_seed(0))
    now = [state or 0]
    rest = itertools.islice(BatchSampler(order, work.rows, False), now[0], None)
    loader = DataLoader(
        data, batch_size=None, sampler=rest, num_workers=work.workers,
        collate_fn=of_columns,  # type: ignore[arg-type]
    )  # fmt: skip

    def batches() -> Batches:
        for batch in loader:
            now[0] += 1
            yield batch

    return batches(), lambda: now[0]


def of_columns(batch: dict[str, NDArray[np.uint16]]) -> torch.Tensor:
    return torch.from_numpy(batch["tokens"].astype(np.int64, copy=False))


def datasets_iterable(work: Work, state: Any) -> Opened:
    from datasets import load_from_disk

    data = load_from_disk(str(work.folder / "datasets")).to_iterable_dataset(num_shards=20)
    data = data.with_format("numpy").shuffle(seed=0)  # of 10 shards at once: 20 for two workers
    if state is not None:
        data.load_state_dict(state)
    loader = DataLoader(data, batch_size=work.rows, num_workers=work.workers, collate_fn=int64)
    return iter(loader), data.state_dict


READERS: dict[str, Callable[[Work, Any], Opened]] = {
    "treering": treering,
    "mosaicml": mosaicml,
    "litdata": litdata,
    "datasets": datasets,
    "datasets-iterable": datasets_iterable,
}
WRITERS = {"mosaicml": mosaicml_write, "litdata": litdata_write, "datasets": datasets_write}
