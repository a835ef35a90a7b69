"""What each rank waited for and held, from one scoring to the next."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from treering.mesh import Mesh

T = TypeVar("T")


class Ranks:
    """The clocks of this rank, and how they are laid beside those of the others.

    A rank that waits for another does not compute, so on processors the slowest is the one that
    computed longest. On GPUs that wait is spent on the device, where no clock of the host sees it.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.begin()

    def begin(self) -> None:
        """Set the clocks to zero."""
        self._began, self._computed, self._waited = time.monotonic(), time.process_time(), 0.0

    def waiting(self, batches: Iterator[T]) -> Iterator[T]:
        """The batches, with a clock that runs while one is waited for."""
        while True:
            mark = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - mark
            if batch is None:
                return
            yield batch

    def record(self) -> dict[str, Any]:
        """For all ranks, each of which must ask: `seconds` since `begin`; seconds that each waited
        for text, and that its threads computed; who computed longest, and how long the ranks
        waited for that one in the mean, itself as 0; the most bytes that each has held so far."""
        on_gpu = self._mesh.device.type == "cuda"
        computed = None if on_gpu else time.process_time() - self._computed
        own = (self._waited, computed, _most(self._mesh.device))
        waited, each, most = zip(*self._mesh.gather(own), strict=True)
        times = [seconds for seconds in each if seconds is not None]
        longest = max(times, default=None)
        return {
            "seconds": time.monotonic() - self._began,
            "waited_for_text": list(waited),
            "computed": list(each),
            "slowest": None if longest is None else each.index(longest),
            "waited_for_slowest": None if longest is None else longest - sum(times) / len(times),
            "memory": list(most),
        }


def _most(device: torch.device) -> int:
    """The most bytes that this process has held on its device, or in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")  # its VmHWM begins anew with each process; ru_maxrss not
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 2**10 for line in lines if line.startswith("VmHWM")), 0)
