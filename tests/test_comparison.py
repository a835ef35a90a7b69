"""A comparison can be read on any console and as Markdown, and no figure is lost."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from recorded import cut, run
from rich.console import Console

from treering import cli
from treering.analysis.compare import compare
from treering.analysis.runs import Arm
from treering.report.comparison import markdown, show

TWO = (("t1",), ("t2",))


def arm(name: str, ends: dict[int, tuple[Any, Any]], **more: Any) -> Arm:
    """Runs that learned t1 to 3 and ended with t1 and t2 so."""
    rows = {seed: [[8.0, 8.0], [3.0, 6.0], list(end)] for seed, end in ends.items()}
    return Arm(name, {s: run(v, mixtures=TWO, seed=s, **more) for s, v in rows.items()})


def table(names: tuple[str, str] = ("sequential", "mer-25"), **more: Any) -> dict[str, Any]:
    """Forgetting 2.0, 2.3, 2.3 and 1.0, 1.2, 1.1; the second arm spends more."""
    first = arm(names[0], {0: (5.0, 2.0), 1: (5.3, 2.0), 2: (5.3, 2.0)})
    second = arm(names[1], {0: (4.0, 2.2), 1: (4.2, 2.2), 2: (4.1, 2.2)}, spent=(125, 2e9))
    return compare([first, second], **more)


def shown(found: dict[str, Any], *, width: int = 200) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=width))
    return out.getvalue()


def line(text: str, start: str, nth: int = 0) -> list[str]:
    return [line for line in text.splitlines() if line.strip().startswith(start)][nth].split()


def test_an_arm_has_its_means_with_intervals_and_its_costs() -> None:
    found = line(shown(table()), "mer-25")
    assert found[:4] == ["mer-25", "3", "2,500", "4.00e+10"]
    half = 4.303 * 0.1 / 3**0.5
    assert found[10:13] == ["1.100", "±", f"{half:.3f}"]  # forgetting
    assert found[4] == "3.150" and found[7] == "2.600"  # retained, learned
    assert found[13] == "4.100" and found[16] == "2.200"  # each corpus now


def test_a_difference_has_both_intervals_its_sign_and_its_verdict() -> None:
    text = shown(table())
    assert "differences to sequential" in text
    found = next(at for at in text.splitlines() if "forgetting" in at and "lower" in at)
    assert found.split()[:3] == ["mer-25", "forgetting", "-1.100"]
    assert "3 of 3" in found and found.split()[-1] == "lower" and found.count(" to ") == 2
    learned = next(at for at in text.splitlines() if "learned" in at and "higher" in at)
    assert learned.split()[2] == "+0.100" and "0 of 3" in learned


def test_views_at_equal_cost_are_shown_where_costs_differ_and_say_that_they_interpolate() -> None:
    text = shown(table())
    assert "at equal tokens, 2,000, interpolated" in text
    assert "at equal FLOPs, 2.00e+10, interpolated" in text
    assert text.count("differences to sequential") == 3
    equal = compare([arm("a", {0: (5.0, 2.0)}), arm("b", {0: (4.0, 2.0)})])
    assert "equal" not in shown(equal) and "equal" not in markdown(equal)


def figures(text: str) -> list[str]:
    return re.findall(r"[-+]?\d[\d.,e+]*\d", text)


@pytest.mark.parametrize("width", [80, 40, 20])
def test_a_narrow_console_loses_no_figure(width: int) -> None:
    text = shown(table(), width=width)
    assert "…" not in text
    rows = [at for at in shown(table()).splitlines() if "mer-25" in at]
    assert rows == [at for at in text.splitlines() if "mer-25" in at]


def test_markdown_has_the_same_figures_in_tables_of_equal_width() -> None:
    text = markdown(table())
    assert sorted(figures(text)) == sorted(figures(shown(table(), width=500)))
    assert "**arms at the end of each run**" in text
    blocks = [b.splitlines() for b in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)]
    assert len(blocks) == 8 and all(len({at.count("|") for at in b}) == 1 for b in blocks)
    assert all(re.fullmatch(r"\|---\|(---:\|)+", b[1]) for b in blocks)


def test_names_are_shown_as_they_are_whatever_they_contain() -> None:
    found = table(("[red]a|b", "x[/red] <script>"))
    text = shown(found)
    assert line(text, "[red]a|b") and "differences to [red]a|b" in text
    assert "x[/red] <script>" in text
    marked = markdown(found)
    assert "| [red]a\\|b |" in marked and "**differences to [red]a" in marked
    assert "| x[/red] \\<script> |" in marked and not re.search(r"[^\\]<script", marked)


def test_what_is_missing_is_a_dash_and_those_left_out_are_counted() -> None:
    wild = arm("wild", {0: (4.0, 2.0), 1: (None, None), 2: (4.2, 2.0)})
    joint = Arm("joint", {0: run([[8.0, 8.0], [3.0, 2.0]], mixtures=[["t1", "t2"]])})
    found = compare([arm("plain", {0: (5.0, 2.0), 1: (5.1, 2.0), 2: (5.2, 2.0)}), wild, joint])
    text = shown(found)
    assert line(text, "wild")[1:4] == ["2", "of", "3"] and line(text, "plain")[1] == "3"
    assert "wild, seed 1: " in text and "left out of the means" in text
    assert line(text, "joint")[6] == "-" and "none" in text.split("differences")[1]
    assert "one seed" in text and "nothing can be concluded" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_the_legend_names_the_unit() -> None:
    assert "nats/token" in shown(table()) and "bits/byte" not in shown(table())
    bits = table(metric="bits_per_byte")
    for text in (shown(bits), markdown(bits)):
        assert "bits/byte" in text and "nats/token" not in text


def test_a_probed_arm_has_its_cosine() -> None:
    probed = arm("mer", {0: (4.0, 2.0)})
    records: Any = next(iter(probed.runs.values()))
    records.append({"kind": "probe", "step": 3, "cosine": 0.125})
    text = shown(compare([arm("plain", {0: (5.0, 2.0)}), probed]))
    assert "cosine" in text and line(text, "mer")[-1] == "+0.125" and line(text, "plain")[-1] == "-"


def test_one_arm_alone_has_no_differences() -> None:
    text = shown(compare([arm("plain", {0: (5.0, 2.0), 1: (5.1, 2.0)})]))
    assert "differences" not in text.split("means over")[0]


# -- treering compare ----------------------------------------------------------------------------


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of two methods, and one that is not finished."""
    for method, end in (("descent", 5.0), ("reptile", 4.0)):
        for seed in (0, 1):
            values = [[8.0, 8.0], [3.0, 6.0], [end + seed / 10, 2.0]]
            records = run(values, mixtures=TWO, seed=seed, method=method)
            write(tmp_path / f"{method}-seed{seed}", records)
    write(tmp_path / "late", cut(run(values, mixtures=TWO, seed=3), 12))
    return tmp_path


def write(folder: Path, records: Any) -> None:
    folder.mkdir()
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines)


def call(runs: Path, *given: str) -> int:
    return cli.main(["compare", *(g.replace("@", f"{runs}/") for g in given)])


ALL = [f"@{method}-seed{seed}" for method in ("descent", "reptile") for seed in (0, 1)]


def test_folders_are_compared_in_each_format(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(runs, *ALL) == 0 and "differences to descent" in capsys.readouterr().out
    assert call(runs, *ALL, "--format", "md", "--baseline", "reptile") == 0
    assert "**differences to reptile at the end of each run**" in capsys.readouterr().out
    assert call(runs, *ALL, "--format", "json", "--metric", "bits_per_byte") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["end"]["differences"]["reptile"]["forgetting"]["mean"] == pytest.approx(-0.5)
    assert found["end"]["differences"]["reptile"]["forgetting"]["n"] == 2


def test_an_arm_can_be_named_and_a_folder_may_hold_an_equals_sign(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "reptile-seed1").rename(runs / "rate=0.5")
    given = ["plain=@descent-seed0", "plain=@descent-seed1", "@rate=0.5"]
    assert call(runs, *given, "--format", "json") == 0
    arms = json.loads(capsys.readouterr().out)["arms"]
    assert {name: costs["seeds"] for name, costs in arms.items()} == {
        "plain": [0, 1],
        "rate=0.5": [1],
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["@nowhere"], "nowhere: is no run folder"),
        (["plain=@nowhere"], "nowhere: is no run folder"),
        ([*ALL, "--baseline", "mer"], "--baseline mer: no such finished arm; there are descent"),
        (["@late"], "no run is finished"),
        ([ALL[0], ALL[0]], "the recipe and the seed 0 are those of"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(
    runs: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    assert call(runs, *given) == 2
    printed = capsys.readouterr().err
    assert said in printed and len(printed.splitlines()) == 1


def test_a_run_that_is_not_finished_is_left_out_and_named(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(runs, *ALL, "@late") == 0
    said = capsys.readouterr().out
    assert "descent, seed 3: not finished, left out" in said
