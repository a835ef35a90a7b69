"""What a run makes of its folder: another recipe's, others' files, what is damaged, a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from tiny import STEPS

from treering import records, training
from treering.config import Invalid

linux = pytest.mark.skipif(sys.platform != "linux", reason="forks")


def test_a_changed_recipe_is_refused_with_old_and_new_value(unbroken: Path, recipe: Path) -> None:
    before = tiny.files(unbroken)
    with pytest.raises(Invalid, match=r"recipe changed: update.rate: 0.5 -> 0.25; undo it, .*--fr"):
        tiny.run(recipe, unbroken, "update.rate=0.25")
    with pytest.raises(Invalid, match=r"optimizer.clip: 1.0 -> 2.0; seed: 1 -> 2;"):
        tiny.run(recipe, unbroken, "seed=2", "optimizer.clip=2.0")
    with pytest.raises(Invalid, match=r"\(and 1 more\)"):
        changes = ("seed=2", "optimizer.clip=2", "update.every=6", "optimizer.eps=1e-6")
        tiny.run(recipe, unbroken, *changes)
    assert tiny.files(unbroken) == before


def test_an_edited_text_is_refused_by_its_corpus(
    unbroken: Path, tmp_path: Path, place: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("log-*"))
    tiny.write_text(copy / "fr-held-out.jsonl", tiny.documents("fr", 12, "other"))
    before = tiny.files(copy / "unbroken")
    with pytest.raises(Invalid, match=r"recipe changed: corpora.fr.validation: '\w+' -> '\w+';"):
        tiny.run(copy / "recipe.toml", copy / "unbroken")
    assert tiny.files(copy / "unbroken") == before


def test_fresh_keeps_the_old_folder_aside(recipe: Path, unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken, tmp_path / "out")
    before = tiny.files(tmp_path / "out")
    for k in (1, 2):
        tiny.run(recipe, tmp_path / "out", "update.rate=0.25", fresh=True)
        assert tiny.files(tmp_path / "out.old-1") == before
        assert (tmp_path / f"out.old-{k}").is_dir()
    header, *rest = records.read(tmp_path / "out")
    assert header["recipe"]["update"]["rate"] == 0.25
    assert [record["kind"] for record in rest].count("step") == STEPS


def test_a_locked_folder_is_refused(recipe: Path, unbroken: Path) -> None:
    handle = os.open(unbroken, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Invalid, match=r"another run is using it; wait"):
            tiny.run(recipe, unbroken)
    finally:
        os.close(handle)


def test_a_run_in_progress_is_refused_a_second_time(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = training.Run._score, []

    def score(self: training.Run, phase: str, *how: Any, **more: Any) -> bool:
        if phase == "base":
            with pytest.raises(Invalid, match=r"another run is using it"):
                tiny.run(recipe, tmp_path)
            refused.append(phase)
        return real(self, phase, *how, **more)

    monkeypatch.setattr(training.Run, "_score", score)
    tiny.run(recipe, tmp_path)
    assert refused == ["base"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_something_else_is_refused(recipe: Path, tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with pytest.raises(Invalid, match=r"--out .*out: holds files but no run"):
        tiny.run(recipe, tmp_path / "out", fresh=fresh)
    assert tiny.files(tmp_path) == {"out/thesis.tex": b"years of work"}


def test_a_file_instead_of_a_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(Invalid, match=r"--out .*out: is a file"):
        tiny.run(recipe, tmp_path / "out")


@pytest.mark.parametrize("edit", ["truncated", "changed"])
def test_a_damaged_store_is_refused_by_name_and_the_run_is_untouched(
    unbroken: Path, place: Path, tmp_path: Path, edit: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("log-*"))
    store = max((copy / "cache/stores").glob("*/tokens.bin"), key=lambda path: path.stat().st_size)
    data = bytearray(store.read_bytes())
    data[100] ^= 1
    store.write_bytes(data if edit == "changed" else data[:-2])
    before = tiny.files(copy / "unbroken")
    with pytest.raises(Invalid, match=str(store)):
        tiny.run(copy / "recipe.toml", copy / "unbroken")
    assert tiny.files(copy / "unbroken") == before


@linux
@pytest.mark.parametrize("limit", [3_000, 9_000, 20_000, 26_000])
def test_a_full_disk_is_named_and_nothing_is_lost(
    forks: tiny.Forks, unbroken: Path, tmp_path: Path, limit: int
) -> None:
    """No file may grow beyond the limit: first the checkpoint fails, or first the records."""
    out = tmp_path / "out"
    code, log = forks.run(out, limit=limit)
    assert code == 1, log
    assert "File too large" in log.splitlines()[-1] and "Traceback" not in log
    assert (out / "records.jsonl").stat().st_size <= limit
    lines = (out / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert all(json.loads(line) and line.endswith(b"\n") for line in lines)
    assert not list(out.glob("checkpoints/.step*"))
    code, log = forks.run(out)
    assert code == 0, log
    tiny.assert_same_run(out, unbroken)


@linux
def test_a_disk_that_is_full_at_the_export_is_named_and_nothing_is_lost(
    forks: tiny.Forks, tmp_path: Path
) -> None:
    out, wide = tmp_path / "out", "--set=model.width=32"  # its weights outgrow its records
    assert forks.run(out, wide)[0] == 0
    shutil.copytree(out, tmp_path / "whole")
    size = (out / "model/model.safetensors").stat().st_size
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    code, log = forks.run(out, wide, limit=size - 1)
    assert code == 1, log
    assert f"{out / 'model'}: " in log.splitlines()[-1] and "Traceback" not in log
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoints",
        "recipe.toml",
        "records.jsonl",
        "tokenizer",
    ]
    assert forks.run(out, wide)[0] == 0
    tiny.assert_same_run(out, tmp_path / "whole")
