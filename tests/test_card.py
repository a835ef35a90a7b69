"""Names that look like markup are text in Markdown: in the report, and in model cards."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import recorded
import tiny
from markdown_it import MarkdownIt

from treering import config
from treering.analysis import forgetting
from treering.analysis.runs import Arm
from treering.report.card import card, merged
from treering.report.table import markdown
from treering.report.write import markdown as report

HOSTILE = ["<script>alert(1)</script>", "\\<img src=x>", "a|b<i>", "\\|<b>"]
VALUES = [[9.0, 9.0], [4.0, 8.0], [5.0, 4.0]]


def named(name: str) -> list[recorded.Record]:
    """A run with a corpus, a phase and a task of that name."""
    found = recorded.run(VALUES, mixtures=[["t1"], ["t2"]])
    task = {"kind": "task", "step": 0, "phase": "base", "task": "t1", "metric": "acc",
            "value": 0.5, "stderr": None, "n": 9}  # fmt: skip
    text = json.dumps([*found, task])
    made: list[recorded.Record] = json.loads(
        text.replace('"t1"', json.dumps(name)).replace('"p1"', json.dumps(name))
    )
    return made


def html(text: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(text))


def cells(text: str) -> list[int]:
    """How many cells each row of its tables has."""
    return [len(re.findall("<t[hd][ >]", row)) for row in html(text).split("<tr>")[1:]]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_text_in_the_report_and_in_the_card(name: str, tmp_path: Path) -> None:
    run = named(name)
    summary: Any = forgetting.summary(run)
    recipe = config.load(tiny.place(tmp_path) / "recipe.toml")
    plain = name.replace("<", "&lt;").replace(">", "&gt;")
    for text, times in (
        (markdown(summary), 4),  # a corpus, a phase in both tables, a task
        (report([Arm(name, {0: run})], None), 5),
        (card(recipe, summary, branch=name), 5),
    ):
        made = html(text)
        assert not any(f"<{tag}" in made for tag in ("script", "img", "i>", "b>"))
        assert made.count(plain) == times
        assert set(cells(text)) == {5, 3 + 1}  # the matrix; the tasks at three rows


def test_what_a_merged_model_was_made_of_is_text_too() -> None:
    made = html(merged("a + b", [("/models/<b>a", None), ("/models/b", "12")]))
    assert "&lt;b&gt;a: of the hub" in made and "<b>" not in made
