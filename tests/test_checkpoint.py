"""Checkpoints: whole or not at all, told apart from damaged ones, and passed over with a word."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from treering import checkpoint
from treering.config import Invalid
from treering.mesh import Mesh

ALONE = Mesh()
TENSORS = {"weights/a": torch.arange(6.0).view(2, 3), "plan/memory.source": torch.arange(4)}


def filled(value: float = 0.0) -> dict[str, torch.Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in TENSORS.items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flipped(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, TENSORS, {"plan": {"step": 7}}, keep=2, mesh=ALONE)
    numbers = {"step": 7, "stays": False, "plan": {"step": 7}}
    assert checkpoint.newest(tmp_path) == (path, numbers)
    found = filled()
    checkpoint.load(path, found, ALONE)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


@pytest.mark.parametrize("steps", [(9, 10), (99, 100), (999_999_999, 1_000_000_000)])
def test_the_newest_is_found_by_number_not_by_name(tmp_path: Path, steps: tuple[int, int]) -> None:
    for step in steps:
        checkpoint.save(tmp_path, step, TENSORS, {}, keep=2, mesh=ALONE)
    (tmp_path / f"step-{steps[0]:09d}").rename(tmp_path / f"step-{steps[0]}")  # without zeros
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == steps[1]
    checkpoint.save(tmp_path, steps[1] + 1, TENSORS, {}, keep=2, mesh=ALONE)
    assert names(tmp_path) == [f"step-{step:09d}" for step in (steps[1], steps[1] + 1)]


def test_some_stay_for_good(tmp_path: Path) -> None:
    for step in range(1, 8):
        stays = step in (1, 4)
        checkpoint.save(tmp_path, step, TENSORS, {}, keep=2, stays=stays, mesh=ALONE)
    assert names(tmp_path) == [f"step-{step:09d}" for step in (1, 4, 6, 7)]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_last_few_stay(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        checkpoint.save(tmp_path, step, TENSORS, {}, keep=keep, mesh=ALONE)
        assert names(tmp_path) == [
            f"step-{s:09d}" for s in range(max(1, step - keep + 1), step + 1)
        ]


def test_a_damaged_later_one_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 9, {"weights": torch.ones(1)}, {}, keep=1, mesh=ALONE)
    (tmp_path / "step-000000009" / "manifest.json").unlink()
    checkpoint.save(tmp_path, 7, {"weights": torch.ones(1)}, {}, keep=1, mesh=ALONE)
    with pytest.warns(UserWarning, match="step-000000009"):
        found = checkpoint.newest(tmp_path)
    assert found is not None and found[0].name == "step-000000007"


def test_a_half_written_one_is_ignored_and_swept_away_by_the_next(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 3, TENSORS, {}, keep=2, mesh=ALONE)
    shutil.copytree(tmp_path / "step-000000003", tmp_path / ".step-000000004.tmp")
    found = checkpoint.newest(tmp_path)
    assert found is not None and found[1]["step"] == 3
    checkpoint.save(tmp_path, 4, TENSORS, {}, keep=2, mesh=ALONE)
    assert names(tmp_path) == ["step-000000003", "step-000000004"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(
        tmp_path_factory.mktemp("sound"), 1, TENSORS, {"plan": {}}, keep=1, mesh=ALONE
    )


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_seen(sound: Path, data: st.DataObject) -> None:
    assert checkpoint.damaged(sound) is None
    path = data.draw(st.sampled_from(sorted(sound.iterdir())))
    before = path.read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    bit = data.draw(st.integers(0, 7))
    try:
        path.write_bytes(before[:at] + bytes([before[at] ^ (1 << bit)]) + before[at + 1 :])
        damage = checkpoint.damaged(sound)
    finally:
        path.write_bytes(before)
    assert damage is not None


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_shortening_is_seen(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(sound.iterdir())))
    before = path.read_bytes()
    try:
        path.write_bytes(before[: data.draw(st.integers(0, len(before) - 1))])
        damage = checkpoint.damaged(sound)
    finally:
        path.write_bytes(before)
    assert damage is not None


@pytest.mark.parametrize("file", [".metadata", "manifest.json", "state.json", "__0_0.distcp"])
def test_a_missing_file_is_named(tmp_path: Path, file: str) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {}, keep=1, mesh=ALONE)
    (path / file).unlink()
    with pytest.warns(UserWarning, match=rf"{path.name} is passed over: .*{file}"):
        assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"state.json": 1}', "[" * 100_000])
def test_a_manifest_of_another_shape_is_damage(tmp_path: Path, content: str) -> None:
    path = checkpoint.save(tmp_path, 1, TENSORS, {}, keep=1, mesh=ALONE)
    (path / "manifest.json").write_text(content)
    with pytest.warns(UserWarning, match=rf"{path.name} is passed over: "):
        assert checkpoint.newest(tmp_path) is None


class FullDisk:
    """Stands for one of os' functions that write; the k-th call in all fails with ENOSPC."""

    def __init__(self, fail_at: int) -> None:
        self.calls, self.fail_at = 0, fail_at

    def wrap(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments)

        return call


def test_without_room_at_any_moment_the_earlier_checkpoint_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of `fsync` and `rename` in turn fails; what was there is untouched."""
    import os

    checkpoint.save(tmp_path, 1, TENSORS, {}, keep=2, mesh=ALONE)
    before, failed = tiny.files(tmp_path), 0
    for fail_at in range(1, 50):
        disk = FullDisk(fail_at)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk.wrap(os.fsync))
            patch.setattr(os, "rename", disk.wrap(os.rename))
            try:
                checkpoint.save(tmp_path, 2, TENSORS, {}, keep=2, mesh=ALONE)
            except OSError as error:
                assert error.errno == errno.ENOSPC
                failed += 1
            else:
                break
        now = tiny.files(tmp_path)
        assert {name: data for name, data in now.items() if "step-000000002" not in name} == before
        found = checkpoint.newest(tmp_path)
        assert found is not None
        assert not list(tmp_path.glob(".step-*"))
        shutil.rmtree(tmp_path / "step-000000002", ignore_errors=True)
    assert failed >= 3


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.place(tmp_path_factory.mktemp("checkpoint"))
    tiny.run(folder / "recipe.toml", folder / "unbroken")
    return folder / "unbroken"


def stopped(unbroken: Path, out: Path) -> Path:
    """A copy of the finished run, as if it had been killed right after its last checkpoint."""
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "model")
    (out / "summary.json").unlink()
    return out


def corrupt(path: Path) -> None:
    flipped(path / "__0_0.distcp", 100)


def truncate(path: Path) -> None:
    data = (path / "__0_0.distcp").read_bytes()
    (path / "__0_0.distcp").write_bytes(data[: len(data) // 2])


def lose_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def lose_metadata(path: Path) -> None:
    (path / ".metadata").unlink()


@pytest.mark.parametrize("damage", [corrupt, truncate, lose_manifest, lose_metadata])
def test_a_run_passes_a_damaged_checkpoint_over_and_ends_as_if_unbroken(
    unbroken: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    out = stopped(unbroken, tmp_path / "out")
    assert tiny.checkpoints(out) == ["step-000000049", "step-000000050"]
    damage(out / "checkpoints/step-000000050")
    with pytest.warns(UserWarning, match="step-000000050 is passed over"):
        tiny.run(unbroken.parent / "recipe.toml", out)
    tiny.assert_same_run(out, unbroken)
    assert checkpoint.damaged(out / "checkpoints/step-000000050") is None  # written anew


@pytest.mark.parametrize("gone", [True, False])
def test_when_all_are_gone_or_damaged_nothing_is_thrown_away(
    unbroken: Path, tmp_path: Path, gone: bool
) -> None:
    """Of a run that was to go on. With `fresh` it begins at step 0, and the old one is kept."""
    out = stopped(unbroken, tmp_path / "out")
    for path in (out / "checkpoints").iterdir():
        shutil.rmtree(path) if gone else corrupt(path)
    before = tiny.files(out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Invalid, match="after step 50 is gone or damaged; restore checkpoints/"):
            tiny.run(unbroken.parent / "recipe.toml", out)
    assert len([one for one in caught if "passed over" in str(one.message)]) == (0 if gone else 2)
    assert tiny.files(out) == before
    tiny.run(unbroken.parent / "recipe.toml", out, fresh=True)
    tiny.assert_same_run(out, unbroken)
    assert tiny.files(tmp_path / "out.old-1") == before


def test_the_manifest_holds_size_and_digest_of_every_other_file(unbroken: Path) -> None:
    path = unbroken / "checkpoints/step-000000050"
    manifest = json.loads((path / "manifest.json").read_text())
    assert sorted([*manifest, "manifest.json"]) == names(path)
    assert all(manifest[name][0] == (path / name).stat().st_size for name in manifest)
