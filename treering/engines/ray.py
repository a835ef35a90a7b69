"""Cells as Ray tasks, on a laptop's Ray or a cluster's. The extra `treering[ray]`.

A task whose worker is killed is retried by Ray on whatever node is free; it goes on from the
cell's last checkpoint, wherever the study's folder is shared.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from treering.config import Invalid
from treering.engines.process import Job, start

RETRIES = 10  # of a task whose worker or node was lost


def check(cpus: float, gpus: float) -> None:
    """Raises Invalid where the extra is not installed, or Ray has no such amounts."""
    for key, amount in (("cpus", cpus), ("gpus", gpus)):
        if not (0 <= amount <= 1 or (amount > 1 and amount == int(amount))):
            raise Invalid(f"--{key} {amount}: must be a whole number, or a share between 0 and 1")
    try:
        found = importlib.util.find_spec("ray")
    except ValueError:  # it is set to None in sys.modules
        found = None
    if found is None:
        raise Invalid("--engine ray: needs the extra; pip install 'treering[ray]'")


def run(
    jobs: Sequence[Job],
    *,
    cpus: float,
    gpus: float,
    watch: Callable[[list[str]], None] = lambda running: None,
) -> Generator[tuple[Job, int], None, None]:
    """Run every job as a task with its resources; yields each with its exit code as it ends, -1
    where its workers were lost time and again. `watch` hears the names of those that have not.

    Connects to the Ray of `RAY_ADDRESS`, or starts one on this machine. Closing the iterator, or a
    Ctrl-C, interrupts what runs and waits until it has saved itself. Raises Invalid where no task
    could ever start on this machine.
    """
    ray: Any = importlib.import_module("ray")  # which is typed in part
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_cell)
    pending: dict[Any, Job] = {}
    try:
        if ours and "RAY_ADDRESS" not in os.environ:  # a cluster may grow
            _fit(ray.cluster_resources(), cpus, gpus)
        pending |= {task.options(name=job.name).remote(job): job for job in jobs}
        while pending:
            watch([job.name for job in pending.values()])
            ready, _ = ray.wait(list(pending), timeout=1.0)
            for reference in ready:
                job = pending.pop(reference)
                yield job, _code(ray, reference, job)
    finally:
        for reference in pending:
            ray.cancel(reference)  # a KeyboardInterrupt in the worker
        if pending:
            ray.wait(list(pending), num_returns=len(pending))
        if ours:
            ray.shutdown()


def _fit(there: Mapping[str, float], cpus: float, gpus: float) -> None:
    """Raises Invalid where a task would wait for ever."""
    for key, name, asked in (("cpus", "CPU", cpus), ("gpus", "GPU", gpus)):
        if asked > there.get(name, 0):
            raise Invalid(f"--{key} {asked:g}: this machine has {there.get(name, 0):g}")


def _code(ray: Any, reference: Any, job: Job) -> int:
    """The exit code of an ended task; what kept it from having one goes to the cell's log."""
    try:
        return int(ray.get(reference))
    except ray.exceptions.RayError as error:
        with suppress(OSError), open(job.log, "a", encoding="utf-8") as log:
            log.write(f"{error}\n")
        return -1


def _cell(job: Job) -> int:
    """In the worker: run the cell to its end; interrupted, let it save itself first."""
    process = start(job)
    try:
        while process.poll() is None:
            time.sleep(0.1)  # Ray's interrupt is heard between two calls, never within one
        return process.returncode
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
