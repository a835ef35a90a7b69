"""A whole run: its records, and its second sitting."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from tiny import STEPS

import treering
from treering import records, saving
from treering.analysis import forgetting

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def of(kind: str, out: Path) -> list[records.Record]:
    return [record for record in records.read(out) if record["kind"] == kind]


def interrupt(monkeypatch: pytest.MonkeyPatch, recipe: Path, out: Path, *sets: str) -> None:
    """Run, with a Ctrl-C during the 17th step of the sitting: within a cycle of Reptile."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(17, patch)
        tiny.run(recipe, out, *sets)


# Records


def test_a_run_folder_holds_what_is_promised(unbroken: Path) -> None:
    expected = ["checkpoints", "model", "recipe.toml", "records.jsonl", "summary.json", "tokenizer"]
    assert sorted(path.name for path in unbroken.iterdir()) == expected


def test_records_have_the_keys_of_their_kind(unbroken: Path) -> None:
    of_step = {"replayed", "tokens_per_second", "tokens", "fresh_tokens", "flops", "seconds"}
    of_step |= {
        "phase",
        "rate",
        "loss",
        "fresh_loss",
        "replayed_loss",
        "grad_norm",
        "skipped",
        "tflops",
        "mfu",
    }
    keys = {
        "header": {"recipe", "versions", "commit", "hardware"},
        "step": {"step"} | of_step,
        "score": {"step", "phase", "corpus", "loss", "bits_per_byte", "tokens"},
        "checkpoint": {"step", "path", "counters"},
        "end": {"reason", "seconds"},
    }
    for kind, wanted in keys.items():
        found = of(kind, unbroken)
        assert found
        assert all(wanted <= record.keys() for record in found), kind
    assert records.read(unbroken)[0]["kind"] == "header"
    assert of("end", unbroken)[-1]["reason"] == "finished"


def test_steps_count_from_1_and_what_is_cumulative_adds_up(unbroken: Path) -> None:
    steps = of("step", unbroken)
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert [record["phase"] for record in steps] == ["first"] * 25 + ["second"] * 25
    assert [record["tokens"] for record in steps] == [64 * n for n in range(1, STEPS + 1)]
    fresh = 0.0
    for record in steps:
        fresh += 64 * (1 - record["replayed"])
        assert record["fresh_tokens"] == fresh
    assert [record["replayed"] for record in steps[:3]] == [0.0, 0.25, 0.25]  # nothing held yet
    assert all(record["replayed_loss"] is not None for record in steps if record["replayed"])
    header = of("header", unbroken)[0]
    assert steps[3]["flops"] == pytest.approx(64 * 4 * header["flops_per_token"])
    meta = 3 * header["parameters"]
    assert steps[4]["flops"] == pytest.approx(64 * 5 * header["flops_per_token"] + meta)


def test_every_corpus_is_scored_at_row_0_every_n_tokens_and_at_phase_ends(unbroken: Path) -> None:
    scores = of("score", unbroken)
    found = [(record["step"], record["corpus"]) for record in scores]
    assert found == [(s, c) for s in (0, 9, 18, 25, 27, 36, 45, 50) for c in ("en", "fr", "de")]
    assert {record["tokens"] for record in scores} == {128}
    assert [record["phase"] for record in scores[::3]] == ["base"] + ["first"] * 3 + ["second"] * 4


def test_checkpoints_are_recorded_and_the_last_ones_are_there(unbroken: Path) -> None:
    found = of("checkpoint", unbroken)
    assert [record["step"] for record in found] == [7, 14, 21, 25, 28, 35, 42, 49, 50]
    assert tiny.checkpoints(unbroken) == ["step-000000049", "step-000000050"]
    assert (unbroken / found[-1]["path"]).is_dir()


def test_after_so_many_minutes_without_a_checkpoint_there_is_one(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by a minute at each step; phase ends are checkpoints, too."""
    minutes = iter(range(0, 60 * 10_000, 60))
    monkeypatch.setattr(saving, "time", SimpleNamespace(monotonic=lambda: next(minutes)))
    out = tmp_path / "run"
    tiny.run(recipe, out, "checkpoint={every_minutes=9.5}")
    found = [record["step"] for record in of("checkpoint", out)]
    assert found == [10, 20, 25, 35, 45, 50]


def test_some_checkpoints_stay_for_good(recipe: Path, tmp_path: Path) -> None:
    """Those of phase ends, and of every so many tokens; of the others the last."""
    kept = "checkpoint={every_tokens=448, keep=1, stay_at_phase=true, stay_every_tokens=1024}"
    tiny.run(recipe, tmp_path, kept)
    steps = [int(name.removeprefix("step-")) for name in tiny.checkpoints(tmp_path)]
    assert steps == [16, 25, 32, 48, 49, 50]


def test_the_summary_is_the_analysis_of_the_records(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text())
    assert summary == forgetting.summary(records.read(unbroken))
    assert summary["end"] == "finished"
    row = [record["loss"] for record in of("score", unbroken)[-3:]]
    assert summary["loss"]["values"][-1] == row
    lost = summary["loss"]["metrics"]["forgetting"]["per_corpus"]
    first = [record["loss"] for record in of("score", unbroken) if record["step"] == 25]
    assert lost == {"en": row[0] - first[0]}  # fr and de were learned last


def test_the_resolved_recipe_can_be_run_again(unbroken: Path, recipe: Path) -> None:
    again = treering.load(unbroken / "recipe.toml")
    assert again == treering.load(recipe)
    assert again.checkpoint.keep == 2  # a default, written out


def test_from_python_as_from_the_command_line(unbroken: Path, recipe: Path, tmp_path: Path) -> None:
    from rich.console import Console

    quiet, cache = Console(quiet=True), str(recipe.parent / "cache")
    with tiny.one_thread():
        summary = treering.run(treering.load(recipe), tmp_path, cache=cache, console=quiet)
    assert summary["loss"] == json.loads((unbroken / "summary.json").read_text())["loss"]
    assert treering.read(tmp_path) == records.read(tmp_path)
    tiny.assert_same_run(tmp_path, unbroken)


# Methods that do nothing


def test_share_0_is_a_recipe_without_replay(recipe: Path, tmp_path: Path) -> None:
    tiny.run(recipe, tmp_path / "zero", "replay.share=0.0")
    tiny.run(tiny.without(recipe.parent, "replay"), tmp_path / "none")
    tiny.assert_same_run(tmp_path / "zero", tmp_path / "none")


def test_reptile_at_rate_1_is_descent(unbroken: Path, recipe: Path, tmp_path: Path) -> None:
    tiny.run(recipe, tmp_path / "one", "update.rate=1.0")
    tiny.run(tiny.without(recipe.parent, "update"), tmp_path / "none")
    tiny.assert_same_run(tmp_path / "one", tmp_path / "none")
    assert tiny.weights(tmp_path / "one") != tiny.weights(unbroken)


# The second sitting


def test_ctrl_c_saves_and_the_second_run_goes_on_bit_for_bit(
    unbroken: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (17, 34):
        interrupt(monkeypatch, recipe, tmp_path)
        assert of("end", tmp_path)[-1]["reason"] == "interrupted"
        assert tiny.checkpoints(tmp_path)[-1] == f"step-{step:09d}"
        assert not (tmp_path / "summary.json").exists()
    tiny.run(recipe, tmp_path)
    tiny.assert_same_run(tmp_path, unbroken)
    reasons = [record["reason"] for record in of("end", tmp_path)]
    assert reasons == ["interrupted", "interrupted", "finished"]
    assert len(of("header", tmp_path)) == 3


@pytest.mark.parametrize(
    "sets",
    [
        ("update={kind='descent'}", "replay.memory={kind='everything'}"),
        ("replay.budget='batch'", "replay.memory={kind='balanced', over='past'}"),
        ("replay.budget='fresh'", "optimizer.at_phase='reset'", "schedule.span='phase'"),
        (
            "replay.memory={kind='everything', over='past'}",
            "update.reset_moments=true",
            "schedule={kind='wsd', peak=0.01, warmup=0.1, span='phase'}",
        ),
        (
            "objective.normalize='weights'",
            "objective.replayed=0.5",
            "schedule={kind='infinite', peak=0.01, warmup=0.1}",
        ),
        ("update={kind='coso', rank=4, sketch=4, every=3, side='in', decay=0.9}",),
        (
            "objective.teacher={weight=2.0, from='start'}",
            "penalties=[{kind='l2', weight=0.1, anchor='start'}]",
        ),
        ("update.align=true", "update.start='second'", "update.anchor='cpu'"),
        ("update.inner={kind='reptile', every=2, rate=0.3}", "optimizer.kind='sgd'"),
        ("update.inner={kind='per_sample'}", "batch.micro=16"),
        ("compute.precision='bf16'", "optimizer.at_phase='reset-momentum'"),
        ("update={kind='average', decays=[0.9], inner={kind='descent'}}", "probe.every=3"),
    ],
)
def test_every_method_resumes_bit_for_bit(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: tuple[str, ...]
) -> None:
    """Interrupted in its second phase, where what the first one left behind counts."""
    sets = ("phases.0.tokens=640", "phases.1.tokens=1280", *sets)  # 30 steps
    tiny.run(recipe, tmp_path / "whole", *sets)
    interrupt(monkeypatch, recipe, tmp_path / "parts", *sets)
    tiny.run(recipe, tmp_path / "parts", *sets)
    tiny.assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, where it compiles
def test_a_compiled_run_resumes_bit_for_bit(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = ("compute.compile=true", "phases.0.tokens=1280", "phases.1.tokens=256")
    tiny.run(recipe, tmp_path / "whole", *compiled)
    interrupt(monkeypatch, recipe, tmp_path / "parts", *compiled)
    tiny.run(recipe, tmp_path / "parts", *compiled)
    tiny.assert_same_run(tmp_path / "parts", tmp_path / "whole")


@linux
def test_sigint_ends_with_130_and_an_end_record(
    forks: tiny.Forks, unbroken: Path, tmp_path: Path
) -> None:
    sitting = forks.start(tmp_path / "out")
    while not (tmp_path / "out/checkpoints").exists():
        time.sleep(0.001)
    os.kill(sitting.pid, signal.SIGINT)
    code, log = sitting.wait()
    assert (code, log.splitlines()[-1]) == (
        130,
        "treering: interrupted; the same command goes on from what is saved",
    )
    assert "Traceback" not in log
    assert of("end", tmp_path / "out")[-1]["reason"] == "interrupted"
    code, log = forks.run(tmp_path / "out")
    assert code == 0, log
    tiny.assert_same_run(tmp_path / "out", unbroken)


@linux
def test_a_finished_run_says_so_and_nothing_is_rewritten(
    forks: tiny.Forks, unbroken: Path, tmp_path: Path
) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    before = tiny.files(tmp_path / "out")
    code, log = forks.run(tmp_path / "out")
    assert code == 0 and "is finished" in log
    assert tiny.files(tmp_path / "out") == before


def test_the_same_texts_elsewhere_are_the_same_run(
    unbroken: Path, place: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(place, moved, ignore=shutil.ignore_patterns("unbroken", "log-*", "cache"))
    interrupt(monkeypatch, recipe, tmp_path / "out")
    tiny.run(moved / "recipe.toml", tmp_path / "out")
    tiny.assert_same_run(tmp_path / "out", unbroken)
