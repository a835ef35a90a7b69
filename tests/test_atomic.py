"""Files are there whole or not at all, whoever writes them at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from treering.atomic import replacing


def test_processes_of_the_same_number_on_two_machines_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pods of Kubernetes, which are all process 1, in one folder."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with replacing(tmp_path / "x") as one:
        one.write_text("one")
        with replacing(tmp_path / "x") as two:
            two.write_text("two")
        assert (tmp_path / "x").read_text() == "two"
    assert (tmp_path / "x").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("before")
    for folder in (True, False):
        with pytest.raises(OSError, match="full"), replacing(tmp_path / "x") as beside:
            beside.mkdir() if folder else beside.write_text("half")
            raise OSError("full")
    assert (tmp_path / "x").read_text() == "before" and len(list(tmp_path.iterdir())) == 1
