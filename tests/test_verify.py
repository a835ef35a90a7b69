"""`treering verify`: what is whole is called sound, and one changed byte anywhere is found."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny

from treering import cli, records, tokenizer
from treering.prepare import Options, prepare


@pytest.fixture(scope="module")
def store(place: Path) -> Path:
    words = tokenizer.train(tiny.documents("en", 20), 290)
    options = Options(quiet=True, workers=1)
    prepare([str(place / "en.jsonl")], words, str(place / "tokens"), options)
    return place / "tokens"


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    tiny.run(place / "recipe.toml", place / "run")
    return place / "run"


def verified(*paths: Path) -> int:
    return cli.main(["verify", *map(str, paths)])


def flip(path: Path, at: int) -> None:
    """One bit, and the file's times as they were: only its bytes tell."""
    data, times = bytearray(path.read_bytes()), path.stat()
    data[at] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_what_is_whole_is_sound(run: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(run, store) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("sound ") for line in lines) and "DAMAGED" not in str(lines)
    assert len(lines) == 1 + 2 + 1 + 1  # records, checkpoints, model; the store
    assert "as it was prepared" in lines[-1]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("place_in_file", [0.3, 0.6, 0.999])
def test_a_changed_bit_of_a_store_is_found(
    store: Path, tmp_path: Path, suffix: str, place_in_file: float,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for each in (".bin", ".idx", ".json"):
        shutil.copy2(f"{store}{each}", f"{tmp_path / 'tokens'}{each}")
    file = Path(f"{tmp_path / 'tokens'}{suffix}")
    flip(file, int(place_in_file * file.stat().st_size))
    assert verified(tmp_path / "tokens") == 1
    assert f"{suffix}: " in capsys.readouterr().out


def test_a_changed_bit_of_a_checkpoint_or_a_torn_model_is_found(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    files = sorted((tmp_path / "run/checkpoints").rglob("*.distcp"))
    flip(files[0], files[0].stat().st_size // 2)
    with open(tmp_path / "run/model/model.safetensors", "r+b") as file:
        file.truncate(1000)
    assert verified(tmp_path / "run") == 1
    out = capsys.readouterr().out
    assert out.count("DAMAGED") == 2
    assert f"DAMAGED  {files[0].parent}: {files[0].name} was changed" in out
    assert f"DAMAGED  {tmp_path / 'run/model'}: {tmp_path / 'run/model/model.safetensors'}: " in out


def test_damaged_records_are_a_finding_and_the_rest_is_looked_at(
    run: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/records.jsonl"
    path.write_bytes(b"{}\n" + path.read_bytes())
    assert verified(tmp_path / "run", store) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"DAMAGED  {path}: {path}: line 1 is damaged; restore the file"
    assert len(rest) == 4 and all(line.startswith("sound ") for line in rest)


def test_a_last_record_that_is_damaged_is_no_torn_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    path = tmp_path / "run/records.jsonl"
    whole = path.read_bytes()
    lines = whole.count(b"\n")
    path.write_bytes(whole[:-2] + b"\x00\n")
    assert verified(tmp_path / "run") == 1
    assert f"DAMAGED  {path}: line {lines} is damaged" in capsys.readouterr().out
    path.write_bytes(whole[:-2])
    assert verified(tmp_path / "run") == 0
    assert "the last line is torn; it is left out" in capsys.readouterr().out


def test_a_run_that_writes_meanwhile_is_sound(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "run")
    real = records.read

    def read(path: Path) -> list[records.Record]:
        found = real(path)
        with open(path, "ab") as file:
            file.write(path.read_bytes().splitlines(keepends=True)[1])
        return found

    monkeypatch.setattr(records, "read", read)
    assert verified(tmp_path / "run") == 0
    assert "DAMAGED" not in capsys.readouterr().out


def test_a_run_whose_texts_have_moved_is_sound(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = tmp_path / "run/recipe.toml"
    recipe.write_text(recipe.read_text().replace("fr.jsonl", "gone.jsonl"))
    assert verified(tmp_path / "run") == 0
    assert f"sound    {recipe}: " in (said := capsys.readouterr().out)
    assert "gone.jsonl is no longer there" in said
    recipe.write_text("seed = 'x'")
    assert verified(tmp_path / "run") == 1
    assert f"DAMAGED  {recipe}: seed = 'x': must be int" in capsys.readouterr().out


def test_a_foreign_store_is_only_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(50))
    assert verified(tmp_path / "tokens.npy") == 0
    assert "50 tokens, foreign: nobody wrote down what it was" in capsys.readouterr().out


def test_anything_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verified(tmp_path) == 2
    assert "is neither a store" in capsys.readouterr().err
