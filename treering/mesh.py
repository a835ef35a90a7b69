"""The ranks of a run: what each computes, what they sum up, what they tell one another.

The engine is PyTorch's own. `torchrun` starts the processes; FSDP2 spreads every weight over the
ranks of `shard` and repeats that over `replicate` (HSDP), and gives DTensors. One process is the
trivial mesh: nothing is wrapped and nothing is sent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.rendezvous import rendezvous

from treering import tables
from treering.config import Invalid
from treering.spread import local, materialize

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # for rank 0's preparation of text, before anything is trained


class Elsewhere(SystemExit):
    """What failed on another rank, which says there why; this one ends, too."""


@dataclass
class Mesh:
    """Rank `rank` of `world`, on its device; `grid` has the dimensions (replicate, shard).

    Gloo's groups are `hosts`, for what processors say, and `spare`; `store` is torchrun's.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    grid: DeviceMesh | None = None
    hosts: dist.ProcessGroup | None = None
    spare: dist.ProcessGroup | None = None
    store: Store | None = None

    def __post_init__(self) -> None:
        self._told, self._asides = count(), count()
        self._asked: dict[str, tuple[torch.Tensor, Any]] = {}

    @property
    def rows(self) -> slice:
        """Of the rows of a batch, those of this rank: row i is that of rank i mod world."""
        return slice(self.rank, None, self.world)

    def most(self, rows: int) -> int:
        """How many of `rows` the busiest rank has: all make as many calls of the model."""
        return -(-rows // self.world)

    def shard(
        self, root: nn.Module, blocks: Sequence[nn.Module], dtype: torch.dtype | None,
        *, stays: bool = False,
    ) -> None:  # fmt: skip
        """Spread the weights over the ranks, block by block, then what is left with the root.

        They are gathered in `dtype` (None: as they are), and gradients are summed, in fp32: the
        loss of a row is divided by the rows of all ranks before. `stays`: what is left remains
        gathered after a call, for others to use.
        """
        if self.grid is None:
            return
        policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        for module in (*blocks, root):
            materialize(module, self.device)  # one after another: never the whole model
            reshard = False if stays and module is root else None
            fully_shard(module, mesh=self.grid, mp_policy=policy, reshard_after_forward=reshard)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no scaled sum

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def dot(self, pairs: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The sum of the inner products of weights, gradients or the like, whole; float64[]."""
        parts = [torch.sum(local(a).double() * local(b).double()) for a, b in pairs]
        total = torch.stack(parts).sum()
        if self.grid is not None:
            dist.all_reduce(total, group=self.grid.get_group("shard"))
        return total

    def any(self, what: str, asked: bool) -> bool:
        """Whether any rank asked for `what`, at the call before: so that nobody waits for the
        device, or for a rank that is a step behind. Every rank gets the same answer."""
        if self.world == 1:
            return asked
        answer = False
        if what in self._asked:
            flag, work = self._asked[what]
            work.wait()
            answer = bool(flag.item())
        flag = torch.full((), float(asked))
        self._asked[what] = flag, dist.all_reduce(flag, group=self.hosts, async_op=True)
        return answer

    def gather(self, item: T) -> list[T]:
        """Every rank's item, in the order of ranks, on every rank."""
        found: list[Any] = [item] * self.world
        if self.world > 1:
            dist.all_gather_object(found, item, group=self.hosts)
        return found

    def told(self, work: Callable[[], T]) -> T:
        """What `work` returns on rank 0, on every rank; to the others as JSON says it, paths as
        their names. They wait as long as it takes, and raise Elsewhere where it failed."""
        if self.store is None:
            return work()
        key = f"told {next(self._told)}"
        if self.rank == 0:
            try:
                value = work()
            except BaseException:
                self.store.set(key, json.dumps([False, None]))
                raise
            self.store.set(key, json.dumps([True, value], default=str))
            return value
        self.store.wait([key], PATIENCE)
        done, value = json.loads(self.store.get(key))
        if not done:
            raise Elsewhere("rank 0 failed, and says why")
        return value

    def first(self, work: Callable[[], T]) -> T:
        """What `work` returns; rank 0 does it before the others, which then find its files."""
        found: list[T] = []
        self.told(lambda: found.append(work()))
        return found[0] if found else work()

    def together(self, work: Callable[[], T]) -> list[T]:
        """What `work` returns on each rank. Where it fails on one, it fails on all: on the others
        with Elsewhere, which names the rank and its error."""
        if self.world == 1:
            return [work()]
        own: Exception | None = None
        found: Any = None
        try:
            found = work()
        except Exception as error:
            own = error
        every = self.gather((found, None if own is None else f"{type(own).__name__}: {own}"))
        if own is not None:
            raise own
        failed = [f"rank {i}: {error}" for i, (_, error) in enumerate(every) if error]
        if failed:
            raise Elsewhere("; ".join(failed))
        return [result for result, _ in every]

    def aside(self) -> Mesh:
        """The same ranks with a group and words of their own, for another thread."""
        if self.spare is None or self.store is None:
            return self
        name = f"aside {next(self._asides)}"
        store = PrefixStore(name, self.store.clone())  # type: ignore[attr-defined]  # not in its stubs
        return Mesh(self.rank, self.world, self.device, self.grid, self.spare, store=store)


def fit(wanted: tables.Mesh, world: int) -> tuple[int, int]:
    """(replicate, shard) for so many processes. Raises Invalid where they do not make them up."""
    shard = wanted.shard or max(1, world // wanted.replicate)
    if wanted.replicate * shard != world:
        raise Invalid(
            f"mesh = {{ replicate = {wanted.replicate}, shard = {shard} }}: needs "
            f"{wanted.replicate * shard} processes, there are {world}; start as many by "
            "`treering run --devices N` or torchrun, or leave [mesh] out"
        )
    return wanted.replicate, shard


@contextmanager
def joined(wanted: tables.Mesh) -> Iterator[Mesh]:
    """The mesh of the processes that torchrun started, or the trivial one of this process.

    Raises Invalid where `wanted` does not fit their number.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    sizes = fit(wanted, world)
    own = device()
    if world == 1:
        yield Mesh(device=own)
        return
    patience = timedelta(seconds=wanted.timeout)
    shared, _, _ = next(rendezvous("env://", rank, world))
    nth = (shared.add("joined", 1) - 1) // world  # a process may train one recipe after another
    store = PrefixStore(f"joined {nth}", shared)
    backend = "cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=PrefixStore("group", store), rank=rank, world_size=world,
        timeout=patience, device_id=own if own.type == "cuda" else None,
    )  # fmt: skip
    try:
        grid = init_device_mesh(own.type, sizes, mesh_dim_names=("replicate", "shard"))
        groups = [dist.new_group(backend="gloo", timeout=patience) for _ in range(2)]
        told = PrefixStore("told", store)
        yield Mesh(rank, world, own, grid, groups[0], groups[1], told)
    finally:
        dist.destroy_process_group()


def device() -> torch.device:
    """The device of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(found)
    return found
