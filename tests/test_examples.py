"""The examples do what they say, with a scheduler that only pretends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from treering import cli, verbs

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "study.slurm"
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


STOPPED, FAILED, FINISHED = ("preempted", "failed", "finished")


def slurm(folder: Path, srun: str) -> subprocess.Popen[bytes]:
    """run.slurm over `folder / "out"`, with what it asks of Slurm."""
    (folder / "out").mkdir(exist_ok=True)
    scontrol = 'echo "$@" >> "$SAID"\necho first\necho second\n'
    for name, text in (("srun", srun), ("scontrol", scontrol)):
        (folder / name).write_text(f"#!/bin/bash\n{text}")
        (folder / name).chmod(0o755)
    given = {"RECIPE": "r.toml", "DATA": "d", "OUT": str(folder / "out")}
    given |= {"SAID": str(folder / "said"), "PATH": f"{folder}:{os.environ['PATH']}"}
    given |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    return subprocess.Popen(["bash", str(EXAMPLES / "run.slurm")], env=os.environ | given)


def end(reason: str, seconds: float) -> str:
    return json.dumps({"kind": "end", "reason": reason, "seconds": seconds})


@pytest.mark.parametrize(("before", "after", "code", "queued"), [
    (None, end(STOPPED, 9.5), 1, True), (end(STOPPED, 9.5), end(STOPPED, 19.5), 1, True),
    (end(FINISHED, 9.5), end(STOPPED, 19.5), 1, True), (None, end(FINISHED, 9.5), 0, False),
    (end(STOPPED, 9.5), end(FAILED, 19.5), 1, False), (end(STOPPED, 9.5), None, 1, False),
    (None, None, 2, False),
])  # fmt: skip
def test_a_run_over_machines_is_queued_again_if_it_was_stopped_in_time(
    tmp_path: Path, before: str | None, after: str | None, code: int, queued: bool
) -> None:
    """Also one that has grown, which has the summary of what it was; never one that fails at once,
    whatever a sitting before has said."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.json").touch()
    if before is not None:
        (tmp_path / "out/records.jsonl").write_text(before + "\n")
    add = "" if after is None else f"echo '{after}' >> \"$OUT/records.jsonl\"\n"
    job = slurm(tmp_path, f'echo "srun $@" >> "$SAID"\n{add}exit {code}\n')
    assert job.wait(timeout=30) == code
    said = (tmp_path / "said").read_text().splitlines()
    assert said[1].startswith("srun torchrun --nnodes 2 --nproc-per-node gpu")
    assert "--rdzv-endpoint first:29500 --rdzv-id 17" in said[1]
    assert f"-m treering run r.toml --data d --out {tmp_path / 'out'}" in said[1]
    assert (said[2:] == ["requeue 17"]) == queued


def test_torchrun_told_that_its_time_is_up_ends_in_a_run_that_is_queued_again(
    place: Path, tmp_path: Path
) -> None:
    """The script's own options of torchrun, but for where processes meet and how many they are."""
    run = f"run {place / 'recipe.toml'} --out $OUT --cache {place / 'cache'}"
    job = slurm(
        tmp_path,
        f"""
options=$(echo "$@" | grep -o -- "--signals-to-handle.*-m treering")
echo $$ > {tmp_path}/pid
exec {sys.executable} -m torch.distributed.run --standalone --nproc-per-node 1 $options {run}
""",
    )
    records = tmp_path / "out/records.jsonl"
    while job.poll() is None and not (records.exists() and '"step": 3,' in records.read_text()):
        time.sleep(0.01)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    assert job.wait(timeout=60) != 0  # torchrun's own, which says nothing of the run
    assert (tmp_path / "said").read_text().splitlines()[1:] == ["requeue 17"]


@pytest.mark.parametrize("name", ["run.slurm", "job.yaml"])
def test_torchrun_and_treering_know_the_options_of_the_examples(name: str) -> None:
    from torch.distributed.run import get_args_parser

    text = (EXAMPLES / name).read_text()
    if name == "job.yaml":
        documents = list(yaml.safe_load_all(text))
        assert [each["kind"] for each in documents] == ["Service", "Job"]
        words = documents[1]["spec"]["template"]["spec"]["containers"][0]["command"][1:]
    else:
        command = text.split("srun torchrun")[1].split("||")[0].replace("\\\n", " ")
        words = command.replace('"', "").split()
    asked = get_args_parser().parse_args(words)
    assert asked.module and asked.training_script == "treering"
    assert "SIGTERM" in asked.signals_to_handle and asked.shutdown_timeout >= 300
    options = cli._parser().parse_args(asked.training_script_args)
    assert options.verb == verbs.run and options.out and options.data
