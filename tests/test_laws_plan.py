"""`treering plan`: from pilots to a law and a recommendation, and every mistake answered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from recorded import Record, header
from synthetic import grid

from treering import verbs_laws
from treering.analysis.laws import KINDS
from treering.analysis.laws.dcpt import L3
from treering.analysis.laws.pilots import losses, runs, table
from treering.cli import main

OLD = np.array([1.2, 0.8, 0.35, 0.3, 0.3, 1.2, 1.0, 0.1, 0.8])
NEW = np.array([1.0, 0.7, 0.3, 0.1, 0.3, 1.0, 0.8, 0.3, 0.6])
UNIT = {"N": 1e6, "D": 8e6}


def predicted(parameters: np.ndarray, size: float, tokens: float, share: float) -> float:
    point = {"N": size / UNIT["N"], "D": tokens / UNIT["D"], "share": share}
    return float(L3.predict(parameters, {n: np.array([v]) for n, v in point.items()})[0])


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is held out, which takes most of the time."""
    monkeypatch.setattr(verbs_laws, "splits", lambda points: {})


def lines() -> list[list[str]]:
    """Three sizes, four shares, five checkpoints: losses of en, the old one, and of fr."""
    axes = grid(N=[4e5, 8e5, 1.6e6], replay=[0, 0.05, 0.15, 0.4], D=np.geomspace(2e6, 3e7, 5))
    draw, found = np.random.default_rng(0), []
    for i, (n, r, d) in enumerate(zip(*axes.values(), strict=True)):
        en, fr = predicted(OLD, n, d, r), predicted(NEW, n, d, 1 - r)
        noisy = np.exp(draw.normal(0, 0.002, 2))
        found.append([f"{v:.6g}" for v in (n, d, r)] + [f"r{i // 5}"]
                     + [f"{en * noisy[0]:.5f}", f"{fr * noisy[1]:.5f}"])  # fmt: skip
    return found


def written(folder: Path, rows: list[list[str]]) -> str:
    path = folder / "pilots.csv"
    text = [",".join(row) for row in [["N", "D", "replay", "run", "en", "fr"], *rows]]
    path.write_text("\n".join(text) + "\n")
    return str(path)


@pytest.mark.timeout(300)
def test_fit_prints_the_law_and_what_was_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, lines())
    assert main(["plan", "fit", path, "--old", "en", "--resamples", "100"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "60 points, 12 runs" in said and "parameters that multiply" in said
    assert "gamma" in said and "largest N" in said and "twice the" in said
    assert said.rindex("dcpt-l3") < said.rindex("dcpt-l1")


def of_forgetting() -> list[list[str]]:
    """`lines`, with losses of en by the law of that name."""
    theta, found = np.array([1.6, 0.7, 0.3, 0.9, 1.5, 0.3, 2.0, 0.25, 0.1, 0.01, 0.4]), lines()
    for i, row in enumerate(found):
        n, d, share = (np.array([float(v)]) for v in row[:3])
        point = {"N": n / UNIT["N"], "D": d / UNIT["D"], "share": share}
        loss = KINDS["forgetting"].predict(theta, point)[0]
        row[4] = f"{loss * np.exp(np.random.default_rng(i).normal(0, 0.002)):.5f}"
    return found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("law", [[], ["--law", "dcpt"], ["--law", "replay", "--law", "en=dcpt-l1"]])
def test_the_law_is_that_which_is_nearest_to_what_was_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], law: list[str]
) -> None:
    """Unless another is asked for."""
    path = written(tmp_path, of_forgetting())
    assert main(["plan", "fit", path, "--old", "en", "--resamples", "100", *law]) == 0
    said = " ".join(capsys.readouterr().out.split())
    named = {0: "forgetting", 2: "dcpt-l3", 4: "dcpt-l1"}[len(law)]
    assert said.startswith(f"{named}, loss of en")
    table = said[said.index("error on what was held out") :]
    order = sorted(KINDS[name].name for name in verbs_laws.OLD)
    assert table.index("forgetting") == min(table.index(name) for name in order)


def test_what_leaves_too_little_to_fit_is_not_held_out() -> None:
    """Two sizes, of a seed each: without a seed one size is left. Few points: the smaller laws."""
    rows = np.array([[float(v) for v in row[:3]] for row in lines()]).T
    points = {"N": rows[0], "D": rows[1], "share": rows[2], "loss": 3 - 0.01 * np.log(rows[1])}
    two = {name: column[rows[0] < 1e6] for name, column in points.items()}
    two["seed"] = (two["N"] > 5e5).astype(float)
    tried = verbs_laws.judged(two, [KINDS["dcpt-l5"]])
    assert list(tried[0].held) == ["twice the tokens", "a share between", "the largest share"]
    few = {name: column[::4] for name, column in two.items()}
    assert len(few["N"]) == 10
    forms = [KINDS[name] for name in verbs_laws.OLD]
    assert [found.fit.form.name for found in verbs_laws.judged(few, forms)] == ["dcpt-l5"]
    assert verbs_laws.judged({n: c[:7] for n, c in few.items()}, forms) == []


@pytest.mark.usefixtures("quick")
def test_ask_recommends_what_a_search_of_the_truth_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The least share that keeps en at 5 nats with N = 1.6e6: from the law that made the
    points."""
    path, tokens = written(tmp_path, lines()), 2e7
    ask = ["plan", "ask", path, "--budget", f"{6 * 1.6e6 * tokens:g}", "--size", "1.6e6"]
    ask += ["--keep", "en=25%", "--before", "4.0", "--learn", "fr", "--resamples", "100"]
    assert main(ask) == 0
    said = " ".join(capsys.readouterr().out.split())
    even = np.linspace(0, 1, 1001)
    kept = [r for r in even if predicted(OLD, 1.6e6, tokens, r) <= 5.0]
    found = float(said.split(" replay:")[0].split("with ")[1].removesuffix("%")) / 100
    assert found == pytest.approx(min(kept), abs=0.03)
    assert "95% interval" in said and "extrapolated" not in said


@pytest.mark.usefixtures("quick")
def test_ask_tells_how_far_it_is_beyond_the_pilots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, lines())
    ask = ["plan", "ask", path, "--budget", "1e15", "--size", "6.4e6", "--keep", "en=25%"]
    assert main([*ask, "--before", "4.0", "--learn", "fr", "--resamples", "100"]) == 0
    assert "N is 4.0 times beyond the pilots" in " ".join(capsys.readouterr().out.split())


FIT = ["plan", "fit", "CSV", "--old", "en"]
ASK = ["plan", "ask", "CSV", "--budget", "1e14", "--learn", "fr", "--keep", "en=1%"]


@pytest.mark.parametrize(
    ("arguments", "change", "words"),
    [
        (FIT, lambda rows: rows[::8], "8 points for the 9 parameters"),
        (FIT, lambda rows: [r for r in rows if r[2] == "0.05"], "share = 0.05 at every point"),
        (
            FIT,
            lambda rows: [*rows[:3], [*rows[3][:4], "nan", "3"], *rows[4:]],
            "en = nan at point 3",
        ),
        (
            FIT,
            lambda rows: [*rows[:3], [*rows[3][:4], "", "3"], *rows[4:]],
            "en is not a number in line 5",
        ),
        (FIT, lambda rows: [[r[0], "0", *r[2:]] for r in rows], "leave out points at D = 0"),
        (FIT, lambda rows: [[*r[:2], "1", *r[3:]] for r in rows], "replay = 1: a share"),
        (FIT, lambda rows: [], "no points"),
        (FIT, lambda rows: [[*rows[0], ""], *rows[1:]], "line 2 has not as many fields"),
        (FIT, lambda rows: [*rows[:3], rows[3][:3], *rows[4:]], "line 5 has not as many fields"),
        (FIT, lambda rows: [[";".join(row)] for row in rows], "line 2 has not as many fields"),
        ([*FIT, "--law", "dpct"], lambda rows: rows, "did you mean 'dcpt'"),
        ([*FIT, "--law", "fr=dcpt"], lambda rows: rows, "--law fr=dcpt: asked is about en"),
        ([*ASK, "--size", "nan"], lambda rows: rows, "--size nan: must be positive"),
        ([*ASK, "--size", "0"], lambda rows: rows, "--size 0: must be positive"),
        ([*FIT, "--resamples", "5"], lambda rows: rows, "at least 100"),
        ([*FIT[:4], "de"], lambda rows: rows, "de: no such corpus; there are en, fr"),
        (ASK, lambda rows: rows, "give --before NATS"),
        ([*ASK[:-1], "en"], lambda rows: rows, "give CORPUS=1%"),
        ([*ASK, "--before", "1", "--resamples", "100"], lambda rows: rows, "allow more, or spend"),
        ([*ASK[:3], "--budget", "-1", *ASK[5:]], lambda rows: rows, "must be positive FLOPs"),
    ],
)
def test_every_mistake_is_named_with_its_remedy(
    arguments: list[str], change: object, words: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = written(tmp_path, change(lines()))  # type: ignore[operator]
    assert main([path if word == "CSV" else word for word in arguments]) == 2
    assert words in capsys.readouterr().err


def test_pilots_that_are_not_there_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "fit", "nowhere.csv", "--old", "en"]) == 2
    assert "nowhere.csv: no such file or folder; name runs" in capsys.readouterr().err


def test_a_csv_of_a_spreadsheet_is_read_and_another_encoding_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(written(tmp_path, lines()))
    plain, text = table([str(path)], []), path.read_text()
    path.write_text(text, encoding="utf-8-sig")
    np.testing.assert_array_equal(table([str(path)], [])["N"], plain["N"])
    path.write_text(text.replace("en", "français"), encoding="latin-1")
    assert main(["plan", "fit", str(path), "--old", "fr"]) == 2
    said = capsys.readouterr().err
    assert "not a CSV in UTF-8" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("verb", ["pilots", "fit", "ask", "predict"])
def test_help_is_typed_as_it_is_shown(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", verb, "--help"])
    said = capsys.readouterr().out
    assert "usage: treering plan" in said and "%%" not in said
    assert (verb == "ask") == ("CORPUS=1%" in said)


def points_of(given: list[str]) -> dict[str, np.ndarray]:
    """The points of folders."""
    return table(given, runs(given))


def pilot(folder: Path, size: float, share: float, rates: list[float]) -> Path:
    """A run of one phase on t2, t1 in the past, scored after every step."""
    head: Record = header(["t1", "t2"], [["t2"]], past=["t1"])
    head["recipe"]["replay"]["share"] = share
    head |= {"multiplying_parameters": size, "parameters": 9 * size}
    head["phases"] = [{"name": "p1", "end_step": len(rates)}]
    records = [
        head,
        *({"kind": "score", "step": 0, "corpus": c, "loss": 3.0} for c in ("t1", "t2")),
    ]
    for step, rate in enumerate(rates, 1):
        records.append({"kind": "step", "step": step, "tokens": 1000 * step, "rate": rate})
        for corpus, loss in (("t1", 3.2 - share), ("t2", 3 - 0.1 * step)):
            records.append({"kind": "score", "step": step, "corpus": corpus, "loss": loss})
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def test_points_of_runs_are_those_at_the_constant_rate(tmp_path: Path) -> None:
    """Warm-up and decay are left out; of a rate that falls all along the end alone is left."""
    flat = pilot(tmp_path / "flat", 1e5, 0.25, [0.1, 1.0, 1.0, 1.0, 0.2])
    falls = pilot(tmp_path / "falls", 2e5, 0.5, [1.0, 0.8, 0.4, 0.1])
    points = points_of([str(flat), str(falls)])
    assert list(points["D"]) == [2000, 3000, 4000, 4000]
    assert list(points["N"]) == [1e5, 1e5, 1e5, 2e5] and list(points["run"]) == [0, 0, 0, 1]
    old, new = losses(points, "t1", new=False), losses(points, "t2", new=True)
    assert list(old["share"]) == [0.25, 0.25, 0.25, 0.5] and old["loss"][0] == pytest.approx(2.95)
    assert list(new["share"]) == [0.75, 0.75, 0.75, 0.5] and new["loss"][0] == pytest.approx(2.8)
