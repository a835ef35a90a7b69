"""The process of one cell."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


@dataclass(frozen=True)
class Job:
    """A cell to be run: what an engine needs of it. `threads`: of the process, 0 = all cores."""

    name: str
    recipe: str
    out: str
    log: str
    cache: str | None
    threads: int = 0


def start(job: Job) -> subprocess.Popen[bytes]:
    """`treering run` of a cell, its output appended to its log.

    It has a session of its own, so that a Ctrl-C reaches it once, through us; and on Linux it dies
    with us, so that nothing holds the run's folder when the study is started again.
    """
    command = [sys.executable, "-m", "treering", "run", job.recipe, "--out", job.out]
    command += ["--cache", job.cache] if job.cache else []
    environment = dict(os.environ)
    if job.threads:
        environment |= {"OMP_NUM_THREADS": str(job.threads)}
    Path(job.log).parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=_bound_to_us(),
        )


def _bound_to_us() -> Callable[[], None]:
    """What the child calls before it becomes the cell.

    Whatever can be done before the fork is done here: there may be threads, and a lock that one of
    them holds is never released in the child.
    """
    us, linux = os.getpid(), sys.platform == "linux"
    prctl = ctypes.CDLL(None).prctl if linux else None

    def call() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != us:  # we died before that
                os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ray's workers have it blocked
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    return call
