"""`--devices N`: this command again as N processes, by torchrun's own launcher."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from treering.config import Invalid


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `treering ARGUMENTS` as so many processes on this machine; the exit code of the first
    that failed. A process that ends early ends the others."""
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
    )
    try:
        elastic_launch(settings, sys.executable)("-m", "treering", *arguments)
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return int(first.exitcode)
    return 0
