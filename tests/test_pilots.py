"""`treering plan pilots`: a study that can be run, of which `plan fit` learns."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import browser
import numpy as np
import pytest
import tiny
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from test_laws_plan import lines, pilot, points_of, quick, written

from treering import config, model, piloting, shelf, study, tables
from treering.analysis.laws import before
from treering.analysis.laws.manner import manner
from treering.analysis.laws.pilots import runs
from treering.cli import main
from treering.lengths import lengths
from treering.report.law import levels, of_level
from treering.report.planning import _count
from treering.shapes import PRESETS, Shape, shape

__all__ = ["quick"]
PLANNED = {"depth": 4, "width": 64, "heads": 4, "mlp": 172, "tied": True}


@pytest.fixture
def planned(place: Path, tmp_path: Path) -> Path:
    """A recipe of en, then fr, with a model that has room for smaller ones."""
    given = tomllib.loads((place / "recipe.toml").read_text())
    mixtures = [("en", {"en": 1.0}), ("fr", {"fr": 1.0})]
    phases = [{"name": n, "tokens": 12_800, "mixture": m} for n, m in mixtures]
    given |= {"phases": phases, "model": PLANNED, "update": {"kind": "descent"}}
    given["replay"] = {"share": 0.25, "memory": {"kind": "everything", "over": "past"}}
    path = place / "planned.toml"
    path.write_text(tomli_w.dumps(given))
    return path


@given(
    st.sampled_from(list(PRESETS.values())),
    st.floats(0.1, 30.0),
)
def test_a_scaled_shape_is_near_in_size_and_of_the_same_make(planned: Shape, part: float) -> None:
    made = planned.scaled(part * planned.layers)
    assert made.layers == pytest.approx(part * planned.layers, rel=0.06)
    assert made.width % made.heads == 0 and made.width // made.heads % 2 == 0
    aspect, wanted = made.width / made.depth, planned.width / planned.depth
    assert wanted / 1.8 < aspect < wanted * 1.8 and made.tied == planned.tied


@pytest.mark.parametrize("preset", ["1m", "3m", "10m"])
def test_shapes_count_what_their_models_have(preset: str) -> None:
    wanted = shape(tables.Model(preset=preset))
    made = model.fresh(model.llama(tables.Model(preset=preset), 512, 64), 0)
    assert wanted == PRESETS[preset] == wanted.scaled(wanted.layers)
    assert wanted.multiplying(512) == model.count(made)[1]


def asked(planned: Path, out: Path, budget: str, *more: str) -> int:
    return main(["plan", "pilots", str(planned), "--budget", budget, "--out", str(out), *more])


def test_a_study_is_written_that_costs_what_it_says(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pilots.toml"
    assert asked(planned, out, "1e14") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "3 sizes, replay 0, 0.02, 0.05, 0.15, 0.4, seeds 3, 12,800 tokens of fr" in said
    cells = study.load(out, planned.parent)
    assert len(cells) == 45
    per_run = 25_600 + 0.2 * 12_800 * (2 + 0.5 + 0.25 + 0.125)  # at both phases' ends
    sizes = {cell.arm: shape(cell.recipe.model).multiplying(300) for cell in cells}
    flops = sum(6 * sizes[cell.arm] * per_run for cell in cells)
    assert float(said.split(" FLOPs of")[0].split()[-1]) == pytest.approx(flops, rel=0.01)
    one = cells[0].recipe
    assert one.schedule["kind"] == "constant" and one.anneal.at == {"fr": (0.125, 0.25, 0.5)}
    assert one.anneal.tokens == 2560 and one.anneal.phases == ("en", "fr")
    part = [shape(c.recipe.model).layers / shape(tables.Model(**PLANNED)).layers for c in cells]
    assert sorted(set(part)) == pytest.approx([1 / 8, 1 / 4, 1 / 2], rel=0.1)


@pytest.mark.parametrize("over", ["past", "all"])
@pytest.mark.parametrize("budget", ["fresh", "batch"])
def test_replay_beside_fresh_tokens_is_charged(planned: Path, budget: str, over: str) -> None:
    """By the steps that each pilot would be planned with."""
    written = config.load(planned)
    own = replace(written.replay, budget=budget, memory={"kind": "everything", "over": over})
    found, trained = piloting.pilots(replace(written, replay=own), 300, 1e14), 0.0
    for share in found.shares:
        recipe = replace(written, replay=replace(own, share=share))
        planner = shelf.planner(recipe, (10**6,) * len(recipe.corpora))
        steps, batch = lengths(planner), recipe.batch.tokens
        each = [batch / (1 - share) if budget == "batch" else batch] * len(steps)
        if over == "past":
            each[0] = batch
        more = each[-1] if budget == "batch" else batch
        within = 0.2 * recipe.phases[-1].tokens / batch * (2 + 0.875)
        trained += sum(np.array(steps) * each) + more * within
    flops = 6 * sum(found.sizes.values()) * trained * found.seeds
    assert found.cost == pytest.approx(flops, rel=0.02)


def test_a_smaller_budget_is_spent_on_fewer_tokens(planned: Path, tmp_path: Path) -> None:
    recipe = config.load(planned)
    whole = piloting.pilots(recipe, 300, 1e14).cost / 3  # of one seed
    found = piloting.pilots(recipe, 300, 0.9 * whole)
    assert found.seeds == 1 and found.tokens == (11_520, 11_520)
    assert found.cost == pytest.approx(0.9 * whole)


@pytest.mark.parametrize(
    ("budget", "more", "words"),
    [
        ("1e9", [], "too few to be scored 4 times; give"),
        ("nan", [], "--budget nan: must be positive"),
        ("-1", [], "--budget -1.0: must be positive"),
        ("1e14", ["--shares", "0,0.1"], "--shares (0.0, 0.1): give three or more"),
        ("1e14", ["--shares", "0,0.1,x"], "--shares 0,0.1,x: give numbers"),
        ("1e14", ["--shares", "0,0.1,1.0"], "from 0 to below 1"),
    ],
)
def test_what_makes_no_pilots_is_said_and_nothing_is_written(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    budget: str, more: list[str], words: str,
) -> None:  # fmt: skip
    out = tmp_path / "pilots.toml"
    assert asked(planned, out, budget, *more) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1
    assert not out.exists()


def test_a_model_that_is_read_and_a_file_that_is_there_are_refused(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tomllib.loads(planned.read_text())
    given["model"] = {"from": "somewhere"}
    del given["tokenizer"]
    other = planned.with_name("read.toml")
    other.write_text(tomli_w.dumps(given))
    assert asked(other, tmp_path / "a.toml", "1e14") == 2
    assert "write a study with an arm for each checkpoint" in capsys.readouterr().err
    given = tomllib.loads(planned.read_text()) | {"schedule": {"kind": "wsd"}}
    other.write_text(tomli_w.dumps(given))
    assert asked(other, tmp_path / "a.toml", "1e14") == 2
    assert "schedule.peak: is missing" in capsys.readouterr().err
    (tmp_path / "a.toml").write_text("mine")
    assert asked(planned, tmp_path / "a.toml", "1e14") == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "a.toml").read_text() == "mine"


def test_annealed_branches_are_the_points_of_a_run_that_has_them(tmp_path: Path) -> None:
    flat = pilot(tmp_path / "flat", 1e5, 0.25, [0.1, 1.0, 1.0, 1.0, 1.0])
    more = [
        {"kind": "branch_score", "branch": "annealed", "step": step, "corpus": corpus,
         "loss": 2.5 - step / 10, "tokens_beyond": 200 * step}
        for step in (2, 5) for corpus in ("t1", "t2")
    ]  # fmt: skip
    with open(flat / "records.jsonl", "a") as log:
        log.writelines(json.dumps(record) + "\n" for record in more)
    points = points_of([str(flat)])
    assert list(points["D"]) == [2400, 6000] and list(points["t2"]) == [2.3, 2.0]


def test_pilots_run_and_are_learned_from(planned: Path, tmp_path: Path) -> None:
    """One cell of the study, in truth: four points, at the trunk's tokens and a fifth more, and a
    loss before of annealed weights."""
    out = tmp_path / "pilots.toml"
    assert asked(planned, out, "1e14", "--shares", "0,0.1,0.4") == 0
    cells = study.load(out, planned.parent)
    cell = next(c for c in cells if c.recipe.replay.share == 0.1)
    resolved = tmp_path / "cell.toml"
    resolved.write_text(config.to_toml(cell.recipe))
    tiny.run(resolved, tmp_path / "run")
    made = [str(tmp_path / "run")]
    points = points_of(made)
    assert len(points["D"]) == 4 and set(points["replay"]) == {0.1}
    of_step = cell.recipe.batch.tokens
    wanted = [0.125 * 12_800, 0.25 * 12_800, 0.5 * 12_800, 12_800]
    assert list(points["D"]) == pytest.approx([1.2 * w for w in wanted], abs=2 * of_step)
    assert (points["fr"] > 0).all() and (points["en"] > 0).all()
    (_, run), at = runs(made)[0], (200, "en")
    trunk = [r["loss"] for r in run if r["kind"] == "score" and (r["step"], r["corpus"]) == at]
    (loss,) = before.of_run(run, "en")
    assert 0 < loss < trunk[0]
    rate = manner(runs(made))
    assert rate is not None and rate.schedule["kind"] == "constant"
    assert rate.part == pytest.approx(0.2, abs=0.01) and rate.anneal["shape"] == "1-sqrt"


def test_of_a_phase_that_is_too_short_that_is_said(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the budget; as long as is advised it is enough."""
    given = tomllib.loads(planned.read_text())
    given["phases"][1]["tokens"] = 10_176
    short = planned.with_name("short.toml")
    short.write_text(tomli_w.dumps(given))
    assert asked(short, tmp_path / "a.toml", "1e30") == 2
    said = capsys.readouterr().err
    assert "phases[1].tokens = 10176: fr is too short" in said and "give" not in said
    assert "lengthen the phase to 10,240 tokens" in said
    given["phases"][1]["tokens"] = 10_240
    short.write_text(tomli_w.dumps(given))
    assert asked(short, tmp_path / "a.toml", "1e30") == 0


@pytest.mark.parametrize("batch", [64, 128])
def test_a_budget_that_is_said_to_suffice_does(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: int
) -> None:
    given = tomllib.loads(planned.read_text())
    given["batch"]["tokens"], given["phases"][1]["tokens"] = batch, 160 * batch
    other = planned.with_name(f"by-{batch}.toml")
    other.write_text(tomli_w.dumps(given))
    assert asked(other, tmp_path / "a.toml", "1e9") == 2
    enough = capsys.readouterr().err.split("give ")[1].split(" FLOPs")[0]
    assert asked(other, tmp_path / "a.toml", enough) == 0


def test_what_to_run_next_is_said_with_the_folder_of_the_data(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "pilots.toml", str(planned.parent)
    assert asked(planned, out, "1e14", "--data", data) == 0
    said = f"treering study {out} --data {data} --out PILOTS --jobs 2"
    assert said in " ".join(capsys.readouterr().out.split())
    assert f"pilots.toml --data {data} --out PILOTS" in out.read_text()
    assert asked(planned, tmp_path / "b.toml", "1e14") == 0
    assert "--data" not in capsys.readouterr().out


@pytest.mark.usefixtures("quick")
def test_the_recommended_recipe_is_written_and_the_law_drawn(
    planned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = written(tmp_path, lines()), tmp_path / "new.toml"
    ask = ["plan", "ask", path, "--budget", f"{6 * 2e5 * 2e7:g}", "--size", "2e5"]
    ask += ["--keep", "en=35%", "--before", "4.0", "--learn", "fr", "--resamples", "100"]
    assert main([*ask, "--recipe", str(planned), "--out", str(out)]) == 0
    made = config.load(out, data=planned.parent)
    assert shape(made.model).multiplying(300) == pytest.approx(2e5, rel=0.1)
    assert (
        made.phases[-1].tokens == pytest.approx(2e7, rel=0.01) and made.phases[0].tokens == 12_800
    )
    assert 0 < made.replay.share < 1 and made.replay.memory["over"] == "past"
    assert main([*ask, "--recipe", str(planned), "--out", str(out)]) == 2
    assert main([*ask, "--out", str(tmp_path / "other.toml")]) == 2
    assert "give both" in capsys.readouterr().err
    given = tomllib.loads(planned.read_text()) | {"model": {"from": "somewhere"}}
    del given["tokenizer"]
    read = planned.with_name("read.toml")
    read.write_text(tomli_w.dumps(given))
    at = ask.index("--size")
    grid = [*ask[:at], *ask[at + 2 :], "--recipe", str(read), "--out", str(tmp_path / "b.toml")]
    assert main(grid) == 2
    assert "read.toml: its model is read from somewhere" in capsys.readouterr().err
    fit = ["plan", "fit", path, "--old", "en", "--resamples", "100", "--figure"]
    for name, head in (("law.png", b"\x89PNG"), ("law.svg", b"<?xml")):
        assert main([*fit, str(tmp_path / name)]) == 0
        assert (tmp_path / name).read_bytes().startswith(head)
    assert main([*fit, str(tmp_path / "law.jpg")]) == 2
    assert "law.jpg: give a name that ends in .png or .svg" in capsys.readouterr().err


def test_points_belong_to_the_line_of_their_tokens() -> None:
    tokens = np.array([100.0, 109.0, 110.0, 112.0, 200.0])
    assert levels(tokens) == [100.0, 112.0, 200.0]
    assert [list(np.flatnonzero(of_level(tokens, level))) for level in levels(tokens)] == [
        [0, 1, 2], [3], [4],
    ]  # fmt: skip
    assert levels(np.arange(1.0, 100.0)) == [1, 8, 20, 45, 93]  # five of 24, spread evenly


@pytest.mark.parametrize(
    ("tokens", "words"),
    [(512.0, "512"), (3.932e6, "3.93M"), (153.2e6, "153M"), (999_999.0, "1M"), (2e12, "2T")],
)
def test_tokens_are_counted_in_three_digits(tokens: float, words: str) -> None:
    assert _count(tokens) == words


def test_the_plan_is_a_page_whose_charts_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, page = written(tmp_path, lines()), tmp_path / "plan.html"
    ask = ["plan", "ask", path, "--budget", "2e14", "--keep", "en=35%", "--before", "4.0"]
    assert main([*ask, "--learn", "fr", "--resamples", "100", "--page", str(page)]) == 0
    said, made = capsys.readouterr().out, browser.Tables(page.read_text())
    (rows,), (held,) = made.of["plan"], made.of["held"]
    assert [row[0] for row in rows[1:]] == ["N", "replay", "loss of en", "loss of fr"]
    assert all(cell in said for row in rows[1:] for cell in row)
    assert held[0][:4] == ["loss of", "law", "largest N", "twice the tokens"]
    laws = [row[1] for row in held[1:] if row[0] == "en"]
    assert laws[0] == "dcpt-l3" and sorted(laws[1:]) == [
        "dcpt-l1", "dcpt-l5", "forgetting", "replay"
    ]  # fmt: skip
    assert [row[0] for row in held[6:]] == ["fr"] * 3
    if browser.chromium() is None:
        pytest.skip("no Chromium here")
    shown = browser.show(page)
    assert shown.charts == ["yes"] * 7 and shown.drawings == 7 and shown.console == []
