"""Cells as processes of this machine, some at a time."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Generator, Sequence

from treering.engines.process import Job, start


def run(
    jobs: Sequence[Job], at_once: int, watch: Callable[[list[str]], None] = lambda running: None
) -> Generator[tuple[Job, int], None, None]:
    """Run the jobs in order, `at_once` of them at a time; yields each with its exit code as it
    ends. `watch` hears the names of the running ones, several times a second.

    Closing the iterator, or a Ctrl-C, interrupts what runs and waits until it has saved itself.
    """
    waiting, running = list(jobs), dict[str, tuple[Job, subprocess.Popen[bytes]]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                running[job.name] = job, start(job)
            watch(list(running))
            for job, process in list(running.values()):
                code = process.poll()
                if code is not None:
                    del running[job.name]
                    yield job, code
            time.sleep(0.2 if running else 0.0)
    finally:
        for _, process in running.values():
            process.send_signal(signal.SIGINT)
        for _, process in running.values():
            process.wait()
