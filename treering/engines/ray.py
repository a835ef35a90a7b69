"""Cells as Ray tasks, on a laptop's Ray or a cluster's. The extra `treering[ray]`.

A task whose worker is killed is retried by Ray on whatever node is free; it goes on from the
cell's last checkpoint, wherever the study's folder is shared.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence

from treering.config import Invalid
from treering.engines.process import Job, start

RETRIES = 10  # of a task whose worker or node was lost


def run(
    jobs: Sequence[Job],
    *,
    cpus: float,
    gpus: float,
    watch: Callable[[list[str]], None] = lambda running: None,
) -> Iterator[tuple[Job, int]]:
    """Run every job as a task with its resources; yields each with its exit code as it ends.

    Connects to the Ray of `RAY_ADDRESS`, or starts one on this machine. Raises Invalid where the
    extra is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise Invalid("--engine ray: needs the extra; pip install 'treering[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(_cell)
    pending = {task.options(name=job.name).remote(job): job for job in jobs}
    try:
        while pending:
            watch([job.name for job in pending.values()])
            ready, _ = ray.wait(list(pending), timeout=1.0)
            for reference in ready:
                yield pending.pop(reference), ray.get(reference)
    finally:
        for reference in pending:
            ray.cancel(reference, force=False)  # a KeyboardInterrupt in the worker


def _cell(job: Job) -> int:
    """In the worker: run the cell to its end; interrupted, let it save itself first."""
    process = start(job)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        process.wait()
        raise
