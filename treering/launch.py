"""`--devices N`: this command again as N processes, by torchrun's own launcher."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from treering import records
from treering.config import Invalid
from treering.interruption import preemptions


def launch(processes: int, arguments: Sequence[str], out: Path, *, grace: float) -> int:
    """Run `treering ARGUMENTS` as so many processes on this machine; the exit code of the first
    that failed. A process that fails ends the others; a signal is passed on to all, and they have
    `grace` seconds to save: 0 where the records in `out` say that they did."""
    devices = torch.cuda.device_count() if torch.cuda.is_available() else os.cpu_count() or 1
    if not 1 <= processes <= devices:
        raise Invalid(f"--devices {processes}: this machine has {devices}")
    cores = (os.cpu_count() or 1) // processes
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))
    for name in ("torch.distributed.elastic", "torch.distributed.launcher"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the process itself has said why
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle=",".join(n.name for n in (signal.SIGINT, *preemptions())),
        shutdown_timeout=math.ceil(grace) + 5,
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "treering", *arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return int(first.exitcode)
    except SignalException as passed_on:
        return 130 if passed_on.sigval == signal.SIGINT else int(not _saved(out))
    return 0


def _saved(out: Path) -> bool:
    """Whether a run's last words are that all is saved."""
    path = out / "records.jsonl"
    found = records.read(path) if path.exists() else []
    return bool(found) and found[-1].get("reason") in ("preempted", "finished")
