"""The demo: texts that this machine holds, and the whole of it in little."""

from __future__ import annotations

import ast
import dataclasses
import json
from pathlib import Path

import pytest
from rich.console import Console

from treering import study
from treering.demo import show, texts
from treering.study import Cell


def documents(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_the_texts_are_what_they_are_called_and_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ENOUGH", 60_000)
    counts = texts.collect(tmp_path / "one")
    found = {name: documents(tmp_path / f"one/{name}.jsonl") for name in counts}
    assert {name: len(each) for name, each in found.items()} == counts
    for name, each in found.items():
        assert 60_000 <= sum(map(len, each)) <= 60_000 + texts.LARGEST
        assert all(texts.SMALLEST <= len(text) <= texts.LARGEST for text in each), name
    assert sum("import " in text for text in found["python"]) > len(found["python"]) / 2
    assert not any(ast.get_docstring(ast.parse(text)) for text in found["python"])
    assert sum("#include" in text for text in found["cpp"]) > len(found["cpp"]) / 2
    assert sum(" the " in text for text in found["english"]) > len(found["english"]) / 2
    texts.collect(tmp_path / "two")
    for name in counts:
        assert documents(tmp_path / f"two/{name}.jsonl") == found[name]


real = study.load


def smaller(path: Path, data: Path) -> list[Cell]:
    return [dataclasses.replace(c, recipe=_smaller(c.recipe)) for c in real(path, data)]


def _smaller(recipe: study.Recipe) -> study.Recipe:
    batch = dataclasses.replace(recipe.batch, tokens=256)
    phases = tuple(dataclasses.replace(phase, tokens=1_024) for phase in recipe.phases)
    model = dataclasses.replace(recipe.model, depth=1, width=16, heads=2, mlp=32)
    tokenizer = dataclasses.replace(recipe.tokenizer, train=300)
    evaluate = dataclasses.replace(recipe.evaluate, tokens=256, every_tokens=None)
    return dataclasses.replace(
        recipe, batch=batch, phases=phases, model=model, tokenizer=tokenizer, evaluate=evaluate
    )


@pytest.mark.filterwarnings("ignore:update.every")  # of Reptile in short runs
def test_it_ends_with_the_comparison_samples_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "ENOUGH", 100_000)
    monkeypatch.setattr(show.study, "load", smaller)
    console = Console(record=True, width=120)
    assert show.demo(tmp_path, console, cache=str(tmp_path / "cache")) == 0
    said = console.export_text()
    for arm in ("sequential", "replay-25", "mer-25"):
        assert f"{arm}-seed0: finished" in said
        assert (tmp_path / f"study/runs/{arm}-seed0/model").is_dir()
    assert "differences to sequential" in said and "one seed: nothing can be concluded" in said
    assert said.count("goes on as") == 3 and said.count("before training") == 3
    assert (tmp_path / "study/report.html").stat().st_size > 500_000
    before = (tmp_path / "text/cpp.jsonl").stat().st_mtime_ns
    again = Console(record=True, width=120)
    assert show.demo(tmp_path, again, cache=str(tmp_path / "cache")) == 0
    assert "3 cells, 3 of them finished" in again.export_text()
    assert (tmp_path / "text/cpp.jsonl").stat().st_mtime_ns == before
