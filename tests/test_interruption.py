"""What ends a run early: all is saved, also in the middle of scoring; nothing hangs for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from test_mesh import assert_same_to_rounding
from tiny import Forks, assert_same_run
from torch.distributed.elastic.multiprocessing.api import SignalException

from treering import evaluate, launch, records
from treering.interruption import interruption, preempted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and signals")
SIGNALS = {signal.SIGTERM: 0, signal.SIGUSR1: 0, signal.SIGHUP: 0, signal.SIGINT: 130}


def ends(out: Path) -> list[str]:
    return [record["reason"] for record in records.read(out) if record["kind"] == "end"]


def wait_for_checkpoint(out: Path) -> None:
    end = time.monotonic() + 60
    while not any((out / "checkpoints").glob("step-*")):
        assert time.monotonic() < end, "no checkpoint in a minute"
        time.sleep(0.001)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_ends(
    forks: Forks, unbroken: Path, tmp_path: Path, number: signal.Signals, ranks: int
) -> None:
    """Of two ranks one alone hears it, and both end; for what Slurm tells one process."""
    out = tmp_path / "run"
    sitting = forks.start(out, ranks=ranks)
    wait_for_checkpoint(out)
    os.kill(sitting.pids[0], number)
    codes = sitting.codes()
    assert codes == [SIGNALS[number], 0][:ranks]
    assert ends(out) == ["interrupted" if number == signal.SIGINT else "preempted"]
    newest = max(int(name.removeprefix("step-")) for name in tiny.checkpoints(out))
    steps = [record["step"] for record in records.read(out) if record["kind"] == "step"]
    assert newest == steps[-1]
    code, log = forks.run(out)
    assert code == 0, log
    assert f"resuming after step {newest} " in log
    if ranks == 1:
        assert_same_run(out, unbroken)
    else:
        assert_same_to_rounding(out, unbroken)


@pytest.mark.parametrize("corpora", [1, 2, 3])
@pytest.mark.parametrize("scoring", [2, 4, 8])  # within the first phase, at its end, at the last
def test_a_signal_in_the_middle_of_scoring_is_heard_between_two_corpora(
    place: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    corpora: int, scoring: int,
) -> None:  # fmt: skip
    real, calls = evaluate.score, 0

    def score(*given: object) -> evaluate.Score:
        nonlocal calls
        calls += 1
        if calls == 3 * (scoring - 1) + corpora:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "score", score)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(place / "recipe.toml", tmp_path / "run")
    assert ends(tmp_path / "run") == ["preempted"]
    last = [r for r in records.read(tmp_path / "run") if r["kind"] in ("step", "score")]
    assert [r["kind"] for r in last[-corpora:]] == ["score"] * corpora
    assert [r["kind"] for r in last[-corpora - 1 :]] == ["step"] + ["score"] * corpora
    tiny.run(place / "recipe.toml", tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)
    found, wanted = (
        [r["flops"] for r in records.read(out) if r["kind"] == "step"]
        for out in (tmp_path / "run", unbroken)
    )
    assert found == wanted


@pytest.mark.parametrize("corpora", [1, 3])
def test_a_signal_while_the_base_is_scored_begins_anew(
    place: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpora: int
) -> None:
    real, calls = evaluate.score, 0

    def score(*given: object) -> evaluate.Score:
        nonlocal calls
        calls += 1
        if calls == corpora:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "score", score)
    with pytest.raises(KeyboardInterrupt):
        tiny.run(place / "recipe.toml", tmp_path / "run")
    assert not (tmp_path / "run/checkpoints").exists()
    tiny.run(place / "recipe.toml", tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_to_the_launcher_is_one_to_all_processes(
    forks: Forks, unbroken: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "treering", "run", str(forks.place / "recipe.toml")]
    command += ["--out", str(out), "--cache", str(forks.place / "cache"), "--devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(tmp_path / "log", "w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for_checkpoint(out)
        run.send_signal(number)
        assert run.wait(timeout=60) == SIGNALS[number], (tmp_path / "log").read_text()
    assert ends(out) == ["interrupted" if number == signal.SIGINT else "preempted"]
    code, log_text = forks.run(out, ranks=2)
    assert code == 0, log_text
    assert_same_to_rounding(out, unbroken)


@pytest.mark.parametrize(("last", "code"), [
    ({"kind": "end", "reason": "preempted"}, 0), ({"kind": "end", "reason": "finished"}, 0),
    ({"kind": "end", "reason": "failed"}, 1), ({"kind": "step", "step": 1, "phase": "a"}, 1),
    (None, 1),
])  # fmt: skip
def test_a_launcher_that_was_told_to_end_says_whether_all_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: tiny.Record | None, code: int
) -> None:
    def elastic_launch(settings: object, program: str) -> Callable[..., None]:
        def call(*arguments: str) -> None:
            raise SignalException("as torchrun does", signal.SIGTERM)

        return call

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)
    if last is not None:
        (tmp_path / "records.jsonl").write_text(json.dumps(last) + "\n")
    assert launch.launch(1, ["run"], tmp_path, grace=1.0) == code


def test_a_hang_up_under_nohup_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruption() as heard, preempted():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not heard.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, None])
def test_what_hangs_ends_and_says_where(
    forks: Forks, unbroken: Path, tmp_path: Path, number: signal.Signals | None
) -> None:
    """A rank that is stopped: the other gives it up after `timeout` seconds, or `grace` of them
    after a signal."""
    out = tmp_path / "run"
    sets = ("--set=mesh.timeout=10.0", "--set=checkpoint.grace=1.0")
    sitting = forks.start(out, *sets, ranks=2)
    wait_for_checkpoint(out)
    os.kill(sitting.pids[1], signal.SIGSTOP)
    if number is not None:
        os.kill(sitting.pids[0], number)
    os.kill(sitting.pids[1], signal.SIGSTOP)
    began = time.monotonic()
    while sitting.pids[0] in alive(sitting):
        assert time.monotonic() - began < 40
        time.sleep(0.05)
    os.kill(sitting.pids[1], signal.SIGKILL)
    codes = sitting.codes()
    assert codes == [1, -signal.SIGKILL]
    code, log = forks.run(out, ranks=2)
    assert code == 0, log
    assert_same_to_rounding(out, unbroken)


def alive(sitting: tiny.Sitting) -> set[int]:
    """Those that are neither gone nor waiting to be reaped."""
    states = {pid: Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] for pid in sitting.pids}
    return {pid for pid, state in states.items() if state != "Z"}
