"""The report: the page in a browser, its numbers, what it says of runs that went wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import browser
import pytest
import recorded
import tiny
from recorded import Record

from treering import cli, records
from treering.analysis import cells
from treering.analysis.runs import arms, gather
from treering.config import Invalid
from treering.report.page import compared, page
from treering.report.series import view
from treering.report.words import against, sentences

SEQUENTIAL = [[9.0, 9.0, 9.0], [4.0, 8.0, 9.5], [6.0, 3.5, 9.0], [7.0, 5.5, 4.5]]
REPLAYED = [[9.0, 9.0, 9.0], [4.1, 8.0, 9.5], [4.3, 3.6, 9.0], [4.4, 3.9, 4.6]]
needs_browser = pytest.mark.skipif(browser.chromium() is None, reason="no Chromium here")


def write(folder: Path, found: Sequence[Record], rest: str = "") -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps(record) + "\n" for record in found]
    (folder / "records.jsonl").write_text("".join(lines) + rest)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two arms that were really trained."""
    place = tiny.place(tmp_path_factory.mktemp("report"))
    outs = [place / "runs/sequential", place / "runs/mer"]
    off = ("replay.share=0.0", "update={kind='descent'}")
    for out, sets in zip(outs, (off, ("probe.every=5",)), strict=True):
        tiny.run(place / "recipe.toml", out, *sets)
    return outs


# The page in a browser


@needs_browser
def test_in_a_browser_every_chart_is_drawn_and_the_numbers_are_the_summarys(
    finished: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    assert cli.main(["report", *map(str, finished), "--out", str(out)]) == 0
    shown = browser.show(out)
    assert shown.console == []
    assert len(shown.charts) == 3 + 4 + 1  # corpora; loss, rate, share, speed; cosine
    assert set(shown.charts) == {"yes"} and shown.drawings == len(shown.charts)
    tables = browser.Tables(shown.markup).of
    for run, table in zip(finished, tables["matrix"], strict=True):
        summary = json.loads((run / "summary.json").read_text())
        head, *rows = table
        assert head == ["after", "step", "tokens", *summary["corpora"]]
        for row, values, at in zip(rows, summary["loss"]["values"], summary["rows"], strict=True):
            assert row[:3] == [at["label"], f"{at['step']:,}", f"{at['tokens']:,}"]
            assert [cell.split()[0] for cell in row[3:]] == [f"{value:.3f}" for value in values]
    for run, line in zip(finished, tables["comparison"][0][1:], strict=True):
        metrics = json.loads((run / "summary.json").read_text())["loss"]["metrics"]
        means = [metrics[name]["value"] for name in ("retained", "learned", "forgetting")]
        assert line[0] == run.name and line[4:7] == [f"{mean:.3f}" for mean in means]
    for run, line in zip(finished, tables["ledger"][0][1:], strict=True):
        summary = json.loads((run / "summary.json").read_text())
        spent = [f"{summary[key]:,}" for key in ("tokens", "fresh_tokens")]
        assert line[2:6] == [*spent, f"{summary['replayed_share']:.2%}", f"{summary['flops']:.3g}"]


HOSTILE = "<script>console.error('x')</script>"


def hostile() -> list[Record]:
    """A run of 100 corpora, one of them named like markup, some scores missing, some null."""
    values = [[9.0 - 0.01 * row * j for j in range(100)] for row in range(3)]
    mixtures = [[f"t{j + 1}" for j in range(50)], [f"t{j + 1}" for j in range(50, 100)]]
    found = recorded.run(values, mixtures=mixtures)
    found = json.loads(json.dumps(found).replace('"t7"', json.dumps(HOSTILE)))
    for record in found:
        if record["kind"] == "score" and record["corpus"] == "t9":
            record["loss"] = None
        if record["kind"] == "end":
            record["reason"] = HOSTILE
    return [r for r in found if not (r["kind"] == "score" and r["corpus"] == "t12" and r["step"])]


@needs_browser
def test_a_page_of_100_corpora_one_of_them_named_like_markup_is_drawn(tmp_path: Path) -> None:
    run = write(tmp_path / HOSTILE.replace("/", "_"), hostile())
    out = tmp_path / "report.html"
    assert cli.main(["report", str(run), "--out", str(out)]) == 0
    shown = browser.show(out)
    assert shown.console == [] and set(shown.charts) == {"yes"}
    (table,) = browser.Tables(shown.markup).of["matrix"]
    assert table[0][3:][6] == HOSTILE and len(table[0]) == 103
    assert table[1][3 + 8] == "-" and table[2][3 + 11] == "-" and table[1][3 + 11] == "9.000"


def test_what_records_say_is_text_on_the_page(tmp_path: Path) -> None:
    arms = gather([str(write(tmp_path / "run", hostile()))])
    assert HOSTILE not in page(arms, compared(arms))


def test_lines_stand_where_phases_end_but_not_where_a_run_does() -> None:
    whole = recorded.run([[9.0, 9.0], [8.0, 8.5], [8.0, 7.5]], mixtures=[["t1"], ["t2"]])
    for run, lines in ((whole, ["p1"]), (recorded.cut(whole, 15), ["p1"])):
        [arm] = arms([("run", run)])
        assert [name for _, name in view(arm).switches] == lines


# The page without one


def test_the_page_is_small_needs_no_network_and_is_the_same_again(finished: list[Path]) -> None:
    found = gather([str(run) for run in finished])
    made = page(found, compared(found))
    assert len(made.encode()) < 3_000_000
    assert made == page(found, compared(found))
    without_scripts = re.sub(r"<script.*?</script>", "", made, flags=re.S)
    assert not re.findall(r"(?:src|href|action)\s*=\s*(?![\"']?data:,)", without_scripts)
    assert "url(" not in without_scripts and "@import" not in without_scripts
    assert "prefers-color-scheme: dark" in made and "@media print" in made
    assert str(finished[0].parent) not in made  # a page is given to others


@pytest.mark.parametrize("kept", ["header", "base", "first phase"])
def test_an_unfinished_run_is_shown_as_far_as_it_came(tmp_path: Path, kept: str) -> None:
    whole = recorded.run(SEQUENTIAL)
    found = {
        "header": whole[:1],
        "base": recorded.cut(whole, 0),
        "first phase": recorded.cut(whole, 14),
    }[kept]
    made = page(gather([str(write(tmp_path / "run", found))]), None)
    (table,) = browser.Tables(made).of["matrix"]
    assert [row[0] for row in table[1:]] == {"first phase": ["base", "p1"]}.get(kept, ["base"])
    said = "running" if kept == "first phase" else "Not one phase is finished yet"
    assert said in made and ('data-chart="0"' in made) == (kept != "header")
    assert table[1][3] == ("-" if kept == "header" else "9.000")


def test_a_damaged_last_line_is_left_out(tmp_path: Path) -> None:
    sound = page(gather([str(write(tmp_path / "a/run", recorded.run(SEQUENTIAL)))]), None)
    torn = write(tmp_path / "b/run", recorded.run(SEQUENTIAL), '{"kind": "score", "st')
    assert page(gather([str(torn)]), None) == sound


def test_a_run_whose_losses_are_not_finite_says_so(tmp_path: Path) -> None:
    values = [*SEQUENTIAL[:2], [None, None, None], [None, None, None]]
    made = page(gather([str(write(tmp_path / "run", recorded.run(values)))]), None)
    (table,) = browser.Tables(made).of["matrix"]
    assert table[3][3:] == ["-", "-", "-"] and "no number" in made
    assert "NaN" not in made.split('id="specs">')[1].split("</script>")[0]


def test_an_arm_of_two_seeds_is_shown_by_its_means_and_their_band(tmp_path: Path) -> None:
    other = [[value + 1 for value in row] for row in SEQUENTIAL]
    runs = [
        write(tmp_path / f"seq-seed{seed}", recorded.run(values, seed=seed))
        for seed, values in ((0, SEQUENTIAL), (1, other))
    ]
    found = gather([str(run) for run in runs])
    assert [arm.name for arm in found] == ["seq"]
    shown = view(found[0])
    assert shown.values.tolist() == [[value + 0.5 for value in row] for row in SEQUENTIAL]
    line = shown.held_out["t1"]
    assert (line.low.tolist(), line.high.tolist()) == ([9, 4, 6, 7], [10, 5, 7, 8])
    assert '"type":"area"' in page(found, None)


def test_the_steps_of_a_seed_that_is_behind_stand_where_they_were_trained(tmp_path: Path) -> None:
    """More steps than points: the line of steps is thinned, and stays in its place."""
    whole = recorded.run([[9.0, 9.0]] * 71, mixtures=[["t1", "t2"]] * 70)
    for record in whole:
        record |= {"loss": float(record["step"])} if record["kind"] == "step" else {}
    behind = [r | {"recipe": r["recipe"] | {"seed": 1}} if "recipe" in r else r for r in whole]
    runs = [
        write(tmp_path / "seq-seed0", whole),
        write(tmp_path / "seq-seed1", recorded.cut(behind, 351)),
    ]
    (arm,) = gather([str(run) for run in runs])
    line = view(arm).steps["loss"]
    assert len(line.x) <= 240 < 700
    assert line.y == pytest.approx(line.x / 100)  # 100 tokens a step, and the step is the loss
    assert line.low == pytest.approx(line.y, abs=2) and line.high == pytest.approx(line.y, abs=2)


def test_folders_that_hold_no_run_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Invalid, match="empty: is no run folder"):
        gather([str(tmp_path / "empty")])
    headless = write(tmp_path / "headless", recorded.run(SEQUENTIAL)[1:])
    with pytest.raises(Invalid, match="no header"):
        gather([str(headless)])
    good = write(tmp_path / "good", recorded.run(SEQUENTIAL))
    for out in (tmp_path / "nowhere/r.html", tmp_path):
        assert cli.main(["report", str(good), "--out", str(out)]) == 2


# The words


def last(found: Sequence[Record]) -> Record:
    return next(record for record in reversed(found) if record["kind"] == "step")


def test_the_verdict_says_what_was_learned_what_was_lost_and_what_it_cost() -> None:
    found = recorded.run(SEQUENTIAL)
    (arm,) = arms([("run", found)])
    learned, lost, cost = sentences(view(arm), last(found))
    assert learned == (
        "t1 was learned to 4.000 (from 9.000), t2 was learned to 3.500 (from 9.000) and t3 was "
        "learned to 4.500 (from 9.000), in nats/token held out."
    )
    assert lost == (
        "Since they were at their best: t1 lost 3.000 nats/token (75.0%) and t2 lost 2.000 "
        "nats/token (57.1%)."
    )
    assert cost == (
        "25.00% of 3,000 trained tokens were replayed (asked 25.00%): 33% more tokens for each "
        "fresh one than without."
    )


def test_what_became_better_is_said_to_have_gained() -> None:
    values = [[9.0, 9.0], [4.0, 8.0], [3.8, 5.0]]
    found = recorded.run(values, mixtures=[["t1"], ["t2"]])
    said = sentences(view(arms([("run", found)])[0]), last(found))
    assert "t1 gained 0.200 nats/token (5.0%)" in said[1]


def test_against_a_baseline_the_sure_and_the_unsure_are_told_apart() -> None:
    found = {"mean": -2.1, "n": 3, "verdict": "lower"}
    assert against("mer", "sequential", found, 2.5) == (
        "mer: against sequential forgetting is 2.100 nats/token lower (84%); shown with 3 seeds."
    )
    assert "not shown with 3 seeds" in against("a", "b", found | {"verdict": "not shown"}, 2.5)
    alone = against("a", "b", found | {"verdict": "one seed", "n": 1}, 2.5)
    assert alone.endswith("one seed, from which nothing can be concluded.")
    assert against("a", "b", {"mean": None, "n": 0, "verdict": "none"}, 2.5) == ""
    assert "%" not in against("a", "b", found, 0.0) + against("a", "b", found, 0.03)


@pytest.mark.parametrize("begun", [False, True])
def test_each_arm_is_judged_against_its_own_baseline_on_the_page(begun: bool) -> None:
    """Also while another arm has only begun."""
    every = [(recorded.run([[v + shift for v in row] for row in SEQUENTIAL], method=name), name)
             for shift, name in ((0.0, "a"), (1.0, "b"), (2.0, "c"))]  # fmt: skip
    rows = [[*row[:1], row[1] + 1 * (i == 3), *row[2:]] for i, row in enumerate(SEQUENTIAL)]
    every.append((recorded.run(rows, method="d"), "d"))
    found = [replace(arm, baseline={"c": "a", "d": "b"}.get(arm.name))
             for arm in arms([(name, run) for run, name in every])]  # fmt: skip
    if begun:
        found += arms([("e", recorded.cut(recorded.run(SEQUENTIAL, method="e"), 3))])
    made = page(found, compared(found))
    assert "d: against b forgetting is 0.500 nats/token higher (20%)" in made
    assert "c: against a forgetting" in made and "d: against a" not in made


# Other formats


def test_figures_tables_and_numbers_are_written_too(finished: list[Path], tmp_path: Path) -> None:
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml"), ("csv", b"arm,"), ("md", b"### ")):
        out = tmp_path / f"report.{form}"
        assert cli.main(["report", *map(str, finished), "--out", str(out), "--format", form]) == 0
        assert out.read_bytes().startswith(start)
    summaries = [json.loads((run / "summary.json").read_text()) for run in finished]
    lines = cells.read(tmp_path / "report.csv")
    for line, summary in zip(lines, summaries, strict=True):
        assert line["forgetting"] == summary["loss"]["metrics"]["forgetting"]["value"]
        text = (tmp_path / "report.md").read_text()
        assert f"forgetting {line['forgetting']:+.3f}" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"report.{form}" for form in ("csv", "md", "png", "svg")
    ]


def test_figures_of_odd_runs_are_drawn(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "many $a_b$", hostile()),
        write(tmp_path / "begun", recorded.cut(recorded.run(SEQUENTIAL), 0)),
        write(tmp_path / "lost", recorded.run([[None] * 3] * 4, seed=1, method="lost")),
    ]
    out = tmp_path / "odd.svg"
    assert cli.main(["report", *map(str, runs), "--out", str(out), "--format", "svg"]) == 0
    assert out.stat().st_size > 10_000


def test_records_are_only_read(finished: list[Path]) -> None:
    before = [tiny.files(run) for run in finished]
    page(gather([str(run) for run in finished]), None)
    assert [tiny.files(run) for run in finished] == before
    assert records.read(finished[0])
