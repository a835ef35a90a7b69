"""Downstream tasks: lm-eval's questions, and its numbers to the digit."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tasks import RECIPES, fill, task_records, with_lm_eval

from treering import cli, downstream
from treering.tables import Evaluate


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("tasks"))


def synthetic(data: Path) -> None:
    """Files of the shapes that the definitions expect, of a few lines each."""
    choice = {"premise": "It rained. ", "choice1": "Ein Satz.", "choice2": "Äh."}
    languages = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")
    pairs = [("b", "1"), ("b", "2"), ("a", "1"), ("a", "2"), ("a", "3")]
    asked = {"QUESTION": "Is it?", "CONTEXTS": ["One.", "Two {{x}}."], "final_decision": "no"}
    files: dict[str, list[dict[str, Any]]] = {
        "piqa/validation": [
            {"goal": goal, "sol1": "a", "sol2": "bc", "label": 1} for goal in ("Eat it", "Find it")
        ],
        "blimp/test": [
            {"sentence_good": f"{uid}{n}", "sentence_bad": "x", "UID": uid} for uid, n in pairs
        ],
        "pubmedqa/pqa_labeled": [asked | {"split": split} for split in ("train", "test", "test")],
    }
    for language in languages:
        files[f"xcopa/{language}.test"] = [
            choice | {"question": question, "label": 1} for question in ("cause", "effect")
        ]
    for name, lines in files.items():
        path = data / f"{name}.jsonl.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


@with_lm_eval
def test_our_definitions_ask_what_lm_evals_own_ask(tmp_path: Path) -> None:
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    synthetic(tmp_path)
    names = TaskManager(include_path=RECIPES, include_defaults=False).all_subtasks
    assert len(names) == 14
    wanted = Evaluate(tasks=tuple(names), task_folder=str(RECIPES), task_data=str(tmp_path))
    loaded = downstream.load(wanted, None).loaded["tasks"]  # type: ignore[arg-type]
    own = Path(lm_eval.tasks.__file__).parent
    theirs = {"piqa_local": "piqa/piqa.yaml", "pubmedqa_local": "pubmedqa/pubmedqa.yaml"}
    theirs |= {"blimp_local": "blimp/adjunct_island.yaml"}
    for name in names:
        file = theirs.get(name) or f"xcopa/default_{name.removeprefix('xcopa_local_')}.yaml"
        settings = load_yaml(own / file)
        task = loaded[name]
        assert settings["output_type"] == task.OUTPUT_TYPE
        metrics = [metric["metric"] for metric in settings["metric_list"]]
        assert list(task._metric_fn_list) == metrics
        for document in task.eval_docs:
            for ask in ("doc_to_text", "doc_to_choice", "doc_to_target"):
                method: Callable[..., Any] = getattr(task, ask)
                there = settings[ask]
                expected = there(document) if callable(there) else method(document, there)
                assert method(document) == expected, (name, ask)
    good = [pair["sentence_good"] for pair in loaded["blimp_local"].eval_docs]
    assert good == ["a1", "b1", "a2", "b2", "a3"]
    assert [q["split"] for q in loaded["pubmedqa_local"].eval_docs] == ["test"] * 2


@with_lm_eval
def test_numbers_are_those_of_lm_evals_own_command_on_the_exported_model(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    synthetic(data)
    (data / "sub").symlink_to(place / "data/sub")
    names = ["piqa_local", "blimp_local", "xcopa_local_it", "pubmedqa_local", "roll"]
    sets = (
        f"evaluate.tasks={names}",
        "evaluate.task_folder='tasks'",
        f"evaluate.task_data='{data}'",
        "evaluate.task_limit=20",
    )
    out = tmp_path / "out"
    tiny.run(place / "recipe.toml", out, *sets)
    found = task_records(out, tiny.STEPS)
    assert found == by_command(out / "model", place / "tasks", data, names, tmp_path / "results")
    metrics = [(record["task"], record["metric"]) for record in found]
    assert metrics[:2] == [("piqa_local", "acc"), ("piqa_local", "acc_norm")] and len(metrics) == 6
    assert len(repr(found[-1]["value"])) > 12  # a number of all digits
    asked = ["--tasks", ",".join(names), "--task-folder", str(place / "tasks")]
    asked += ["--task-data", str(data), "--task-limit", "20", "--json"]
    capsys.readouterr()
    for model in (out, out / "model"):
        with tiny.one_thread():
            assert cli.main(["evaluate", str(model), *asked, "--cache", str(place / "cache")]) == 0
        assert json.loads(capsys.readouterr().out) == found
    with tiny.one_thread():  # a run's own recipe says what the command line does not
        command = ["evaluate", str(out), "--tasks", "roll", "--cache", str(place / "cache")]
        assert cli.main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert any("roll" in line and f"{found[-1]['value']:.4f}" in line for line in printed)


def by_command(
    model: Path, folder: Path, data: Path, names: list[str], out: Path
) -> list[dict[str, Any]]:
    """What `lm_eval` writes, as our records have it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--batch_size", "8"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--device", device]
    command += ["--tasks", *names, "--include_path", str(folder), "--limit", "20"]
    command += ["--output_path", str(out)]
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=data, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = out.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    return [
        {
            "task": name,
            "metric": key.removesuffix(",none"),
            "value": value,
            "stderr": None if stderr == "N/A" else stderr,
            "n": results[name]["sample_len"],
        }
        for name in names
        for key, value in results[name].items()
        if key.endswith(",none") and "_stderr" not in key
        for stderr in [results[name][key.replace(",", "_stderr,")]]
    ]
