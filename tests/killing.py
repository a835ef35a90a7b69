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
LONGEST = 30.0  # seconds until a moment that does not come is given up


@dataclass
class Trial:
    """What happened: where each kill fell (one that came too late fell "after the end"), and after
    which steps a run went on."""

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
        self._store = tiny.files(forks.place / "prepared")
        self._exported = tiny.files(forks.place / "exported")
        pretrained.load(str(forks.place / "exported"))
        assert tiny.weights(self.unbroken)  # it is a run's, and can be read

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
            trial.fell.append(kill(sitting, where if began else "before it began"))
        code, log = self._forks.run(out)
        assert code == 0, log
        if "resuming after step" in log:
            trial.resumed.append(int(log.split("resuming after step")[1].split()[0]))
        tiny.assert_same_run(out, self.unbroken)
        assert not half_written(out)

    def _of_prepare(self, trial: Trial, luck: random.Random, out: Path) -> None:
        """No index, no store; and with it, the very one."""
        sitting = self._prepare(out)
        self._wait(trial.kind, luck, lambda: (out / "tokens.json").exists())
        placing = (out / "tokens.json").exists()
        trial.fell.append(kill(sitting, "between the renames" if placing else "while it was made"))
        if not (out / "tokens.idx").exists():
            with suppress(Invalid):
                open_store(out / "tokens")
                raise AssertionError("half a store was opened")
            code, log = self._prepare(out).wait()
            assert code == 0, log
        found = {name: data for name, data in tiny.files(out).items() if name[0] != "."}
        for name in ("tokens.bin", "tokens.idx"):
            assert found[name] == self._store[name], name
        assert len(found) == 3
        open_store(out / "tokens", whole=True).close()

    def _of_export(self, trial: Trial, luck: random.Random, out: Path) -> None:
        """No folder or a whole one, also where an older one is replaced."""
        model = out / "model"
        out.mkdir()
        older = luck.random() < 0.5
        if older:
            shutil.copytree(self._forks.place / "exported", model)
            (model / "README.md").write_text("older")
        sitting = self._export(model)
        self._wait(trial.kind, luck, lambda: any(out.glob(".model.*.tmp/README.md")))
        writing = any(out.glob(".model.*.tmp"))
        trial.fell.append(kill(sitting, "while it was made" if writing else "before it began"))
        if older or model.exists():
            found = tiny.files(model)
            whole = (self._exported, self._exported | {"README.md": b"older"})
            assert found in (*whole, *([{}] if older and not model.exists() else []))
        code, log = self._export(model).wait()
        assert code == 0, log
        assert tiny.files(out) == {f"model/{n}": data for n, data in self._exported.items()}

    def _prepare(self, out: Path) -> tiny.Sitting:
        words, text = self.unbroken / "tokenizer", self._forks.place / "long.jsonl"
        asked = ("prepare", text, "--tokenizer", words, "--out", out / "tokens", "--workers", 1)
        return self._forks.call(*map(str, asked))

    def _export(self, out: Path) -> tiny.Sitting:
        asked = ("export", self.unbroken, "--out", out, "--cache", self._forks.place / "cache")
        return self._forks.call(*map(str, asked))

    def _timed(self, sitting: tiny.Sitting) -> float:
        began = time.monotonic()
        code, log = sitting.wait()
        assert code == 0, log
        return time.monotonic() - began

    def _wait(self, kind: str, luck: random.Random, ending: Callable[[], bool]) -> None:
        """Until a random moment, or one close to the end, when files get their names."""
        seconds = self._seconds[kind]
        if luck.random() < 0.5:
            return time.sleep(luck.uniform(0.05, 0.95) * seconds)
        end = time.monotonic() + 2 * seconds
        while not ending() and time.monotonic() < end:
            pass
        time.sleep(luck.choice((0, 0, luck.uniform(0, 0.002))))


def half_written(out: Path, since: int = 0) -> set[str]:
    """Checkpoints that are being written, or were when the run was killed."""
    found = set()
    for path in (out / "checkpoints").glob(".step-*.tmp"):
        with suppress(FileNotFoundError):  # it was finished in the meantime
            if path.stat().st_mtime_ns > since:
                found.add(path.name)
    return found


def kill(sitting: tiny.Sitting, where: str) -> str:
    """Where the kill fell; "after the end" where nothing was there any more to be killed."""
    os.kill(sitting.pid, signal.SIGKILL)  # it is reaped only when its forker is asked
    return where if sitting.wait()[0] == -signal.SIGKILL else "after the end"


def wait_for_half_written(out: Path, since: int, nth: int, seconds: float) -> None:
    """Return when the n-th checkpoint of this sitting is being written, or time is over."""
    end, seen = time.monotonic() + seconds, set[str]()
    while len(seen) < nth and time.monotonic() < end:
        seen |= half_written(out, since)
