"""Downstream tasks for tests: the tiny recipe with definitions, ours and some more, and data."""

from __future__ import annotations

import json
import random
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny

from treering import records

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


def fill(folder: Path) -> Path:
    """The tiny recipe, a folder of definitions (ours and some more), and their data."""
    place = tiny.place(folder)
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


def task_records(out: Path, step: int) -> list[dict[str, Any]]:
    keys = ("task", "metric", "value", "stderr", "n")
    found = [r for r in records.read(out) if r["kind"] == "task" and r["step"] == step]
    return [{key: r[key] for key in keys} for r in found]
