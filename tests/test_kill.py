"""kill -9 at any moment: what goes on is what was never killed, bit for bit.

Hundreds of trials instead of twenty: python tests/soak.py --trials 200
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import killing
import pytest
from killing import Killing, Trial
from tiny import STEPS, story

from treering import records

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")
# By kind the seeds: of preparations those whose kills fall among the renames as well.
TRIALS = {"run": range(7), "checkpoint": range(5), "prepare": range(5, 9), "export": range(4)}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    with killing.killing(tmp_path_factory.mktemp("kill")) as killed:
        yield killed


@pytest.fixture(scope="module")
def trials() -> list[Trial]:
    """Those that were made."""
    return []


@pytest.mark.parametrize(
    ("kind", "seed"), [(kind, seed) for kind, seeds in TRIALS.items() for seed in seeds]
)
def test_what_was_killed_goes_on_as_if_it_had_not_been(
    killed: Killing, trials: list[Trial], kind: str, seed: int
) -> None:
    trials.append(killed.trial(kind, seed))


def test_the_kills_fell_where_they_hurt(killed: Killing, trials: list[Trial]) -> None:
    """Within checkpoints, within Reptile's cycles, within both phases; the run itself is whole."""
    if len(trials) < sum(map(len, TRIALS.values())):
        pytest.skip("not all trials ran")
    fell = [where for trial in trials for where in trial.fell]
    resumed = [step for trial in trials for step in trial.resumed]
    assert len(fell) - fell.count("after the end") >= 12
    assert fell.count("within a checkpoint") >= 3
    assert fell.count("while it was made") >= 2
    assert fell.count("among the renames") >= 1
    assert any(step % 5 for step in resumed)
    assert any(step < STEPS / 2 for step in resumed)
    assert any(STEPS / 2 < step < STEPS for step in resumed)
    kinds = [record["kind"] for record in records.read(killed.unbroken)]
    assert kinds.count("step") == STEPS and kinds.count("header") == 1
    assert any(
        record["kind"] == "step" and record["replayed"] > 0 for record in story(killed.unbroken)
    )
