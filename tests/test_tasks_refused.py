"""Tasks that are misspelt or cannot be had are named before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tasks import fill, sets, with_lm_eval

from treering import build, cli, config, downstream


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("tasks"))


WRONG = {
    "evaluate.tasks=['chose']": "evaluate.tasks = 'chose': no such task; did you mean 'choose'?",
    "evaluate.tasks=['x']": "known: blimp_local, both, choose, choose_again, endless, long, piqa",
    "evaluate.task_folder='nowhere'": "evaluate.task_folder = 'nowhere': no such folder",
    "evaluate.task_data='nowhere'": "evaluate.task_data = 'nowhere': no such folder",
    "evaluate.task_data='tasks'": "['choose']: cannot be loaded (Unable to find",
    "evaluate.task_limit=0": "evaluate.task_limit = 0: must be at least 1",
    "evaluate.task_batch=0": "evaluate.task_batch = 0: must be at least 1",
    "evaluate.tasks='choose'": "evaluate.tasks = 'choose': must be a list",
}


@with_lm_eval
@pytest.mark.parametrize("wrong", WRONG)
def test_bad_input_is_one_line_before_anything_is_written(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wrong: str,
) -> None:
    import lm_eval.tasks

    class Small(lm_eval.tasks.TaskManager):  # type: ignore[misc, unused-ignore]
        def __init__(self, include_path: Any, include_defaults: bool = True) -> None:
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", Small)  # lm-eval's own take 10 seconds
    given = [*sets(place, "choose"), wrong]
    options = [part for setting in given for part in ("--set", setting)]
    command = ["run", str(place / "recipe.toml"), "--out", str(tmp_path / "out"), *options]
    assert cli.main([*command, "--cache", str(place / "cache")]) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if " documents" not in x]
    assert len(lines) == 1 and WRONG[wrong] in lines[0]
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named_before_anything_is_written(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(downstream, "find_spec", lambda _: None)
    options = [part for setting in sets(place, "choose") for part in ("--set", setting)]
    command = ["run", str(place / "recipe.toml"), "--out", str(tmp_path / "out"), *options]
    for line in (command, ["evaluate", str(tmp_path), "--tasks", "choose"]):
        assert cli.main([*line, "--cache", str(tmp_path / "cache")]) == 2
        told = capsys.readouterr().err
        said = "evaluate.tasks = ['choose']: lm-eval is not installed; pip install 'treering[eval]'"
        assert told == f"treering: {said}\n"
    assert not list(tmp_path.iterdir())


def test_without_tasks_and_trackers_a_run_has_the_identity_that_it_had_before_there_were_any(
    place: Path,
) -> None:
    tracked = ("track.to=['wandb']", "evaluate.task_limit=3", "evaluate.task_data='data'")
    recipe = config.load(place / "recipe.toml", sets=tracked)
    identity = build.data(recipe, place / "cache").identity
    assert identity["evaluate"] == {"tokens": 128, "every_tokens": 576}
    assert "track" not in identity
