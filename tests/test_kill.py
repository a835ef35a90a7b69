"""kill -9 at any moment: the run that goes on is the run that was never killed, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tiny import STEPS, Forks, Sitting, assert_same_run, place, story

from treering import records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
TRIALS = 20


@dataclass
class Killing:
    """A run that was never killed, how long it took, and what happened to those that were."""

    forks: Forks
    unbroken: Path
    seconds: float
    kills: int = 0
    within_checkpoint: int = 0  # a half-written one was left behind
    resumed: list[int] = field(default_factory=list)  # steps


@pytest.fixture(scope="module")
def killing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    folder = place(tmp_path_factory.mktemp("kill"))
    with Forks(folder) as forks:
        assert forks.run(folder / "first")[0] == 0  # the first one fills caches
        began = time.monotonic()
        assert forks.run(folder / "unbroken")[0] == 0
        yield Killing(forks, folder / "unbroken", time.monotonic() - began)


def half_written(out: Path, since: int = 0) -> set[str]:
    """Checkpoints that are being written, or were when the run was killed."""
    found = set()
    for path in (out / "checkpoints").glob(".step-*.tmp"):
        with suppress(FileNotFoundError):  # it was finished in the meantime
            if path.stat().st_mtime_ns > since:
                found.add(path.name)
    return found


def kill(sitting: Sitting) -> bool:
    """Whether it was still there to be killed."""
    os.kill(sitting.pid, signal.SIGKILL)  # it is reaped only when its forker is asked
    return sitting.wait()[0] == -signal.SIGKILL


def wait_for_half_written(out: Path, since: int, nth: int, seconds: float) -> None:
    """Return when the n-th checkpoint of this sitting is being written, or time is over."""
    end, seen = time.monotonic() + seconds, set[str]()
    while len(seen) < nth and time.monotonic() < end:
        seen |= half_written(out, since)


@pytest.mark.parametrize("trial", range(TRIALS))
def test_a_killed_run_goes_on_as_if_it_had_not_been(killing: Killing, trial: int) -> None:
    luck, out = random.Random(f"kill {trial}"), killing.unbroken.with_name(f"killed-{trial}")
    for _ in range(luck.choice((1, 1, 1, 2, 3))):
        since, sitting = time.time_ns(), killing.forks.start(out)
        if trial % 3 == 0:
            wait_for_half_written(out, since, luck.randint(1, 4), 2 * killing.seconds)
            time.sleep(luck.choice((0, 0, luck.uniform(0, 0.01))))
        else:
            time.sleep(luck.uniform(0.1, 0.95) * killing.seconds)
        killing.kills += kill(sitting)
        killing.within_checkpoint += len(half_written(out, since))
    code, log = killing.forks.run(out)
    assert code == 0, log
    if "resuming after step" in log:
        killing.resumed.append(int(log.split("resuming after step")[1].split()[0]))
    assert_same_run(out, killing.unbroken)
    assert not half_written(out)


def test_the_kills_fell_where_they_hurt(killing: Killing) -> None:
    """Within checkpoints, within Reptile's cycles, within both phases; the run itself is whole."""
    if killing.kills == 0:
        pytest.skip("the trials did not run")
    assert killing.kills >= TRIALS
    assert killing.within_checkpoint >= 3
    assert any(step % 5 for step in killing.resumed)
    assert any(step < STEPS / 2 for step in killing.resumed)
    assert any(STEPS / 2 < step < STEPS for step in killing.resumed)
    kinds = [record["kind"] for record in records.read(killing.unbroken)]
    assert kinds.count("step") == STEPS and kinds.count("header") == 1
    assert any(
        record["kind"] == "step" and record["replayed"] > 0 for record in story(killing.unbroken)
    )
