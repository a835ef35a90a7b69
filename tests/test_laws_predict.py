"""`treering plan predict`: what laws of pilots expect of a recipe, before it is trained."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from test_laws_pilots import cells, told
from test_laws_plan import NEW, OLD, lines, predicted, quick, written
from test_laws_recommended import changed
from test_pilots import planned

from treering import config, piloting
from treering.cli import main
from treering.shapes import shape

__all__ = ["planned", "quick"]
pytestmark = pytest.mark.usefixtures("quick")
FALL = {"tokens": 2_000_000, "shape": "linear", "floor": 0.2, "phases": ["fr"]}


def asked(pilots: list[str], recipe: Path, *more: str) -> int:
    return main(["plan", "predict", *pilots, "--recipe", str(recipe), "--resamples", "200", *more])


def longer(planned: Path, **change: object) -> Path:
    """The recipe with 10 million tokens of each phase, and changed."""
    phases = [{"name": n, "tokens": 10_000_000, "mixture": {n: 1.0}} for n in ("en", "fr")]
    return changed(planned, phases=phases, **change)


def test_it_is_the_law_at_the_recipes_size_and_tokens(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the pilots' sizes and shares: the truth within half a percent and within the
    intervals, which are wider of a run than of the law."""
    out = tmp_path / "predicted.csv"
    wanted = ["--old", "en", "--new", "fr", "--shares", "0.1,0.3", "--size", "1e6"]
    assert asked([written(tmp_path, lines())], longer(planned), *wanted, "--out", str(out)) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["corpus"], float(r["replay"])) for r in rows] == [
        ("en", 0.1), ("en", 0.3), ("fr", 0.1), ("fr", 0.3)
    ]  # fmt: skip
    for row in rows:
        found = {name: float(row[name]) for name in list(row)[2:]}
        share = found["replay"] if row["corpus"] == "en" else 1 - found["replay"]
        law = OLD if row["corpus"] == "en" else NEW
        assert (found["N"], found["D"]) == (1e6, 1e7)
        truth = predicted(law, 1e6, 1e7, share)
        assert found["loss"] == pytest.approx(truth, rel=0.005)
        assert found["run_low"] < found["low"] < found["loss"] < found["high"] < found["run_high"]
        assert found["run_low"] < truth < found["run_high"]
    said = told(capsys)
    assert "a run like them is predicted" in said and "extrapolated" not in said
    assert f"{float(rows[0]['loss']):.4f}" in said


def test_of_annealed_pilots_it_is_of_the_branch(
    planned: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Whose tokens count. The recipe's own size and share, and how far that is from the pilots."""
    flat = {"kind": "constant", "peak": 2e-3}
    recipe, out = longer(planned, anneal=FALL, schedule=flat), tmp_path / "predicted.csv"
    assert asked(cells(tmp_path), recipe, "--old", "t1", "--out", str(out)) == 0
    row = out.read_text().splitlines()[1].split(",")
    size = shape(config.load(recipe).model).multiplying(300)
    assert [float(field) for field in row[2:5]] == [size, 12_000_000, 0.25]
    said = told(capsys)
    assert "Predicted is RUN/annealed/fr." in said and "schedule.kind" not in said
    assert f"extrapolated: N is {4e5 / size:.1f} times beyond the pilots of t1" in said


@pytest.mark.parametrize(
    ("anneal", "annealed", "words"),
    [
        (FALL, False, "is the run itself, not its annealed branch"),
        ({"tokens": 0}, True, "the recipe has none of fr; it will end higher"),
        (FALL | {"tokens": 500_000}, True, "anneal.tokens = 500000: 5% of fr, 20% of pilots"),
    ],
)
def test_a_rate_that_goes_otherwise_than_that_of_pilots_is_said(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    anneal: dict[str, object], annealed: bool, words: str,
) -> None:  # fmt: skip
    recipe = longer(planned, anneal=anneal, schedule={"kind": "cosine", "peak": 1e-3})
    assert asked(cells(tmp_path, annealed=annealed), recipe, "--old", "t1") == 0
    said = told(capsys)
    assert words in said and "schedule.kind = cosine: that of the pilots is constant" in said


@pytest.mark.parametrize(
    ("budget", "trunk", "branch"), [("total", 1, 1), ("fresh", 0.75, 1), ("batch", 0.75, 0.75)]
)
def test_tokens_are_all_that_a_run_trains(
    planned: Path, budget: str, trunk: float, branch: float
) -> None:
    own = {"share": 0.25, "budget": budget}
    recipe = config.load(longer(planned, anneal=FALL, replay=own))
    assert piloting.tokens(recipe, 0.25, annealed=False) == pytest.approx(1e7 / trunk)
    more = piloting.tokens(recipe, 0.25, annealed=True) - 1e7 / trunk
    assert more == pytest.approx(2e6 / branch)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--old and --new: name a corpus at least"),
        (["--old", "en", "--shares", "0,1"], "--shares 0,1: shares of training, from 0 to below 1"),
        (["--old", "en", "--shares", "a"], "--shares a: give numbers"),
        (["--old", "de"], "de: no such corpus; there are en, fr"),
        (["--old", "en", "--size", "-5"], "--size -5: must be positive"),
        (["--old", "en", "--out", "RECIPE"], "is there already"),
    ],
)
def test_what_cannot_be_predicted_is_said(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    pilots = [written(tmp_path, lines())]
    assert asked(pilots, planned, *(str(planned) if m == "RECIPE" else m for m in more)) == 2
    assert words in capsys.readouterr().err


def test_of_a_model_that_is_read_the_size_is_asked_for(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = changed(planned, model={"from": "somewhere"})
    assert asked([written(tmp_path, lines())], recipe, "--old", "en") == 2
    assert "model.from = " in capsys.readouterr().err
