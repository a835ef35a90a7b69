"""What the README shows can be run: its recipes load, its Python uses what is there."""

from __future__ import annotations

import ast
import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

import treering
from treering import adapter, config, schema, shelf, study, surgery, tables
from treering.methods import adapters, memories, penalties, schedules, surgeries, updates

README = Path(__file__).parents[1] / "README.md"
PAGES = [README, README.parent / "CONTRIBUTING.md", *(README.parent / "docs").glob("*.md")]


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
        make(recipe)
        if {"length", "corpora", "phases"} <= table.keys():
            config.check(recipe)


def make(recipe: config.Recipe) -> None:
    """Every method that its tables name."""
    shelf.update(recipe, recipe.update)
    shelf.penalties(recipe)
    shelf.schedule(recipe, (100, 100))
    surgery.surgeries(recipe)
    adapter.named(dataclasses.replace(recipe, optimizer=tables.Optimizer()))  # not beside groups
    name, rest = recipe.replay.memory["kind"], {**recipe.replay.memory}
    del rest["kind"], rest["over"]
    memories.KINDS[name](**rest)


def test_its_first_recipe_is_one() -> None:
    [text] = re.findall(r"<<'TOML'\n(.*?)^TOML$", README.read_text(), re.DOTALL | re.MULTILINE)
    recipe = schema.read(config.Recipe, tomllib.loads(text), "")
    make(recipe)
    config.check(recipe)


def test_every_key_of_a_recipe_is_named() -> None:
    [block] = [block for block in blocks("toml") if "[optimizer]" in block]
    classes = [c for c in vars(tables).values() if dataclasses.is_dataclass(c)]
    assert len(classes) > 15
    for found in classes:
        for key in dataclasses.fields(found):
            assert re.search(rf"\b{key.name.rstrip('_')}\b", block), (found.__name__, key.name)


def test_its_python_uses_what_is_public() -> None:
    found = blocks("python")
    assert found
    for block in found:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "treering":
                assert node.attr in treering.__all__


def anchors(page: Path) -> set[str]:
    """Where a link may lead within a page, as GitHub names its headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_what_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_every_method_has_its_rows() -> None:
    """One that says what it costs and what was measured, and one that names its keys."""
    text = (README.parent / "docs/methods.md").read_text()
    first, second = text.split("## Their keys")
    for place in (adapters, memories, penalties, schedules, surgeries, updates):
        for kind in place.KINDS:
            assert re.search(rf"^\| .*`{kind}`", second, re.MULTILINE), kind
            if kind != "descent":  # plain training
                assert re.search(rf"^\| .*`{kind}`", first, re.MULTILINE), kind
