"""What the README shows can be run: its recipes load, its Python uses what is there."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import treering
from treering import config, schema, study

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)


def test_its_toml_is_a_recipe_or_tables_of_one_or_a_study() -> None:
    found = blocks("toml")
    assert found
    for block in found:
        table = tomllib.loads(block)
        if "arms" in table:
            asked = schema.read(study.Study, table, "")
            assert asked.baseline in asked.arms
            continue
        whole = {"length": 16, "model": {"preset": "1m"}, "tokenizer": {"train": 300}}
        corpus = {"train": "text", "validation": 0.5}
        whole |= {"corpora": {"a": corpus}, "phases": []}
        recipe = schema.read(config.Recipe, whole | table, "")
        if {"length", "corpora", "phases"} <= table.keys():
            config.check(recipe)


def test_its_python_uses_what_is_public() -> None:
    found = blocks("python")
    assert found
    for block in found:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "treering":
                assert node.attr in treering.__all__
