"""A page of many arms: small, with every line in it, and the arms told apart."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import browser
import numpy as np
import pytest
import recorded
from recorded import Record

from treering.analysis.runs import Arm, branched
from treering.report.charts import COLOURS, LEAST, charts, dash
from treering.report.page import page
from treering.report.series import POINTS, view

STEPS = 20  # of a run, for one that `recorded` has
WITHIN = {at: [4.5, 5.5, 6.5] for at in range(1, 30) if at % 10}


def trained(luck: random.Random, seed: int = 0, **more: Any) -> list[Record]:
    """A run of 600 steps whose numbers have all the digits that floats have."""

    def losses() -> list[float]:
        return [luck.uniform(3, 9) for _ in range(3)]

    within = {at: losses() for at in WITHIN}
    short = recorded.run([losses() for _ in range(4)], seed=seed, within=within, **more)
    found: list[Record] = []
    for record in short:
        if record["kind"] == "step":
            found += [_step(STEPS * (record["step"] - 1) + k, luck) for k in range(1, STEPS + 1)]
        elif record["kind"] == "header":
            ends = [p | {"end_step": STEPS * p["end_step"]} for p in record["phases"]]
            found.append(record | {"phases": ends})
        else:
            found.append(record | ({"step": STEPS * record["step"]} if "step" in record else {}))
    return found


def _step(step: int, luck: random.Random) -> Record:
    return {
        "kind": "step",
        "step": step,
        "tokens": 32768 * step,
        "fresh_tokens": int(32768 * step * luck.uniform(0.7, 0.8)),
        "flops": step * 1e9,
        "seconds": 2.0 * step,
        "loss": luck.uniform(3, 9),
        "rate": 1e-3 * luck.random(),
        "tokens_per_second": luck.uniform(9e3, 1e4),
    }


def specs(made: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(made.split('id="specs">')[1].split("</script>")[0])
    return found


def lines(spec: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """A chart's lines by arm."""
    return {line["arm"]: line for line in spec["layer"][-1]["data"]["values"]}


@pytest.fixture(scope="module")
def many() -> list[Arm]:
    """100 arms, named at length, a fifth of them of three seeds."""
    luck = random.Random(0)
    return [
        Arm(f"replay-25-from-the-first-phase-peak-{i}", {s: trained(luck, s) for s in range(seeds)})
        for i, seeds in enumerate([3] * 20 + [1] * 80)
    ]


@pytest.fixture(scope="module")
def made(many: list[Arm]) -> str:
    return page(many, None)


def test_a_page_of_100_arms_stays_below_3_mb_with_every_line_in_it(
    many: list[Arm], made: str
) -> None:
    assert len(made.encode()) < 3_000_000
    drawn = specs(made)
    assert len(drawn) == 3 + 4  # corpora; loss, rate, share, speed
    for spec in drawn:
        found = lines(spec)
        assert list(found) == [arm.name for arm in many]
        for line in found.values():
            assert LEAST <= len(line["x"]) == len(line["y"]) <= POINTS
            assert line["x"] == sorted(line["x"]) and line["x"][-1] > 600 * 32768 * 0.95
    assert len(lines(drawn[3])[many[0].name]["x"]) > 60  # no fewer than must be


def test_a_page_of_few_arms_has_all_its_points(many: list[Arm]) -> None:
    drawn = specs(page(many[-2:], None))
    assert {len(line["x"]) for line in lines(drawn[0]).values()} == {1 + 30}
    assert {len(line["x"]) for line in lines(drawn[3]).values()} == {200}  # means of 3 steps


def test_numbers_of_charts_have_5_digits(many: list[Arm]) -> None:
    shown = view(many[0])
    for chart, exact in zip(charts([shown]), [*shown.held_out.values(), shown.steps["loss"]],
                            strict=False):  # fmt: skip
        (line,) = lines(chart.spec).values()
        assert line["y"] == pytest.approx(exact.y, rel=5e-5)
        for number in (*line["x"], *line["y"]):
            assert len(str(number).replace(".", "").strip("0")) <= 5


def test_fewer_points_keep_the_ends_of_phases_and_the_means(many: list[Arm]) -> None:
    shown = view(many[-1])
    few = {chart.title: lines(chart.spec)[shown.name] for chart in charts([shown], LEAST)}
    kept = few["Held-out loss: t1"]
    assert len(kept["x"]) < 31
    ends = [0, *(tokens for tokens, _ in shown.boundaries)]
    assert set(np.round(ends, -3)) <= set(np.round(kept["x"], -3))
    assert set(kept["y"]) <= {float(f"{y:.5g}") for y in shown.held_out["t1"].y}
    steps = few["Training loss"]
    assert len(steps["x"]) <= LEAST
    assert np.mean(steps["y"]) == pytest.approx(np.mean(shown.steps["loss"].y), rel=0.02)


def test_a_branch_has_no_step_lines_of_its_own() -> None:
    rows = [[4.0, 8.0, 9.0], [5.0, 4.0, 9.0], [6.0, 5.0, 4.0]]
    run = trained(random.Random(0), branches={"average 0.9": rows})
    run += [{"kind": "probe", "step": 5, "cosine": 0.5}]
    drawn = {
        chart.title: chart.spec for chart in charts([view(a) for a in branched("r", {0: run})])
    }
    assert len(drawn) == 3 + 4 + 1
    for title, spec in drawn.items():
        own = title.startswith("Held-out")
        assert list(lines(spec)) == (["r", "r, average 0.9"] if own else ["r"])
    (share,) = [spec for title, spec in drawn.items() if title.startswith("Share")]
    assert [rule["arm"] for rule in share["layer"][0]["data"]["values"]] == ["r"]


# Arms told apart


def test_arms_beyond_the_colours_have_dashes_the_same_in_every_chart(
    many: list[Arm], made: str
) -> None:
    looks = set()
    for spec in specs(made):
        encoding = spec["layer"][-1]["encoding"]
        colours, dashes = encoding["color"]["scale"], encoding["strokeDash"]["scale"]
        assert colours["domain"] == dashes["domain"] == [arm.name for arm in many]
        looks.add(json.dumps([colours["range"], dashes["range"]]))
    ((palette, patterns),) = map(json.loads, looks)
    assert len({(c, tuple(d)) for c, d in zip(palette, patterns, strict=True)}) == 100
    assert {tuple(d) for d in patterns[: len(COLOURS)]} == {(1, 0)}
    legend = made.split("<ul class=legend>")[1].split("</ul>")[0]
    shown = re.findall(r'stroke="(#\w+)"[^>]*?(?:stroke-dasharray="([\d ]+)")?/>', legend)
    assert shown == [(palette[i], " ".join(map(str, dash(i)))) for i in range(100)]


def test_figures_tell_arms_apart_too(many: list[Arm]) -> None:
    pytest.importorskip("matplotlib")
    from treering.report.figures import style

    assert len({json.dumps(style(i)) for i in range(100)}) == 100
    assert style(0)["linestyle"] == "-" and style(0)["color"] == style(len(COLOURS))["color"]


@pytest.mark.skipif(browser.chromium() is None, reason="no Chromium here")
def test_in_a_browser_the_charts_of_many_arms_are_drawn(many: list[Arm], tmp_path: Any) -> None:
    (tmp_path / "page.html").write_text(page(many[10:24], None))
    shown = browser.show(tmp_path / "page.html")
    assert shown.console == [] and set(shown.charts) == {"yes"}
    assert len(re.findall(r'aria-roledescription="line mark"', shown.markup)) == 14 * 7
    assert len(re.findall(r'aria-roledescription="area mark"', shown.markup)) == 10 * 3
