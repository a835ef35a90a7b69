"""Downstream tasks: lm-eval's numbers to the digit, and a training that does not notice them."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from rich.console import Console

from treering import build, checkpoint, cli, config, downstream, outcome, records
from treering.analysis import forgetting
from treering.config import Invalid
from treering.mesh import Mesh
from treering.report import table
from treering.tables import Evaluate

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes/tasks"
missing = any(find_spec(name) is None for name in ("lm_eval", "accelerate"))
with_lm_eval = pytest.mark.skipif(missing, reason="the extra treering[eval] is not installed")

CHOOSE = """
tag: tagged
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: sub/choose.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: 0
doc_to_choice: "{{{{[one, other]}}}}"
metric_list: [{{metric: acc}}]
"""
ROLL = """
task: roll
dataset_path: json
dataset_kwargs: {data_files: {test: sub/choose.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""
WRITE = """
task: write
dataset_path: json
dataset_kwargs: {data_files: {test: sub/choose.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{one}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: true, temperature: 1.0}
metric_list: [{metric: exact_match}]
"""
GROUP = """
group: both
task: [choose, choose_again]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
"""
LONG = """
include: choose.yaml
task: long
tag: endless
doc_to_text: "{{text * 40}}"
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe, a folder of definitions (ours and some more), and their data."""
    place = tiny.place(tmp_path_factory.mktemp("downstream"))
    tasks = place / "tasks"
    shutil.copytree(RECIPES, tasks)
    for name in ("choose", "choose_again"):
        (tasks / f"{name}.yaml").write_text(CHOOSE.format(name=name))
    for name, text in {"roll": ROLL, "write": WRITE, "both": GROUP, "long": LONG}.items():
        (tasks / f"{name}.yaml").write_text(text)
    (place / "data/sub").mkdir(parents=True)
    luck = random.Random(3)
    lines = [
        {"text": tiny.sentence("en", luck), "one": f" {en}", "other": f" {fr}"}
        for en, fr in zip(tiny.documents("en", 12), tiny.documents("fr", 12), strict=True)
    ]
    (place / "data/sub/choose.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    return place


def sets(place: Path, *tasks: str) -> tuple[str, ...]:
    """`--set` for tasks of the place's folder."""
    return (
        f"evaluate.tasks={list(tasks)}",
        "evaluate.task_folder='tasks'",
        "evaluate.task_data='data'",
        "evaluate.task_limit=8",
    )


@pytest.fixture(scope="module")
def plain(place: Path) -> Path:
    """A run without tasks. It has dropout, so that the process's generators are drawn from."""
    tiny.run(place / "recipe.toml", place / "plain", "model.dropout=0.1")
    return place / "plain"


@pytest.fixture(scope="module")
def tasked(place: Path) -> Path:
    """The same run with tasks of three kinds at row 0 and phase ends."""
    asked = sets(place, "choose", "roll", "write")
    tiny.run(place / "recipe.toml", place / "tasked", "model.dropout=0.1", *asked)
    return place / "tasked"


def task_records(out: Path, step: int) -> list[dict[str, Any]]:
    keys = ("task", "metric", "value", "stderr", "n")
    found = [r for r in records.read(out) if r["kind"] == "task" and r["step"] == step]
    return [{key: r[key] for key in keys} for r in found]


@with_lm_eval
def test_a_run_with_tasks_equals_the_run_without_bit_for_bit(plain: Path, tasked: Path) -> None:
    tiny.assert_same_run(tasked, plain)
    one, other = tiny.files(tasked / "model"), tiny.files(plain / "model")
    assert {name for name in one if one[name] != other[name]} == {"README.md"}


@with_lm_eval
def test_tasks_are_recorded_at_row_0_and_at_phase_ends(plain: Path, tasked: Path) -> None:
    found = [record for record in records.read(tasked) if record["kind"] == "task"]
    keys = ["kind", "step", "phase", "task", "metric", "value", "stderr", "n"]
    assert all(list(record) == keys for record in found)
    named = ("choose", "acc"), ("roll", "bits_per_byte"), ("write", "exact_match")
    moments = ("base", 0), ("first", 25), ("second", 50)
    assert [(r["phase"], r["step"], r["task"], r["metric"]) for r in found] == [
        (*moment, *name) for moment in moments for name in named
    ]
    assert {record["n"] for record in found} == {8}
    rolled = [record for record in found if record["task"] == "roll"]
    assert rolled[2]["value"] < rolled[0]["value"]  # it has learned English
    assert {record["stderr"] for record in rolled} == {None}  # lm-eval knows none
    summary = json.loads((tasked / "summary.json").read_text())
    columns = ["choose/acc", "roll/bits_per_byte", "write/exact_match"]
    assert summary["tasks"]["columns"] == columns
    values = [[r["value"] for r in found if r["step"] == step] for _, step in moments]
    assert summary["tasks"]["values"] == values
    nothing = json.loads((plain / "summary.json").read_text())["tasks"]
    assert nothing["columns"] == [] and nothing["values"] == [[], [], []]
    assert "roll/bits_per_byte" in (tasked / "model/README.md").read_text()


@with_lm_eval
def test_what_the_tasks_cost_is_charged_to_evaluation(plain: Path, tasked: Path) -> None:
    ledgers = []
    for out in (plain, tasked):
        newest = checkpoint.newest(out / "checkpoints")
        assert newest is not None
        ledgers.append(newest[1]["ledger"])
    assert ledgers[1].pop("evaluation_flops") > 1.05 * ledgers[0].pop("evaluation_flops")
    assert ledgers[0] == ledgers[1]


@with_lm_eval
def test_an_interrupted_run_with_tasks_equals_the_unbroken_one(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = (*tiny.KINDS, "task")
    asked = sets(place, "choose", "roll")
    tiny.run(place / "recipe.toml", tmp_path / "unbroken", *asked)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(30, patch)
        tiny.run(place / "recipe.toml", tmp_path / "broken", *asked)
    moved = place / "moved"  # paths are no part of a run's identity
    (place / "tasks").rename(moved)
    try:
        elsewhere = (*asked, f"evaluate.task_folder='{moved}'")
        tiny.run(place / "recipe.toml", tmp_path / "broken", *elsewhere)
    finally:
        moved.rename(place / "tasks")
    tiny.assert_same_run(tmp_path / "broken", tmp_path / "unbroken", kinds)
    with pytest.raises(Invalid, match="the recipe changed: evaluate.task_limit: 8 -> 9"):
        more = (*asked, "evaluate.task_limit=9")
        tiny.run(place / "recipe.toml", tmp_path / "broken", *more)


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


@with_lm_eval
def test_tasks_on_two_ranks_are_those_of_one(place: Path, tmp_path: Path) -> None:
    """Choices, a rolling loss and a generated text of a model that is spread over two processes."""
    short = (*sets(place, "choose", "roll", "write"), "phases.0.tokens=640", "phases.1.tokens=640")
    tiny.run(place / "recipe.toml", tmp_path / "one", *short)
    command = [sys.executable, "-m", "treering", "run", str(place / "recipe.toml")]
    command += ["--out", str(tmp_path / "two"), "--cache", str(place / "cache"), "--devices", "2"]
    done = subprocess.run(
        [*command, *(f"--set={each}" for each in short)], timeout=100, capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (tiny.story(tmp_path / name, ("task",)) for name in ("one", "two"))
    assert len(one) == len(two) == 3 * 3
    for a, b in zip(one, two, strict=True):
        assert a.pop("value") == pytest.approx(b.pop("value"), abs=1e-5)
        assert a.pop("stderr") == pytest.approx(b.pop("stderr"), abs=1e-5)
        assert a == b
