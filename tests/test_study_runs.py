"""A study with real runs: each cell once, whatever fails, is killed or interrupted in between."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import Forks, Sitting, assert_same_run

from treering import cli, records
from treering.engines import local
from treering.engines.process import Job

STUDY = """
base = "recipe.toml"
baseline = "plain"
[common]
evaluate = { tokens = 64, every_tokens = 3_840 }
phases = [
    { name = "first", tokens = 3_840, mixture = { en = 1.0 } },  # 60 steps
    { name = "second", tokens = 3_840, mixture = { fr = 2.0, de = 1.0 } },
]
[grid]
seed = [4]
[arms.plain]
update = { kind = "descent" }
[arms.mer]
grid.update.rate = [0.5]
"""
PLAIN, MER = "plain-seed4", "mer-rate0.5-seed4"
SHORT = STUDY.replace("3_840", "320").replace("seed = [4]", "seed = [4, 5]")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny.place(tmp_path_factory.mktemp("study"))
    (place / "study.toml").write_text(STUDY)
    (place / "short.toml").write_text(SHORT)
    return place


def call(place: Path, out: Path, *more: str, file: str = "study.toml") -> int:
    cache = ["--cache", str(place / "cache")]
    with tiny.one_thread():
        return cli.main(["study", str(place / file), "--out", str(out), *more, *cache])


def within(
    jobs: Sequence[Job], at_once: int, watch: Callable[[list[str]], None]
) -> Generator[tuple[Job, int], None, None]:
    """An engine that runs its cells in this process, which has torch in it already."""
    for job in jobs:
        assert job.cache is not None
        with open(job.log, "a") as log, redirect_stderr(log):
            code = cli.main(["run", job.recipe, "--out", job.out, "--cache", job.cache])
        yield job, code


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "run", within)


def moments(out: Path) -> dict[str, int]:
    """When each file of the runs was written last."""
    return {str(p): p.stat().st_mtime_ns for p in (out / "runs").rglob("*") if p.is_file()}


def tables(out: Path) -> dict[str, Any]:
    """The comparison without times."""
    table: dict[str, Any] = json.loads((out / "comparison.json").read_text())
    for costs in table["arms"].values():
        assert costs.pop("seconds") > 0
    return table


# -- in this process -----------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
def test_a_study_ends_in_its_tables_and_finished_cells_are_never_run_again(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(place, out, file="short.toml") == 0
    printed = capsys.readouterr().out
    assert "4 cells, 0 of them finished" in printed and f"{PLAIN}: finished" in printed
    assert "differences to plain" in printed
    found = sorted(path.name for path in out.iterdir())
    tables_of = ["cells.csv", "comparison.json", "comparison.md"]
    assert found == [*tables_of, "logs", "recipes", "report.html", "runs", "study.json"]
    assert set(tables(out)["arms"]) == {"plain", "mer-rate0.5"} and not tables(out)["notes"]
    assert tables(out)["arms"]["plain"]["seeds"] == [4, 5]
    assert len((out / "cells.csv").read_text().splitlines()) == 5
    before, files = moments(out), tiny.files(out)
    assert call(place, out, file="short.toml") == 0
    assert "4 cells, 4 of them finished" in capsys.readouterr().out
    assert moments(out) == before and tiny.files(out) == files


@pytest.mark.usefixtures("here")
def test_a_cell_that_fails_is_named_the_rest_goes_on_and_it_is_mended(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(place / "late.jsonl", ["so"])
    text = SHORT.replace("[4, 5]", "[4]") + '[arms.later]\nupdate = { kind = "descent" }\n'
    late = '[arms.late]\ncorpora.de.train = "late.jsonl"\ncorpora.de.validation = "en.jsonl"\n'
    (place / "late.toml").write_text(text.replace("[arms.plain]", late + "[arms.plain]"))
    assert call(place, tmp_path / "out", file="late.toml") == 1
    said = capsys.readouterr()
    assert "late-seed4: failed with exit code 2, see " in said.out
    assert "late-seed4.log: treering: corpora.de.train: has not one sample" in said.out
    assert said.err.splitlines()[-1] == "treering: failed: late-seed4; mend and run again"
    table = tables(tmp_path / "out")
    assert list(table["arms"]) == ["plain", "mer-rate0.5", "later"]
    assert table["notes"][-1] == "late-seed4: not finished, left out"
    before = moments(tmp_path / "out")
    tiny.write_text(place / "late.jsonl", tiny.documents("de", 40))
    assert call(place, tmp_path / "out", file="late.toml") == 0
    assert next(iter(tables(tmp_path / "out")["arms"])) == "late"
    after = moments(tmp_path / "out")
    assert {path: after[path] for path in before if "/late" not in path} == {
        path: moment for path, moment in before.items() if "/late" not in path
    }


@pytest.mark.usefixtures("here")
def test_a_study_of_which_every_cell_fails_has_failed(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_text(place / "never.jsonl", ["so"])
    (place / "never.toml").write_text(SHORT + '[common.corpora.de]\ntrain = "never.jsonl"\n')
    assert call(place, tmp_path / "out", file="never.toml") == 1
    assert "treering: failed: plain-seed4, plain-seed5, mer-" in capsys.readouterr().err
    assert not (tmp_path / "out/comparison.json").exists()


@pytest.mark.usefixtures("here")
def test_cells_can_be_listed_and_run_one_by_one(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(place, out, "--list") == 0
    assert capsys.readouterr().out == f"   0  {PLAIN}\n   1  {MER}\n" and not out.exists()
    assert call(place, out, "--cell", "2") == 2
    assert "--cell 2: there are cells 0 to 1" in capsys.readouterr().err and not out.exists()
    (place / "one.toml").write_text(SHORT.replace("[4, 5]", "[4]"))
    for cell, name in ((1, MER), (0, PLAIN)):
        assert call(place, out, "--cell", str(cell), file="one.toml") == 0
        assert f"{name}: finished" in capsys.readouterr().out
        assert not (out / "comparison.json").exists() and (out / "cells.csv").exists()
    before = moments(out)
    assert call(place, out, file="one.toml") == 0
    assert moments(out) == before and set(tables(out)["arms"]) == {"plain", "mer-rate0.5"}


@pytest.mark.usefixtures("here")
def test_a_finished_cell_whose_recipe_changed_is_named_and_not_overwritten(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "changed.toml").write_text(SHORT.replace("[4, 5]", "[4]"))
    assert call(place, tmp_path / "out", file="changed.toml") == 0
    before = moments(tmp_path / "out")
    text = SHORT.replace("[4, 5]", "[4]").replace('"descent" }', '"descent" }\nreplay.share = 0.5')
    (place / "changed.toml").write_text(text)
    assert call(place, tmp_path / "out", file="changed.toml") == 1
    said = capsys.readouterr()
    assert f"failed: {PLAIN};" in said.err and "replay.share: 0.25 -> 0.5" in said.out
    assert moments(tmp_path / "out") == before
    assert list(tables(tmp_path / "out")["arms"]) == ["mer-rate0.5"]


# -- in processes --------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks and kills")


@pytest.fixture(scope="module")
def unbroken(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study in one go, two cells at a time."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert call(place, out, "--jobs", "2") == 0
    return out


def started(forks: Forks, place: Path, out: Path) -> Sitting:
    line = ["study", str(place / "study.toml"), "--out", str(out), "--jobs", "2"]
    return forks.call(*line, "--cache", str(place / "cache"))


def steps(out: Path, name: str) -> int:
    """How many steps a cell's records hold."""
    path = out / "runs" / name / "records.jsonl"
    found = records.read(path) if path.exists() else []
    return max((record.get("step", 0) for record in found), default=0)


def processes(out: Path) -> list[int]:
    """Of the cells of a study."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        found += [int(path.parent.name)] if f"{out}/runs/{PLAIN}".encode() in words else []
        found += [int(path.parent.name)] if f"{out}/runs/{MER}".encode() in words else []
    return found


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def test_two_cells_at_a_time_are_as_good_as_one_run_after_the_other(unbroken: Path) -> None:
    for name in (PLAIN, MER):
        tiny.run(unbroken / "recipes" / f"{name}.toml", unbroken.parent / name)
        assert_same_run(unbroken / "runs" / name, unbroken.parent / name)
        assert "step      60  first" in (unbroken / "logs" / f"{name}.log").read_text()
    assert "nothing can be concluded" in tables(unbroken)["notes"][0]


@linux
def test_a_killed_study_goes_on_as_if_it_had_not_been(
    unbroken: Path, place: Path, forks: Forks, tmp_path: Path
) -> None:
    """kill -9 of the study alone: its cells die with it, and hold no folder when it goes on."""
    luck, out = random.Random("a killed study"), tmp_path / "out"
    for least in (0, luck.randint(10, 100)):
        sitting = started(forks, place, out)
        wait_for(lambda: len(processes(out)) == 2)
        wait_for(lambda least=least: max(steps(out, PLAIN), steps(out, MER)) >= least)  # type: ignore[misc]
        time.sleep(luck.uniform(0, 1) if least == 0 else 0.0)
        os.kill(sitting.pid, signal.SIGKILL)
        assert sitting.wait()[0] == -signal.SIGKILL
        wait_for(lambda: not processes(out), 10.0)
    code, log = started(forks, place, out).wait()
    assert code == 0, log
    assert tables(out) == tables(unbroken)
    for name in (PLAIN, MER):
        assert_same_run(out / "runs" / name, unbroken / "runs" / name)
    logs = "".join(path.read_text() for path in (out / "logs").iterdir())
    assert "resuming after step" in logs


@linux
@pytest.mark.parametrize(("number", "code_of", "words"), [
    (signal.SIGINT, 130, "interrupted; the same command goes on"),
    (signal.SIGTERM, 0, "stopped by the system; the same command goes on"),
])  # fmt: skip
def test_a_signal_lets_the_cells_save_themselves(
    unbroken: Path, place: Path, forks: Forks, tmp_path: Path, number: signal.Signals, code_of: int,
    words: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    sitting = started(forks, place, out)
    wait_for(lambda: min(steps(out, PLAIN), steps(out, MER)) >= 1)
    os.kill(sitting.pid, number)  # the study alone, as its cells have their own session
    code, log = sitting.wait()
    assert code == code_of and words in log, log
    assert not processes(out) and not (out / "comparison.json").exists()
    saved = {}
    for name in (PLAIN, MER):
        found = records.read(out / "runs" / name)
        if found[-1]["reason"] == "interrupted":  # it might have come to its end before
            assert found[-2]["kind"] == "checkpoint"
            saved[name] = steps(out, name)
    assert saved
    code, log = started(forks, place, out).wait()
    assert code == 0 and f"2 cells, {2 - len(saved)} of them finished" in log
    assert tables(out) == tables(unbroken)
    for name, step in saved.items():
        assert f"resuming after step {step} " in (out / "logs" / f"{name}.log").read_text()
        assert_same_run(out / "runs" / name, unbroken / "runs" / name)
