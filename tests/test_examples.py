"""The examples do what they say, with a scheduler that only pretends."""

from __future__ import annotations

import os
import signal
import subprocess
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


@pytest.mark.parametrize(("code", "ends", "queued"), [(0, True, False), (0, False, True),
                                                      (1, False, False)])  # fmt: skip
def test_a_run_over_machines_is_queued_again_if_it_was_stopped_in_time(
    tmp_path: Path, code: int, ends: bool, queued: bool
) -> None:
    (tmp_path / "out").mkdir()
    summary = tmp_path / "out/summary.json"
    texts = {
        "srun": f'#!/bin/bash\necho "srun $@" >> "$SAID"\n{f"touch {summary}" if ends else ""}\n'
                f"exit {code}\n",
        "scontrol": '#!/bin/bash\necho "$@" >> "$SAID"\necho first\necho second\n',
    }  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"RECIPE": "r.toml", "DATA": "d", "OUT": str(tmp_path / "out")}
    given |= {"SAID": str(tmp_path / "said"), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    given |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "17"}
    done = subprocess.run(["bash", str(EXAMPLES / "run.slurm")], env=given, timeout=30, check=False)
    assert done.returncode == code
    said = (tmp_path / "said").read_text().splitlines()
    assert said[1].startswith("srun torchrun --nnodes 2 --nproc-per-node gpu")
    assert "--rdzv-endpoint first:29500 --rdzv-id 17" in said[1]
    assert f"-m treering run r.toml --data d --out {tmp_path / 'out'}" in said[1]
    assert (said[2:] == ["requeue 17"]) == queued


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
