"""A preparation that is killed leaves nothing that opens as a store, and no process."""

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

from treering import tokenizer

PREPARE = """
import sys
from treering import prepare, tokenizer

if __name__ == "__main__":
    prepare.SMALL = 0
    folder = sys.argv[1]
    options = prepare.Options(validation=0.1, workers=2, quiet=True)
    words = tokenizer.load(f"{folder}/tokenizer")
    prepare.prepare([f"{folder}/in.jsonl"], words, f"{folder}/out", options)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text for some seconds of work, and a tokenizer."""
    folder = tmp_path_factory.mktemp("killed")
    tokenizer.train(["the tree adds a ring"] * 4, 300).save_pretrained(str(folder / "tokenizer"))
    texts = (f"{number} the tree adds a ring " * 300 for number in range(4000))
    with open(folder / "in.jsonl", "w") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "work.py").write_text(PREPARE)
    return folder


def children(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    for _ in range(int(seconds * 50)):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_killed_it_leaves_nothing_that_opens_and_no_process(folder: Path, number: int) -> None:
    command = [sys.executable, str(folder / "work.py"), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment())
    wait_until(lambda: any(path.stat().st_size > 0 for path in folder.glob(".out.*.bin.tmp")))
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    assert not list(folder.glob("out*"))
    if number == signal.SIGINT:
        assert not list(folder.glob(".out*"))
    wait_until(lambda: not any(lives(worker) for worker in workers))
    for path in folder.glob(".out*"):
        path.unlink()


def environment() -> dict[str, str]:
    """Finds the package where the tests found it."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
