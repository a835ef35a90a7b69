"""Failures of the world: what may not be written, a store that goes away, a clock that jumps."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from treering import cli, header, records, tokenizer
from treering.config import Invalid
from treering.journal import Journal
from treering.prepare import Options, prepare

Lock = Callable[[Path], Path]
HOUSE = Path(cli.__file__).parent


@pytest.fixture(scope="module")
def unbroken(recipe: Path) -> Path:
    tiny.run(recipe, recipe.parent / "unbroken")
    return recipe.parent / "unbroken"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Lock]:
    """`read_only(folder)`: nothing can be made in it. Of modes root takes no notice, but of the
    attribute that says immutable, where the file system has it."""
    locked: list[Path] = []

    def lock(folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        locked.append(folder)
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            done = subprocess.run(["chattr", "+i", folder], capture_output=True, check=False)
            if done.returncode:
                pytest.skip("no folder can be made read-only here")
        return folder

    yield lock
    for folder in locked:
        subprocess.run(["chattr", "-i", folder], capture_output=True, check=False)
        folder.chmod(0o755)


# What may not be written


@pytest.mark.parametrize("begun", [False, True])
def test_a_read_only_run_folder_is_named_before_anything_is_written(
    recipe: Path, unbroken: Path, tmp_path: Path, read_only: Lock, begun: bool
) -> None:
    out = tmp_path / "out"
    if begun:
        shutil.copytree(unbroken, out)
        (out / "summary.json").unlink()
    before, cache = tiny.files(tmp_path), recipe.parent / "cache"
    cached = tiny.files(cache)
    read_only(out)
    with pytest.raises(Invalid, match=r"--out .*/out: .*/out is read-only; name another folder"):
        tiny.run(recipe, out, "tokenizer.train=301")
    assert tiny.files(tmp_path) == before and tiny.files(cache) == cached


def test_a_run_in_a_read_only_parent_is_named(
    recipe: Path, tmp_path: Path, read_only: Lock
) -> None:
    parent = read_only(tmp_path / "parent")
    with pytest.raises(Invalid, match=r"--out .*/new/out: .*/parent is read-only; name another"):
        tiny.run(recipe, parent / "new/out")


def test_a_finished_run_is_read_where_nothing_may_be_written(
    recipe: Path, unbroken: Path, tmp_path: Path, read_only: Lock
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    summary = tiny.run(recipe, read_only(tmp_path / "out"))
    assert summary["end"] == "finished"


def test_a_read_only_cache_is_named_where_something_is_to_be_made(
    place: Path, unbroken: Path, tmp_path: Path, read_only: Lock
) -> None:
    copy = Path(shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("un*")))
    for shelf in ("tokenizers", "stores"):
        read_only(copy / "cache" / shelf)
    with pytest.raises(Invalid, match=r"cache/tokenizers: cannot be written .*another --cache"):
        tiny.run(copy / "recipe.toml", tmp_path / "other", "tokenizer.train=301")
    assert not (tmp_path / "other").exists()
    tiny.run(copy / "recipe.toml", tmp_path / "out")  # all that it needs is there
    tiny.assert_same_run(tmp_path / "out", unbroken)


def test_a_read_only_target_of_prepare_is_named(
    place: Path, unbroken: Path, tmp_path: Path, read_only: Lock
) -> None:
    words, out = tokenizer.load(str(unbroken / "tokenizer")), read_only(tmp_path / "out")
    with pytest.raises(Invalid, match=r"out/tokens: cannot be written \(.*\); name another"):
        prepare([str(place / "en.jsonl")], words, str(out / "tokens"), Options(quiet=True))
    assert not list(out.iterdir())


def test_a_read_only_target_of_export_is_named(
    unbroken: Path, tmp_path: Path, read_only: Lock, capsys: pytest.CaptureFixture[str]
) -> None:
    out = read_only(tmp_path / "out")
    cache = str(unbroken.parent / "cache")
    assert cli.main(["export", str(unbroken), "--out", str(out / "m"), "--cache", cache]) == 2
    assert f"{out} is read-only; name another folder" in capsys.readouterr().err


# A store that goes away


def at_step(step: int, patch: pytest.MonkeyPatch, accident: Callable[[], object]) -> None:
    """Let something happen after a step of the sitting, counted from 1."""
    real, calls = Journal.step, 0

    def counted(self: Journal, *done: Any) -> None:
        nonlocal calls
        calls += 1
        real(self, *done)
        if calls == step:
            accident()

    patch.setattr(Journal, "step", counted)


@pytest.fixture
def copy(place: Path, unbroken: Path, tmp_path: Path) -> Path:
    """The texts, the recipe and the cache, to be damaged."""
    return Path(shutil.copytree(place, tmp_path / "copy", ignore=shutil.ignore_patterns("un*")))


def test_stores_that_vanish_while_a_run_goes_on_are_read_to_its_end(
    copy: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(17, monkeypatch, lambda: shutil.rmtree(copy / "cache/stores"))
    tiny.run(copy / "recipe.toml", tmp_path / "out")
    assert not (copy / "cache/stores").exists()
    tiny.assert_same_run(tmp_path / "out", unbroken)


def test_a_store_that_is_truncated_while_a_run_goes_on_is_named_and_restored(
    copy: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = {path: path.read_bytes() for path in (copy / "cache/stores").glob("*/tokens.bin")}
    out = tmp_path / "out"

    def truncate() -> None:
        for path in stores:
            os.truncate(path, 4)

    with monkeypatch.context() as patch, pytest.raises(Invalid, match="bin: ends too early"):
        at_step(10, patch, truncate)
        tiny.run(copy / "recipe.toml", out)
    assert records.read(out)[-1]["reason"] == "failed"
    before = tiny.files(out)
    with pytest.raises(Invalid, match=r"tokens.bin: holds 4 bytes where its index says .*restore"):
        tiny.run(copy / "recipe.toml", out)
    for path in stores:
        path.unlink()
    with pytest.raises(Invalid, match=r"tokens.bin: cannot be opened"):
        tiny.run(copy / "recipe.toml", out)
    assert tiny.files(out) == before
    for path, data in stores.items():
        path.write_bytes(data)
    assert tiny.checkpoints(out)[-1] in ("step-000000007", "step-000000014")
    tiny.run(copy / "recipe.toml", out)
    tiny.assert_same_run(out, unbroken)


# A clock that jumps


def test_a_clock_that_jumps_changes_nothing(
    recipe: Path, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By days, back and forth, also between two sittings; time within a run is monotonic."""
    luck, real = random.Random(1), time.time
    monkeypatch.setattr(time, "time", lambda: real() + luck.choice((-1, 1)) * 1e5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(17, patch)
        tiny.run(recipe, tmp_path)
    for number, path in enumerate(sorted((tmp_path / "checkpoints").iterdir(), reverse=True)):
        os.utime(path, (number, number))  # the newest is the oldest by its time
    tiny.run(recipe, tmp_path)
    tiny.assert_same_run(tmp_path, unbroken)
    seconds = [r["seconds"] for r in records.read(tmp_path) if r["kind"] == "step"]
    assert seconds == sorted(seconds) and seconds[0] >= 0


def test_without_git_a_run_does_not_know_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert header._commit() is None


def test_nothing_asks_what_time_it_is() -> None:
    """Durations are monotonic, and nothing is decided by the date."""
    asked = re.compile(r"\btime\.(time|time_ns)\(|datetime\.(now|today|utcnow)\(")
    found = [path.name for path in HOUSE.rglob("*.py") if asked.search(path.read_text())]
    assert found == []
