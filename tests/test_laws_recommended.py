"""The recipe that `treering plan ask` writes is of the run that was predicted."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import tomli_w
from test_laws_pilots import FLAT, cells
from test_laws_plan import lines, quick, written
from test_pilots import planned

from treering import config
from treering.cli import main

__all__ = ["planned", "quick"]
pytestmark = pytest.mark.usefixtures("quick")
SIZE, TOKENS = 2e5, 2e7


def asked(pilots: list[str], recipe: Path, out: Path, *more: str) -> int:
    ask = ["plan", "ask", *pilots, "--budget", f"{6 * SIZE * TOKENS:g}", "--size", f"{SIZE:g}"]
    ask += ["--before", "4.0", "--resamples", "100", "--recipe", str(recipe), "--out", str(out)]
    return main([*ask, *more])


OF_CSV = ["--keep", "en=35%", "--learn", "fr"]
OF_RUNS = ["--keep", "t1=40%", "--learn", "t2"]


def changed(planned: Path, **change: object) -> Path:
    """The recipe with some tables in the place of its own, beside it."""
    path = planned.with_name(f"{'-'.join(change)}.toml")
    path.write_text(tomli_w.dumps(tomllib.loads(planned.read_text()) | change))
    return path


COSINE = {"kind": "cosine", "peak": 1e-3, "floor": 0.1}
OWN = {"tokens": 245_760, "shape": "cosine", "phases": ["fr"], "at": {"fr": [0.5]}}


@pytest.mark.parametrize("budget", ["total", "fresh", "batch"])
def test_of_annealed_pilots_it_is_annealed_as_they_were(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], budget: str
) -> None:
    """Trunk and branch are the tokens of the answer, however replay is paid for."""
    own = tomllib.loads(planned.read_text())["replay"] | {"budget": budget}
    recipe, out = (
        changed(planned, schedule=COSINE, anneal=OWN, replay=own),
        planned.with_name("out.toml"),
    )
    out.unlink(missing_ok=True)
    assert asked(cells(tmp_path), recipe, out, *OF_RUNS) == 0
    made = config.load(out)
    assert made.schedule == FLAT
    assert made.anneal.phases == ("fr",) and made.anneal.at == {}
    assert (made.anneal.shape, made.anneal.floor) == ("linear", 0.2)
    fresh = 1 - made.replay.share
    trunk = made.phases[-1].tokens / {"total": 1, "fresh": fresh, "batch": fresh}[budget]
    branch = made.anneal.tokens / {"total": 1, "fresh": 1, "batch": fresh}[budget]
    assert trunk + branch == pytest.approx(TOKENS, rel=1e-3)
    assert branch == pytest.approx(0.2 * trunk, rel=1e-3)
    assert made.phases[0].tokens == 12_800
    said = " ".join(capsys.readouterr().out.split())
    assert "of annealed branches: the recipe has the pilots' schedule (constant)" in said
    assert "17% of the tokens of fr" in said


@pytest.mark.parametrize("annealed", [None, False])
def test_of_ordinary_runs_it_keeps_its_schedule(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], annealed: bool | None
) -> None:
    """None: of a CSV, which does not tell."""
    recipe, out = changed(planned, schedule=COSINE, anneal=OWN), planned.with_name("kept.toml")
    out.unlink(missing_ok=True)
    if annealed is None:
        assert asked([written(tmp_path, lines())], recipe, out, *OF_CSV) == 0
    else:
        assert asked(cells(tmp_path, annealed=annealed), recipe, out, *OF_RUNS) == 0
    made = config.load(out)
    assert made.schedule == COSINE and made.anneal.tokens == 0 and "anneal" not in out.read_text()
    assert made.phases[-1].tokens == pytest.approx(TOKENS, rel=1e-3)
    said = " ".join(capsys.readouterr().out.split())
    assert "the recipe keeps its schedule, and has no [anneal]" in said
    if annealed is None:
        assert "A CSV does not tell" in said
    else:
        assert "It is cosine, that of the pilots constant." in said


def test_pilots_that_were_not_of_one_kind_are_refused_before_anything_is_computed(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("annealed", "flat"):
        (tmp_path / name).mkdir()
    some = cells(tmp_path / "annealed")[:6] + cells(tmp_path / "flat", annealed=False)[6:]
    assert asked(some, planned, tmp_path / "no.toml", *OF_RUNS) == 2
    assert "of 12 pilots 6 have annealed branches" in capsys.readouterr().err
    assert not (tmp_path / "no.toml").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_its_paths_are_as_they_are_from_where_it_lies(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], linked: bool
) -> None:
    """Links of folders included; what is absolute, or not found, stays."""
    there = tmp_path / "there" / "deep"
    there.mkdir(parents=True)
    if linked:
        (tmp_path / "link").symlink_to(there)
        there = tmp_path / "link"
    given = tomllib.loads(planned.read_text())["corpora"]
    given["de"]["train"] = str(planned.parent / "de.jsonl")
    given["fr"]["train"] = "./fr.jsonl"
    recipe = changed(planned, corpora=given, evaluate={"task_folder": "nowhere"})
    out = there / "best.toml"
    assert asked([written(tmp_path, lines())], recipe, out, *OF_CSV) == 0
    made, before = config.load(out), config.load(recipe)
    for name, corpus in made.corpora.items():
        assert Path(corpus.train).samefile(before.corpora[name].train)
    table = tomllib.loads(out.read_text())
    assert table["corpora"]["de"]["train"] == str(planned.parent / "de.jsonl")
    assert not Path(table["corpora"]["en"]["train"]).is_absolute()
    assert table["evaluate"]["task_folder"] == "nowhere"
    assert "--data" not in capsys.readouterr().out


def test_with_the_folder_of_the_data_given_its_paths_stay(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "best.toml", str(planned.parent)
    assert asked([written(tmp_path, lines())], planned, out, *OF_CSV, "--data", data) == 0
    assert (
        tomllib.loads(out.read_text())["corpora"] == tomllib.loads(planned.read_text())["corpora"]
    )
    assert config.load(out, data=data).phases[-1].tokens == pytest.approx(TOKENS, rel=1e-3)
    said = " ".join(capsys.readouterr().out.split())
    assert f"treering run {out} --data {data} --out RUN" in said
