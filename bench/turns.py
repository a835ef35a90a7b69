"""Trainers that take turns, each in a process of its own that keeps its model and is asked for so
many steps at a time.

`Side` is such a process as the bench sees it, `Turns` the bench as the process sees it. A process
may have other packages than ours: this file needs torch alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class Side:
    """A process that trains when it is told to. Give it steps until what it compiles is compiled;
    its peak of memory is counted from the first steps' end."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with open(log, "w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )

    def train(self, steps: int) -> float:
        """Seconds that so many more steps took."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended: its log says why
            raise RuntimeError(self._log.read_text()[-3000:]) from None
        return float(self._answer()["seconds"])

    def end(self) -> dict[str, Any]:
        """The losses of all its steps and the FLOPs charged to them; MiB: `memory` of its peak,
        `above` of that without what the process had before it had a model."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = self._answer()
        self._process.wait()
        return found

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("turn "):  # the trainers print, too
                found: dict[str, Any] = json.loads(line.removeprefix("turn "))
                return found
        raise RuntimeError(self._log.read_text()[-3000:])


def begun(commands: Mapping[str, Sequence[str]], folder: Path, steps: int) -> dict[str, Side]:
    """A process for each command, which has made its first steps.

    Each is begun twice, so that it finds in a cache what it compiles: compiling leaves up to 300
    MiB behind in a process, and who was measured last would have the smaller peak.
    """

    def started() -> dict[str, Side]:
        sides = {name: Side(given, folder / f"{name}.log") for name, given in commands.items()}
        for side in sides.values():
            side.train(steps)
        return sides

    for side in started().values():
        side.end()
    return started()


class Turns:
    """What a process does between two steps. Make it before the model."""

    def __init__(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._start = highest()
        self._left, self._began, self._turns, self._flops = 0, 0.0, 0, 0.0

    def begin(self) -> None:
        """Wait for the first turn: call it when the first step can begin."""
        self._next()

    def loss(self, loss: torch.Tensor) -> None:
        """Keep a step's loss."""
        self._losses.append(loss.detach())

    def charge(self, flops: float) -> None:
        """A step cost so much, where it says so."""
        self._flops += flops

    def stepped(self) -> None:
        """A step is done. Returns when there is another one to do, and ends the process where
        there is none."""
        self._left -= 1
        if self._left:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        _say({"seconds": time.perf_counter() - self._began})
        self._turns += 1
        if self._turns == 1:
            forget_highest()
        self._next()

    def _next(self) -> None:
        line = sys.stdin.readline()
        if not line:
            losses = [float(loss) for loss in self._losses]
            memory = {"memory": highest(), "above": highest() - self._start}
            _say({"losses": losses, "flops": self._flops} | memory)
            os._exit(0)  # at once: a trainer's threads and checkpoints at exit are nobody's
        self._left, self._began = int(line), time.perf_counter()


def highest() -> float:
    """Peak memory of this process so far, in MiB: of its device, or resident (its own: ru_maxrss
    begins with the parent's)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def forget_highest() -> None:
    """Count the peak from now on."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _say(answer: dict[str, Any]) -> None:
    print("turn", json.dumps(answer), flush=True)
