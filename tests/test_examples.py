"""The examples do what they say, with a scheduler that only pretends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples/study.slurm"
COMMAND = """#!/bin/bash
echo "$@" >> "$SAID"
trap 'echo saved >> "$SAID"; exit 130' INT
for _ in $(seq {turns}); do sleep 0.05; done
exit {code}
"""


def start(folder: Path, *, turns: int, code: int = 0) -> subprocess.Popen[bytes]:
    """The script, with a `treering` and a `scontrol` that write down what they are asked."""
    for name, text in (("treering", COMMAND), ("scontrol", COMMAND)):
        path = folder / name
        path.write_text(text.format(turns=turns if name == "treering" else 0, code=code))
        path.chmod(0o755)
    given = {"STUDY": "s.toml", "DATA": "d", "OUT": "o", "SAID": str(folder / "said")}
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "17"}
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.Popen(["bash", str(EXAMPLE)], env={**given, **task, "PATH": path})


@pytest.mark.parametrize("code", [0, 1])
def test_a_task_of_the_array_runs_its_cell_and_ends_as_it_did(tmp_path: Path, code: int) -> None:
    assert start(tmp_path, turns=0, code=code).wait(timeout=30) == code
    said = (tmp_path / "said").read_text()
    assert said == "study s.toml --data d --out o --cell 3\n"


def test_before_its_time_is_up_the_cell_saves_itself_and_is_queued_again(tmp_path: Path) -> None:
    task = start(tmp_path, turns=400)
    while not (tmp_path / "said").exists():
        time.sleep(0.01)
    time.sleep(0.2)
    task.send_signal(signal.SIGINT)
    task.wait(timeout=30)
    asked, saved, queued = (tmp_path / "said").read_text().splitlines()
    assert asked.startswith("study ") and saved == "saved" and queued == "requeue 17_3"
