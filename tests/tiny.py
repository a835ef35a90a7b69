"""A run so small that it takes a second: a few KB of generated text, a model of one layer.

    place(folder)        texts of three languages, `recipe.toml`, a cache
    run(place, out)      a run in this process
    Forks(place)         runs in processes of their own, which may be killed

As a program it is the process that `Forks` forks its runs from: an import of torch costs seconds.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import tomli_w

if TYPE_CHECKING:
    import pytest

RECIPE = """
seed = 1
length = 16
[tokenizer]
train = 300
[model]
depth = 1
width = 16
heads = 2
mlp = 32
tied = true
[corpora.en]
train = "en.jsonl"
validation = 0.2
[corpora.fr]
train = "fr.jsonl"
validation = "fr-held-out.jsonl"
[corpora.de]
train = "de.jsonl"
validation = 0.2
[[phases]]
name = "first"
tokens = 1_600  # 25 steps
mixture = { en = 1.0 }
[[phases]]
name = "second"
tokens = 1_600
mixture = { fr = 2.0, de = 1.0 }
[replay]
share = 0.25
memory = { kind = "reservoir", samples = 24, over = "all" }
[update]
kind = "reptile"
every = 5
rate = 0.5
[schedule]
kind = "cosine"
peak = 1e-2
warmup = 0.1
[batch]
tokens = 64
micro = 32
[compute]
compile = false
precision = "fp32"
[evaluate]
tokens = 128
every_tokens = 576  # 9 steps
[checkpoint]
every_tokens = 448  # 7 steps: most checkpoints lie inside a cycle of Reptile
"""
STEPS = 50
HANGS = 120  # seconds
LANGUAGES = {"en": "thanoreis", "fr": "quelamoui", "de": "schbunerd"}
Record = dict[str, Any]


def sentence(language: str, luck: random.Random) -> str:
    """Words of the letters that a language has, most of them from a short list."""
    fixed = random.Random(language)
    words = ["".join(fixed.choices(LANGUAGES[language], k=n)) for n in (2, 3, 3, 4, 5, 6, 7, 8)]
    new = "".join(luck.choices(LANGUAGES[language], k=5))
    return " ".join([*luck.choices(words, k=20), new])


def documents(language: str, count: int, seed: str = "train") -> list[str]:
    luck = random.Random(f"{language} {seed}")
    return [sentence(language, luck) for _ in range(count)]


def write_text(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def place(folder: Path) -> Path:
    """Fill a folder with texts and the recipe; returns it."""
    for language in LANGUAGES:
        write_text(folder / f"{language}.jsonl", documents(language, 60))
    write_text(folder / "fr-held-out.jsonl", documents("fr", 12, "held out"))
    (folder / "recipe.toml").write_text(RECIPE)
    return folder


def without(place: Path, *tables: str) -> Path:
    """The recipe without some of its tables, as a file beside it."""
    table = tomllib.loads((place / "recipe.toml").read_text())
    path = place / f"without-{'-'.join(tables)}.toml"
    path.write_text(tomli_w.dumps({k: v for k, v in table.items() if k not in tables}))
    return path


def run(recipe: Path, out: Path, *sets: str, fresh: bool = False) -> Record:
    """Train the recipe with `sets` laid over it, quietly; the summary."""
    from rich.console import Console

    from treering import config, training

    loaded = config.load(recipe, sets=sets)
    cache = str(recipe.parent / "cache")
    quiet = Console(quiet=True)
    with one_thread():
        return training.run(loaded, out, fresh=fresh, cache_folder=cache, console=quiet)


@contextmanager
def one_thread() -> Iterator[None]:
    """Two threads that wait for each other take twenty times as long over so little work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


KINDS = ("step", "score", "branch_score", "probe")


def story(out: Path, kinds: tuple[str, ...] = KINDS) -> list[Record]:
    """What two equal runs have in common: records of these kinds but for times, in order."""
    from treering import records

    return [
        {name: value for name, value in record.items() if name not in records.TIMES}
        for record in records.read(out)
        if record["kind"] in kinds
    ]


def weights(out: Path) -> dict[str, bytes]:
    """The bytes of every tensor that a run exported at its end."""
    from safetensors.numpy import load_file

    return {n: array.tobytes() for n, array in load_file(out / "model/model.safetensors").items()}


def assert_same_run(out: Path, unbroken: Path, kinds: tuple[str, ...] = KINDS) -> None:
    """Bit for bit, and every step once."""
    found = story(out, kinds)
    assert found == story(unbroken, kinds)
    steps = [record["step"] for record in found if record["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert weights(out) == weights(unbroken)


def files(folder: Path) -> dict[str, bytes]:
    """Everything below a folder: bytes by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").glob("step-*"))


@dataclass(frozen=True)
class Sitting:
    """The processes, one for each rank, of a `treering run`; what rank 0 prints goes to `log`."""

    pids: list[int]
    log: Path
    forks: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """That of rank 0."""
        return self.pids[0]

    def wait(self) -> tuple[int, str]:
        """(exit code, what it printed) of rank 0; the code of a killed one is negative."""
        codes = self.codes()
        return codes[0], self.log.read_text()

    def codes(self) -> list[int]:
        """Every rank's exit code, when all have ended."""
        assert self.forks.stdin is not None and self.forks.stdout is not None
        self.forks.stdin.write("\n")
        self.forks.stdin.flush()
        found: list[int] = json.loads(self.forks.stdout.readline())
        return found


class Forks:
    """Runs of the command line in processes of their own, one after another."""

    def __init__(self, place: Path) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self.place, self._count = place, 0
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def start(
        self, out: Path, *arguments: str, limit: int | None = None, ranks: int = 1
    ) -> Sitting:
        """`treering run` in `out`; no file may grow beyond `limit` bytes, as on a full disk."""
        recipe = str(self.place / "recipe.toml")
        asked = ("run", recipe, "--out", str(out), "--cache", str(self.place / "cache"))
        return self.call(*asked, *arguments, limit=limit, ranks=ranks)

    def call(
        self, *arguments: str, limit: int | None = None, ranks: int = 1,
        dies: tuple[str, int] = ("", 0),
    ) -> Sitting:  # fmt: skip
        """A verb of the command line; on several ranks as torchrun would start it. `dies`: see
        `die_as_it_writes`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        log = self.place / f"log-{self._count}"
        log.touch()
        self._count += 1
        self._process.stdin.write(json.dumps([arguments, str(log), limit, ranks, dies]) + "\n")
        self._process.stdin.flush()
        return Sitting(json.loads(self._process.stdout.readline()), log, self._process)

    def run(
        self, out: Path, *arguments: str, limit: int | None = None, ranks: int = 1
    ) -> tuple[int, str]:
        return self.start(out, *arguments, limit=limit, ranks=ranks).wait()


def interrupt_in_step(step: int, patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a sitting's step, counted from 1."""
    from treering.journal import Journal

    real, calls = Journal.step, 0

    def counted(self: Journal, *done: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, *done)

    patch.setattr(Journal, "step", counted)


def kill_after_step(sitting: Sitting, out: Path, step: int) -> None:
    """kill -9 as soon as the run's records hold a step."""
    from treering import records

    def reached() -> bool:
        found = records.read(out) if (out / "records.jsonl").exists() else []
        return any(record["kind"] == "step" and record["step"] >= step for record in found)

    end = time.monotonic() + HANGS / 2
    while not reached():
        assert time.monotonic() < end, sitting.log.read_text()
        time.sleep(0.001)
    os.kill(sitting.pid, signal.SIGKILL)
    assert sitting.wait()[0] == -signal.SIGKILL, "it had ended before it was killed"


def kill_and_go_on(forks: Forks, out: Path, step: int, *arguments: str) -> None:
    """A run that is killed as soon as its records hold a step, and given again: it went on, from a
    checkpoint that was not its last, to the end."""
    from treering import records

    kill_after_step(forks.start(out, *arguments), out, step)
    code, log = forks.run(out, *arguments)
    assert code == 0, log
    resumed = int(log.split("resuming after step")[1].split()[0])
    assert 0 < resumed < max(r["step"] for r in records.read(out) if r["kind"] == "step")


def serve(place: Path) -> None:
    """Fork a run for each line of the standard input; print its ids, and its exit codes."""
    import torch

    from treering import build, config, training
    from treering.mesh import Mesh

    torch.set_num_threads(1)
    recipe = config.load(place / "recipe.toml")
    build.parts(recipe, build.data(recipe, place / "cache"), Mesh())  # imports what comes late
    assert training.run
    for line in iter(sys.stdin.readline, ""):
        arguments, log, limit, ranks, dies = json.loads(line)
        port, pids = free_port(), []
        for rank in range(ranks):
            pids.append(os.fork())
            if pids[-1] == 0:
                if ranks > 1:
                    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks)}
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                die_as_it_writes(*dies)
                os._exit(forked(arguments, log if rank == 0 else f"{log}-{rank}", limit))
        print(json.dumps(pids), flush=True)
        sys.stdin.readline()  # not reaped before it is asked for, so that its id is no other's
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps(codes), flush=True)


def die_as_it_writes(folder: str, nth: int) -> None:
    """kill -9 of this process as it opens, names or removes something of a folder for the n-th
    time: moments that a clock would miss."""
    seen = 0

    def hook(event: str, given: tuple[object, ...]) -> None:
        nonlocal seen
        changes = event in ("open", "os.mkdir", "os.rename") and folder in f"{given[:2]}"
        if changes or event in ("os.remove", "os.rmdir"):
            seen += 1
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)

    if nth:
        sys.addaudithook(hook)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def forked(arguments: list[str], log: str, limit: int | None) -> int:
    from treering import cli

    with open(log, "w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    faulthandler.dump_traceback_later(HANGS, exit=True)  # what hangs shows where
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        code = cli.main(arguments)
    except SystemExit as ended:  # on all ranks but that which failed
        print(ended)
        code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
