"""Commands that are killed at random moments, given again, and held against those that were not.

    with killing(place) as killed:
        killed.trial("run", seed)

A kind is what is killed: a run anywhere, a run within a checkpoint, a preparation, an export.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import tiny

from treering import pretrained
from treering.config import Invalid
from treering.store import open_store

KINDS = ("run", "checkpoint", "prepare", "export")
MOMENTS = {"prepare": 10, "export": 18}  # about as often files are changed
AFTER = "after the end"


@dataclass
class Trial:
    """What happened: where each kill fell, and after which steps a run went on."""

    kind: str
    seed: int
    fell: list[str] = field(default_factory=list)
    resumed: list[int] = field(default_factory=list)


@contextmanager
def killing(folder: Path) -> Iterator[Killing]:
    """Trials in a folder, with one process from which all of theirs are forked."""
    with tiny.Forks(tiny.place(folder)) as forks:
        yield Killing(forks)


class Killing:
    """The same commands unbroken, how long they took, and trials against them."""

    def __init__(self, forks: tiny.Forks) -> None:
        self._forks, self.unbroken = forks, forks.place / "unbroken"
        tiny.write_text(forks.place / "long.jsonl", tiny.documents("en", 4000))
        assert forks.run(forks.place / "first")[0] == 0  # it fills caches
        self._seconds = {"run": self._timed(forks.start(self.unbroken))}
        self._seconds["checkpoint"] = self._seconds["run"]
        self._seconds["prepare"] = self._timed(self._prepare(forks.place / "prepared"))
        self._seconds["export"] = self._timed(self._export(forks.place / "exported"))
        made = tiny.files(forks.place / "prepared")
        self._store = {name: made[name] for name in ("tokens.bin", "tokens.idx")}
        self._exported = tiny.files(forks.place / "exported")
        pretrained.load(str(forks.place / "exported/model"))

    def trial(self, kind: str, seed: int) -> Trial:
        """One trial. Raises AssertionError where what was killed is not as if it had not been."""
        luck, out = random.Random(f"{kind} {seed}"), self._forks.place / f"{kind}-{seed}"
        trial = Trial(kind, seed)
        trials = {"prepare": self._of_prepare, "export": self._of_export}
        trials.get(kind, self._of_run)(trial, luck, out)
        shutil.rmtree(out)
        return trial

    def _of_run(self, trial: Trial, luck: random.Random, out: Path) -> None:
        for _ in range(luck.choice((1, 1, 1, 2, 3))):
            since, sitting = time.time_ns(), self._forks.start(out)
            if trial.kind == "checkpoint":
                wait_for_half_written(out, since, luck.randint(1, 4), 2 * self._seconds["run"])
                time.sleep(luck.choice((0, 0, luck.uniform(0, 0.01))))
            else:
                time.sleep(luck.uniform(0.1, 0.95) * self._seconds["run"])
            began = (out / "records.jsonl").exists()
            where = "within a checkpoint" if half_written(out, since) else "between steps"
            killed = kill(sitting)
            trial.fell.append(AFTER if not killed else where if began else "before it began")
        code, log = self._forks.run(out)
        assert code == 0, log
        if "resuming after step" in log:
            trial.resumed.append(int(log.split("resuming after step")[1].split()[0]))
        tiny.assert_same_run(out, self.unbroken)
        assert not half_written(out)

    def _of_prepare(self, trial: Trial, luck: random.Random, out: Path) -> None:
        """No index, no store; and with it, the very one."""
        trial.fell.append(self._killed(trial.kind, luck, out, self._prepare))
        if not (out / "tokens.idx").exists():
            with suppress(Invalid):
                open_store(out / "tokens")
                raise AssertionError("half a store was opened")
            code, log = self._prepare(out).wait()
            assert code == 0, log
        found = {name: data for name, data in tiny.files(out).items() if name[0] != "."}
        assert {name: found[name] for name in ("tokens.bin", "tokens.idx")} == self._store
        assert len(found) == 3
        open_store(out / "tokens", whole=True).close()

    def _of_export(self, trial: Trial, luck: random.Random, out: Path) -> None:
        """No folder or a whole one, also where an older one is replaced."""
        out.mkdir()
        older = self._exported | {"model/README.md": b"tags: [treering]\n, older"}
        if luck.random() < 0.5:
            shutil.copytree(self._forks.place / "exported/model", out / "model")
            (out / "model/README.md").write_bytes(older["model/README.md"])
        trial.fell.append(self._killed(trial.kind, luck, out, self._export))
        found = {name: data for name, data in tiny.files(out).items() if name[0] != "."}
        assert found in ({}, older, self._exported)
        code, log = self._export(out).wait()
        assert code == 0, log
        assert tiny.files(out) == self._exported

    def _killed(
        self, kind: str, luck: random.Random, out: Path, start: Callable[..., tiny.Sitting]
    ) -> str:
        """Where a kill fell at a random time, or at one of the moments when a file changes."""
        before = names(out)
        if luck.random() < 0.9:
            sitting = start(out, dies=(f"/{out.name}/", luck.randint(1, MOMENTS[kind])))
            killed = sitting.wait()[0] == -signal.SIGKILL
        else:
            sitting = start(out)
            time.sleep(luck.uniform(0.05, 0.95) * self._seconds[kind])
            killed = kill(sitting)
        made = names(out) - before
        beside = {name for name in made if name[0] == "."}
        if not killed:
            return AFTER
        if before - names(out) or made - beside:
            return "among the renames"
        return "while it was made" if beside else "before it began"

    def _prepare(self, out: Path, dies: tuple[str, int] = ("", 0)) -> tiny.Sitting:
        words, text = self.unbroken / "tokenizer", self._forks.place / "long.jsonl"
        asked = ("prepare", text, "--tokenizer", words, "--out", out / "tokens", "--workers", 1)
        return self._forks.call(*map(str, asked), dies=dies)

    def _export(self, out: Path, dies: tuple[str, int] = ("", 0)) -> tiny.Sitting:
        cache = self._forks.place / "cache"
        asked = ("export", self.unbroken, "--out", out / "model", "--cache", cache)
        return self._forks.call(*map(str, asked), dies=dies)

    def _timed(self, sitting: tiny.Sitting) -> float:
        began = time.monotonic()
        code, log = sitting.wait()
        assert code == 0, log
        return time.monotonic() - began


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.exists() else set()


def half_written(out: Path, since: int = 0) -> set[str]:
    """Checkpoints that are being written, or were when the run was killed."""
    found = set()
    for path in (out / "checkpoints").glob(".step-*.tmp"):
        with suppress(FileNotFoundError):  # it was finished in the meantime
            if path.stat().st_mtime_ns > since:
                found.add(path.name)
    return found


def kill(sitting: tiny.Sitting) -> bool:
    """Whether it was still there to be killed."""
    os.kill(sitting.pid, signal.SIGKILL)  # it is reaped only when its forker is asked
    return sitting.wait()[0] == -signal.SIGKILL


def wait_for_half_written(out: Path, since: int, nth: int, seconds: float) -> None:
    """Return when the n-th checkpoint of this sitting is being written, or time is over."""
    end, seen = time.monotonic() + seconds, set[str]()
    while len(seen) < nth and time.monotonic() < end:
        seen |= half_written(out, since)
