"""Trackers: they show what the records say, once, and never stop a run."""

from __future__ import annotations

import json
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny

from treering import cli, records, trackers
from treering.config import Invalid
from treering.tables import Track

Points = dict[str, list[tuple[int, float]]]  # (step, value) by name, in order


def installed(name: str) -> pytest.MarkDecorator:
    absent = find_spec(name) is None
    return pytest.mark.skipif(absent, reason=f"the extra treering[{name}] is not installed")


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    tiny.run(place / "recipe.toml", place / "plain")
    return place / "plain"


def tracked(place: Path, out: Path, *to: str, **options: Any) -> None:
    tiny.run(place / "recipe.toml", out, f"track.to={list(to)}", **options)


def interrupted(place: Path, out: Path, step: int, *to: str) -> None:
    """A sitting that ends with Ctrl-C, after records beyond its last checkpoint were shown: that
    checkpoint is removed, as if the process had been killed before it."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(step, patch)
        tracked(place, out, *to)
    newest = out / "checkpoints" / tiny.checkpoints(out)[-1]
    newest.rename(out / "gone")


def expected(out: Path) -> Points:
    """What a tracker shall show of a run, from its records."""
    points: Points = {}
    for record in records.read(out):
        for name, value in trackers.numbers(record["kind"], record).items():
            points.setdefault(name, []).append((record["step"], value))
    return points


def without_times(points: Points) -> Points:
    return {name: p for name, p in points.items() if name.split("/")[-1] not in records.TIMES}


def on_tensorboard(out: Path) -> Points:
    """What TensorBoard's own reader finds, in its 32 bits."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    names = reader.Tags()["scalars"]
    return {name: [(e.step, e.value) for e in reader.Scalars(name)] for name in names}


def assert_close(found: Points, wanted: Points) -> None:
    assert found.keys() == wanted.keys()
    for name, points in wanted.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in points], rel=1e-6)


def test_records_are_named_as_a_tracker_shows_them() -> None:
    numbers = trackers.numbers
    score = {"step": 5, "phase": "x", "corpus": "en", "loss": 2.5, "bits_per_byte": None}
    assert numbers("score", score) == {"held_out/en": 2.5}
    branch = score | {"branch": "average 0.9", "bits_per_byte": 1.0}
    names = ("held_out/en/average 0.9", "bits_per_byte/en/average 0.9")
    assert tuple(numbers("branch_score", branch)) == names
    task = {"step": 0, "task": "piqa", "metric": "acc", "value": 0.5, "stderr": 0.1, "n": 3}
    assert numbers("task", task) == {"task/piqa/acc": 0.5}
    step = {"step": 7, "phase": "x", "loss": 1.5, "replayed_loss": float("nan"), "tokens": 64}
    assert numbers("step", step) == {"train/loss": 1.5, "train/tokens": 64.0}
    assert numbers("probe", {"step": 7, "cosine": 0.25}) == {"probe/cosine": 0.25}
    for kind in ("header", "checkpoint", "end"):
        assert numbers(kind, {"step": 7, "seconds": 1.0}) == {}


@installed("tensorboard")
def test_tensorboard_shows_the_records_and_the_run_is_as_without(place: Path, plain: Path) -> None:
    out = place / "board"
    tracked(place, out, "tensorboard")
    tiny.assert_same_run(out, plain)
    found = on_tensorboard(out)
    assert_close(found, expected(out))
    assert [step for step, _ in found["train/loss"]] == list(range(1, tiny.STEPS + 1))
    assert [step for step, _ in found["held_out/de"]] == [0, 9, 18, 25, 27, 36, 45, 50]
    assert "train/rate" in found and "bits_per_byte/en" in found


@installed("tensorboard")
@pytest.mark.parametrize("step", [3, 31])
def test_tensorboard_shows_a_resumed_run_once(
    place: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was stopped before its first checkpoint, and begins again."""
    out = tmp_path / "out"
    interrupted(place, out, step, "tensorboard")
    assert len(tiny.checkpoints(out)) == (0 if step == 3 else 1)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 2)  # its files are read in order of seconds
    tracked(place, out, "tensorboard")
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert_close(without_times(on_tensorboard(out)), without_times(expected(out)))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Points]:
    """Reads what trackio has of a run, which lies in a folder of the test's own."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)  # it asks for its folder once, when imported

    def read(out: Path) -> Points:
        from trackio.sqlite_storage import SQLiteStorage

        (run,) = SQLiteStorage.get_runs("treering")
        assert run == f"{out.name}-{(out / 'track-id').read_text()}"
        points: Points = {}
        for row in SQLiteStorage.get_logs("treering", run):
            step = row.pop("step")
            del row["timestamp"]
            for name, value in row.items():
                points.setdefault(name, []).append((step, value))
        return points

    return read


@installed("trackio")
def test_trackio_shows_the_records_of_a_resumed_run_once(
    place: Path, plain: Path, tmp_path: Path, store: Callable[[Path], Points]
) -> None:
    out = tmp_path / "out"
    interrupted(place, out, 31, "trackio")
    assert max(step for step, _ in store(out)["train/loss"]) == 31
    tracked(place, out, "trackio")
    tiny.assert_same_run(out, plain)
    assert (tmp_path / "trackio/treering.db").exists()
    assert without_times(store(out)) == without_times(expected(out))  # all digits
    assert store(out).keys() == expected(out).keys()


def fake_wandb(monkeypatch: pytest.MonkeyPatch, calls: list[Any], fails: str = "") -> None:
    """A module that notes how it is called, and fails in one of its calls."""

    def note(call: str, value: Any) -> None:
        calls.append((call, value))
        if call == fails:
            raise RuntimeError("no\nnetwork")

    def log(numbers: Mapping[str, float], step: int) -> None:
        note("log", (step, numbers))

    def init(**settings: Any) -> Any:
        note("init", settings)
        return SimpleNamespace(log=log, finish=lambda: note("finish", None))

    module = SimpleNamespace(init=init, Settings=lambda **given: given)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(trackers, "find_spec", lambda _: True)


def test_wandb_is_one_run_over_all_sittings_and_steps_never_fall_within_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "out", list[Any]()
    fake_wandb(monkeypatch, calls)
    interrupted(place, out, 31, "wandb")
    sitting = len(calls)
    tracked(place, out, "wandb")
    begun = [settings for call, settings in calls if call == "init"]
    mark = (out / "track-id").read_text()
    assert [(s["id"], s["resume"], s["name"], s["dir"]) for s in begun] == [
        (mark, "allow", "out", out)
    ] * 2
    assert begun[0]["config"]["seed"] == 1
    for part in (calls[:sitting], calls[sitting:]):
        steps = [value[0] for call, value in part if call == "log"]
        assert steps == sorted(steps) and part[-1] == ("finish", None)
    points: Points = {}
    for step, numbers in [value for call, value in calls[sitting:] if call == "log"]:
        for name, value in numbers.items():
            points.setdefault(name, []).append((step, value))
    after = {n: [p for p in ps if p[0] > 28] for n, ps in expected(out).items()}
    assert points == after  # what is written in a sitting is mirrored in it
    assert {s["project"] for s in begun} == {"treering"}
    named = ("track={to=['wandb'], project='rings', name='seven'}", "phases.0.tokens=64",
             "phases.1.tokens=64", "update.every=1")  # fmt: skip
    tiny.run(place / "recipe.toml", tmp_path / "named", *named)
    last = [settings for call, settings in calls if call == "init"][-1]
    assert (last["project"], last["name"]) == ("rings", "seven")
    tracked(place, out, "wandb", fresh=True)
    assert (out / "track-id").read_text() != mark  # another run, although in the same folder


@installed("wandb")
def test_wandb_offline_has_every_record(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MODE": "offline", "ERROR_REPORTING": "false", "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    out = tmp_path / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the package itself
        tracked(place, out, "wandb")
        wanted, patience = expected(out), time.monotonic() + 30
        while (found := on_wandb(out)) != wanted and time.monotonic() < patience:
            time.sleep(0.05)  # its own process writes the file to the end
    assert found == wanted


def framed(data: bytes) -> Iterator[bytes]:
    """The messages of a file in LevelDB's log format: blocks of 32 KiB, in which each part of a
    message has a header of checksum, length and kind (1 whole, 2 first, 3 middle, 4 last)."""
    at, message = 7, b""  # after the file's own header
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield message
            message = b""


def on_wandb(out: Path) -> Points:
    """What the file of an offline run holds, by wandb's own messages."""
    from wandb.proto import wandb_internal_pb2

    (path,) = (out / "wandb").glob("offline-run-*/run-*.wandb")
    points: Points = {}
    for message in framed(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        items = [(i.key or "/".join(i.nested_key), i.value_json) for i in record.history.item]
        row = {name: json.loads(value) for name, value in items}
        for name in row.keys() - {"_step", "_timestamp", "_runtime"}:
            points.setdefault(name, []).append((row["_step"], row[name]))
    return points


@pytest.mark.parametrize("fails", ["init", "log", "finish"])
def test_a_failing_tracker_is_named_once_and_the_run_goes_on(
    place: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    calls: list[Any] = []
    fake_wandb(monkeypatch, calls, fails)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tracked(place, tmp_path / "out", "wandb")
    said = "tracker wandb failed (RuntimeError: no); the run goes on without"
    assert [str(w.message) for w in told if "tracker" in str(w.message)] == [said]
    assert [call for call, _ in calls].count(fails) == 1  # not asked again
    tiny.assert_same_run(tmp_path / "out", plain)


@installed("tensorboard")
def test_one_that_fails_leaves_the_others(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(monkeypatch, [], "log")
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match="tracker wandb failed"):
        tracked(place, out, "wandb", "tensorboard")
    assert_close(on_tensorboard(out), expected(out))


def test_an_unknown_tracker_and_one_that_is_not_installed_are_told_before_anything_is_written(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    said = {
        "wandbb": "track.to = 'wandbb': no such tracker; did you mean 'wandb'?",
        "trackio": "track.to = 'trackio': is not installed; pip install 'treering[trackio]', "
        "or leave it out",
    }
    command = ["run", str(place / "recipe.toml"), "--out", str(tmp_path / "out")]
    for name, words in said.items():
        line = [*command, "--cache", str(tmp_path / "cache"), "--set", f"track.to=['{name}']"]
        assert cli.main(line) == 2
        assert capsys.readouterr().err == f"treering: {words}\n"
    assert not list(tmp_path.iterdir())
    with pytest.raises(Invalid):
        trackers.check(Track(to=("tensorboard",)))


def test_without_trackers_nothing_is_left_of_them(plain: Path) -> None:
    assert not (plain / "track-id").exists()
    assert {path.name for path in plain.iterdir()} == {
        "checkpoints",
        "model",
        "recipe.toml",
        "records.jsonl",
        "summary.json",
        "tokenizer",
    }
