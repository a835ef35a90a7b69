"""Cells as Ray tasks: the tables of the local engine, whatever is killed or interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
import tiny
from test_study_runs import MER, PLAIN, STUDY, processes, steps, tables, wait_for, within
from tiny import Forks, Sitting, assert_same_run

from treering import cli, records
from treering.engines import local

pytestmark = [
    pytest.mark.timeout(400),  # Ray starts a handful of processes for each test
    pytest.mark.skipif(sys.platform != "linux", reason="forks and kills"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is absent"),
]
BOTH = (PLAIN, MER)

# Ray has threads, sockets and warnings of its own: it lives in a process beside the tests.
RAY = """
import sys, ray
found = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print(found.address_info["address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """No files in the home folder, and no Ray of somebody else's."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster(environment: dict[str, str]) -> Iterator[IO[str]]:
    """A Ray on this machine with two workers; it tells its address when it stands."""
    process = subprocess.Popen(
        [sys.executable, "-c", RAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    assert process.stdin is not None and process.stdout is not None
    yield process.stdout
    process.stdin.close()
    assert process.wait(timeout=30) == 0
    process.stdout.close()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny.place(tmp_path_factory.mktemp("ray"))
    (place / "study.toml").write_text(STUDY)
    return place


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory, cluster: IO[str]) -> Path:
    """The study without Ray; made while the cluster starts."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    line = ["study", str(place / "study.toml"), "--out", str(out), "--cache", str(place / "cache")]
    with pytest.MonkeyPatch.context() as patch, tiny.one_thread():
        patch.setattr(local, "run", within)
        assert cli.main(line) == 0
    return out


@pytest.fixture(scope="module")
def forks(
    place: Path, environment: dict[str, str], unbroken: Path, cluster: IO[str]
) -> Iterator[Forks]:
    """Command lines that find the cluster."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("RAY_ADDRESS", cluster.readline().strip())
        with Forks(place) as forks:
            yield forks


def started(forks: Forks, place: Path, out: Path) -> Sitting:
    line = ["study", str(place / "study.toml"), "--out", str(out), "--engine", "ray"]
    return forks.call(*line, "--cache", str(place / "cache"))


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


def test_a_study_that_is_killed_and_a_worker_that_is_killed_change_nothing(
    unbroken: Path, place: Path, forks: Forks, tmp_path: Path
) -> None:
    """kill -9 of the study ends its cells; started again it goes on, and Ray retries the cell of a
    worker that dies, from its checkpoint. The tables are those of the study without Ray."""
    out = tmp_path / "out"
    sitting = started(forks, place, out)
    wait_for(lambda: max(steps(out, name) for name in BOTH) >= 10)
    os.kill(sitting.pid, signal.SIGKILL)
    assert sitting.wait()[0] == -signal.SIGKILL
    wait_for(lambda: not processes(out), 10.0)  # Ray must notice first
    before = steps(out, MER)
    sitting = started(forks, place, out)
    wait_for(lambda: steps(out, MER) >= min(before + 10, 100))
    cell = next(pid for pid in processes(out) if f"runs/{MER}" in name_of(pid))
    worker = parent(cell)
    assert "ray::" in name_of(worker)
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: cell not in processes(out), 10.0)  # it holds the run's folder no longer
    code, log = sitting.wait()
    assert code == 0, log
    assert "resuming after step" in (out / "logs" / f"{MER}.log").read_text()
    for name in BOTH:
        assert_same_run(out / "runs" / name, unbroken / "runs" / name)
    assert tables(out) == tables(unbroken)


def test_a_task_that_fails_in_its_worker_is_a_failed_cell(
    unbroken: Path, place: Path, forks: Forks, tmp_path: Path
) -> None:
    """Here because its log cannot be written; the other cell is finished already."""
    out = tmp_path / "out"
    shutil.copytree(unbroken / "runs" / PLAIN, out / "runs" / PLAIN)
    (out / "recipes").mkdir()
    (out / "logs" / f"{MER}.log").mkdir(parents=True)
    code, log = started(forks, place, out).wait()
    assert code == 1 and f"treering: failed: {MER}; mend and run again" in log, log
    assert f"{MER}: failed with exit code -1, see " in log
    assert list(json.loads((out / "comparison.json").read_text())["arms"]) == ["plain"]


def test_ctrl_c_lets_the_cells_save_themselves_and_leaves_no_process_behind(
    unbroken: Path, place: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Without RAY_ADDRESS the study starts a Ray of its own, and ends it."""
    out, mark = tmp_path / "out", f"mark-of-{tmp_path}"
    line = [sys.executable, "-m", "treering", "study", str(place / "study.toml"), "--engine", "ray"]
    process = subprocess.Popen(
        [*line, "--out", str(out), "--cache", str(place / "cache")],
        env=environment | {"TREERING_TEST": mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: max(steps(out, name) for name in BOTH) >= 1)
    assert len(marked(mark)) > 3  # the study, Ray's own, a worker, a cell
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from what is saved" in said, said
    wait_for(lambda: not marked(mark), 5.0)
    begun = [name for name in BOTH if steps(out, name)]
    ends = [records.read(out / "runs" / name)[-1].get("reason") for name in begun]
    assert ends == ["interrupted"] * len(begun)


def test_a_machine_that_has_not_what_a_cell_asks_for_is_no_endless_wait(
    place: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    script = (
        "from treering.engines import ray\n"
        "from treering.engines.process import Job\n"
        "job = Job('a', 'a.toml', 'a', 'log', None)\n"
        "next(ray.run([job], cpus=1000, gpus=0))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert "Invalid: --cpus 1000: this machine has" in done.stderr and done.returncode == 1


def marked(mark: str) -> list[int]:
    """Processes that have inherited a variable of ours."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [int(path.parent.name)] if mark.encode() in path.read_bytes() else []
        except OSError:
            continue
    return found


def test_what_ray_cannot_give_is_said_before_anything_is_written(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["study", str(place / "study.toml"), "--out", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([*line, "--cpus", "1.5"]) == 2 == cli.main([*line, "--gpus", "-1"])
    said = capsys.readouterr().err.splitlines()
    assert "--cpus 1.5: must be a whole number" in said[0] and "--gpus -1.0: must" in said[1]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(line) == 2 and not (tmp_path / "out").exists()
    assert "pip install 'treering[ray]'" in capsys.readouterr().err
