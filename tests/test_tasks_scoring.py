"""How tasks are scored, summed up and shown."""

from __future__ import annotations

import copy
import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console
from tasks import fill, sets, with_lm_eval

from treering import build, config, downstream, outcome
from treering.analysis import forgetting
from treering.mesh import Mesh
from treering.report import table


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    tiny.run(place / "recipe.toml", place / "plain")
    return place / "plain"


@with_lm_eval
def test_lm_eval_leaves_model_tokenizer_and_generators_as_they_were(place: Path) -> None:
    recipe = config.load(place / "recipe.toml", sets=sets(place, "choose", "roll", "write"))
    parts = build.parts(recipe, build.data(recipe, place / "cache"), Mesh())
    model, words = parts.learner.forward.root.model, parts.tasks.tokenizer
    model.train()
    model.model.layers[0].eval()

    def state() -> list[Any]:
        return [
            [(name, id(p), p.detach().numpy().tobytes()) for name, p in model.named_parameters()],
            [module.training for module in model.modules()],
            [len(module._forward_pre_hooks) for module in model.modules()],
            copy.deepcopy((model.config.to_dict(), model.generation_config.to_dict())),
            (words.pad_token, words.padding_side, words.backend_tokenizer.to_str()),
            (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()),
            (torch.are_deterministic_algorithms_enabled(), os.getcwd()),
        ]

    before = state()
    with tiny.one_thread():
        one, two = parts.tasks.scores(model), parts.tasks.scores(model)
    assert state() == before
    assert one == two and one.tokens > 0  # asked again, it answers the same


@with_lm_eval
def test_a_group_is_its_mean_and_a_tag_its_members(place: Path, plain: Path) -> None:
    def asked(*names: str) -> list[downstream.TaskScore]:
        folder, data = str(place / "tasks"), str(place / "data")
        given = {"tasks": names, "task_folder": folder, "task_data": data}
        with tiny.one_thread():
            return outcome.task_scores(str(plain), None, given, place / "cache")

    (alone,), (mean,) = asked("choose"), asked("both")
    assert (mean.task, mean.metric, mean.value, mean.n) == ("both", "acc", alone.value, 24)
    assert [score.task for score in asked("tagged")] == ["choose", "choose_again"]


@with_lm_eval
def test_contexts_that_are_cut_are_told_once(place: Path, plain: Path) -> None:
    given = {"tasks": ("long",), "task_folder": str(place / "tasks"), "task_limit": 3}
    given |= {"task_data": str(place / "data")}
    with tiny.one_thread(), pytest.warns(UserWarning, match="Truncating .*and 5 more") as told:
        outcome.task_scores(str(plain), None, given, place / "cache")
    assert len(told) == 1


def test_the_summary_and_the_table_have_tasks_by_row_and_what_is_missing_is_missing() -> None:
    corpora = {"en": {}, "fr": {}}
    phases = [{"name": name, "mixture": {name: 1.0}} for name in corpora]
    ends = [{"name": name, "end_step": 5 * (i + 1)} for i, name in enumerate(corpora)]
    run: list[dict[str, Any]] = [
        {"kind": "header", "recipe": {"corpora": corpora, "phases": phases}, "phases": ends}
    ]
    scored = {0: (9.0, 0.25, 0.5), 5: (8.0, 0.75, None), 10: (7.0, None, None)}
    for step, (loss, accuracy, other) in scored.items():
        run += [{"kind": "score", "step": step, "corpus": c, "loss": loss} for c in corpora]
        for task, value in (("a|b", accuracy), ("c", other)):
            record = {"kind": "task", "step": step, "task": task, "metric": "acc", "n": 4}
            stderr = 0.125 if task == "a|b" else None
            if value is not None:
                run.append(record | {"phase": "x", "value": value, "stderr": stderr})
    summary = forgetting.summary(run)
    assert summary["tasks"] == {
        "columns": ["a|b/acc", "c/acc"],
        "values": [[0.25, 0.5], [0.75, None], [None, None]],
        "stderr": [[0.125, None], [0.125, None], [None, None]],
        "n": [[4, 4], [4, None], [None, None]],
    }
    console = Console(width=40, record=True, file=io.StringIO())
    table.show(summary, console)
    words = [line.split() for line in console.export_text().splitlines()]
    assert ["task", "base", "en", "fr"] in words
    assert ["a|b/acc", "0.250", "±0.125", "0.750", "±0.125", "-"] in words
    assert ["c/acc", "0.500", "-", "-"] in words
    assert "| a\\|b/acc | 0.250 ±0.125 | 0.750 ±0.125 | - |" in table.markdown(summary)
    del summary["tasks"]  # of a run that ended before there were tasks
    assert "task" not in table.markdown(summary)
    table.show(summary, Console(quiet=True))
