"""The process of one cell."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
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

    It has a session of its own, so that a Ctrl-C reaches it once, through us; and it dies with us,
    so that nothing holds the run's folder when the study is started again.
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
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
