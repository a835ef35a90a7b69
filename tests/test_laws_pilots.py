"""Points of pilots are doubted where they should be, and tell what was before; what is held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from recorded import header
from test_laws_plan import NEW, OLD, lines, predicted, quick, written

from treering.analysis.laws import before, doubts
from treering.analysis.laws.before import Before
from treering.analysis.laws.holdout import splits
from treering.analysis.laws.manner import manner
from treering.analysis.laws.pilots import losses, runs, table
from treering.cli import main
from treering.config import Invalid

__all__ = ["quick"]
STEP = 2e6  # tokens
FLAT = {"kind": "constant", "peak": 2e-3, "warmup": 0.01}
FALL = {"tokens": 3_200_000, "shape": "linear", "floor": 0.2, "phases": ["p1", "p2"]}
Told = list[dict[str, object]]


def first(size: float) -> float:
    """The loss of t1 before t2 is learned."""
    return 4.0 * (size / 8e5) ** -0.1


def trained(
    folder: Path, size: float, share: float, *, annealed: bool = True, seed: int = 0,
    **replay: object,
) -> Path:  # fmt: skip
    """A run of t1, ten steps, and of t2, eight. Its points are those of the law: of branches of a
    fifth more tokens, or of steps at the rate."""
    head = header(["t1", "t2"], [["t1"], ["t2"]], seed=seed)
    head["recipe"] |= {"schedule": FLAT, "anneal": FALL if annealed else {}}
    head["recipe"]["replay"] = {"share": share, "memory": {"over": "past"}} | replay
    head |= {"multiplying_parameters": size, "identity": {"recipe": head["recipe"], "size": size}}
    head["phases"] = [{"name": "p1", "end_step": 10}, {"name": "p2", "end_step": 18}]
    found: Told = [head]
    for step in range(1, 19):
        found.append({"kind": "step", "step": step, "tokens": STEP * step, "rate": 1.0})
        beyond, own = 0.2 * STEP * max(1, step - 10), max(1, step - 10)
        if annealed and step in (10, 11, 12, 14, 18):
            more = {"kind": "branch_score", "branch": "annealed", "tokens_beyond": beyond}
            found += scores(step, size, share, STEP * own + beyond, more)
        trunk = {"kind": "score"}
        found += scores(step, size, share, STEP * own, trunk, off=0.2 * annealed)
    folder.mkdir()
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    return folder


def scores(
    step: int, size: float, share: float, tokens: float, more: dict[str, object], off: float = 0.0
) -> Told:
    luck = np.random.default_rng([step, int(size), int(1000 * share)])
    both = {
        "t1": predicted(OLD, size, tokens, share),
        "t2": predicted(NEW, size, tokens, 1 - share),
    }
    both = {name: loss * np.exp(luck.normal(0, 0.002)) for name, loss in both.items()}
    both |= {"t1": first(size)} if step <= 10 else {}
    return [{**more, "step": step, "corpus": c, "loss": loss + off} for c, loss in both.items()]


def cells(folder: Path, *, annealed: bool = True, **replay: object) -> list[str]:
    """Three sizes, four shares."""
    return [
        str(trained(folder / f"{size:g}-{share}", size, share, annealed=annealed, **replay))
        for size in (4e5, 8e5, 1.6e6)
        for share in (0.0, 0.05, 0.15, 0.4)
    ]


def asked(pilots: Sequence[str], *more: str) -> int:
    ask = ["plan", "ask", *pilots, "--learn", "t2", "--budget", f"{6 * 1.6e6 * 1e7:g}"]
    return main([*ask, "--resamples", "100", *more])


def told(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


# -- what is held out ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(160, 400, 13))
def test_of_pilots_as_they_are_made_a_size_and_half_the_tokens_are_held_out(steps: int) -> None:
    """Steps of trunk and branch are rounded up each: half of them is a little more than half."""
    ends = [np.ceil(x * steps) + np.ceil(x * 0.2 * steps) for x in (0.125, 0.25, 0.5, 1.0)]
    n, d, share = (x.ravel() for x in np.meshgrid([1.0, 2.0, 4.0], ends, [0, 0.1, 0.2, 0.4]))
    held = splits({"N": n, "D": d, "share": share})
    assert list(held) == ["largest N", "twice the tokens", "a share between", "the largest share"]
    assert held["largest N"].mean() == pytest.approx(1 / 3)
    assert held["twice the tokens"].mean() == pytest.approx(1 / 4)
    assert "largest N" not in splits({"N": n[n > 1], "D": d[n > 1], "share": share[n > 1]})


# -- before --------------------------------------------------------------------------------------


def test_the_loss_before_goes_with_the_size() -> None:
    power = Before(np.array([1e5, 2e5, 4e5]), 3.0 * np.array([1.0, 0.95, 0.95**2]))
    assert power.at([1e5, 2e5]) == pytest.approx([3.0, 2.85])
    assert power.at([8e5, 5e4]) == pytest.approx([3 * 0.95**3, 3 / 0.95])
    assert power.is_beyond(8e5) and not power.is_beyond(4e5) and power.is_beyond(9e4)
    bent = Before(np.array([1e5, 2e5, 4e5]), np.array([3.0, 2.5, 2.4]))
    assert bent.at(2e5) == pytest.approx(2.5) and bent.at(4.0001e5) == pytest.approx(2.4, abs=1e-3)
    assert list(before.given(2.5).at([1e3, 1e9])) == [2.5, 2.5]
    assert not before.given(2.5).is_beyond(1e9)


def test_the_loss_before_is_of_annealed_weights_where_points_are(tmp_path: Path) -> None:
    """Its mean over the runs of a size; of the trunk it is .2 more."""
    pilots = runs(cells(tmp_path))
    found = before.known(pilots, "t1")
    assert found is not None and list(found.sizes) == [4e5, 8e5, 1.6e6]
    assert found.losses == pytest.approx([first(n) for n in found.sizes])
    assert before.known(pilots, "t3") is None
    assert (
        before.known([run for run in pilots if run[1][0]["multiplying_parameters"] == 4e5], "t1")
        is None
    )
    trunks = [(s, [r for r in run if r.get("step") != 10 or r["kind"] == "score"])
              for s, run in pilots]  # fmt: skip
    assert before.known(trunks, "t1") is None


def test_of_ordinary_runs_it_is_their_own(tmp_path: Path) -> None:
    found = before.known(runs(cells(tmp_path, annealed=False)), "t1")
    assert found is not None and found.losses == pytest.approx([first(n) for n in found.sizes])


@pytest.mark.usefixtures("quick")
def test_each_size_is_held_to_its_own_loss_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pilots = cells(tmp_path)
    assert asked(pilots, "--size", "4e5", "--keep", "t1=30%") == 0
    assert f"t1 within {1.3 * first(4e5):.4f}" in told(capsys)
    assert asked(pilots, "--size", "3.2e6", "--keep", "t1=30%") == 0
    said = told(capsys)
    assert f"t1 within {1.3 * first(3.2e6):.4f}" in said
    assert (
        f"t1's loss before, {first(3.2e6):.4f}, by a power of N from N = 4e+05 to 1.6e+06" in said
    )


def test_a_loss_before_that_is_given_is_taken_for_every_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, lines())
    ask = ["plan", "ask", path, "--budget", "2e14", "--keep", "en=35%", "--before", "4.0"]
    assert main([*ask, "--learn", "fr", "--resamples", "100"]) == 0
    said = told(capsys)
    assert "--before is taken for the loss before at every N; give --size" in said
    assert "no column run" not in said
    # Its law beside another, of both corpora.
    assert said.count("error on what was held out") == 2 and "dcpt-l1" in said


# -- several corpora to keep ---------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_of_several_corpora_every_one_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """de is en with twice as much to lose: it decides."""
    rows = [[*row, f"{float(row[4]) ** 2 / 3:.5f}"] for row in lines()]
    path = tmp_path / "pilots.csv"
    head = ["N", "D", "replay", "run", "en", "fr", "de"]
    path.write_text("\n".join(",".join(row) for row in [head, *rows]) + "\n")
    ask = ["plan", "ask", str(path), "--budget", f"{6 * 1.6e6 * 2e7:g}", "--size", "1.6e6"]
    ask += ["--learn", "fr", "--resamples", "100"]
    least = []
    for keep in (["en"], ["de"], ["en", "de"]):
        each = [w for name in keep for w in ("--keep", f"{name}=25%", "--before", f"{name}=4.0")]
        assert main([*ask, *each]) == 0
        said = told(capsys)
        least.append(said.split(" replay:")[0].split("with ")[1])
        assert all(f"{name} within 5.0000" in said for name in keep)
    assert least[0] != least[1] == least[2]


KEEP = ["--keep", "en=1%", "--keep", "fr=1%"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([*KEEP, "--before", "3"], "--before 3: give CORPUS=NATS for each of en, fr"),
        ([*KEEP, "--before", "en=3"], "fr=1%: the loss before is not known; give --before fr=NATS"),
        ([*KEEP, "--before", "de=3"], "--before de=3: give CORPUS=NATS"),
        ([*KEEP[:2], "--before", "much"], "--before much: give NATS, a positive loss"),
        ([*KEEP[:2], "--before", "-1"], "--before -1: give NATS"),
        ([*KEEP[:2], *KEEP[:2], "--before", "en=3"], "en is named twice"),
        (["--keep", "it=1%", "--before", "3"], "it is named twice"),
    ],
)  # fmt: skip
def test_losses_before_are_given_by_name_where_several_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    path = written(tmp_path, lines())
    assert main(["plan", "ask", path, "--budget", "1e14", "--learn", "it", *more]) == 2
    said = capsys.readouterr().err
    assert words in said and len(said.splitlines()) == 1


# -- doubts --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
def test_of_a_csv_without_runs_they_are_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pilots.csv"
    rows = [["N", "D", "replay", "en"], *([*row[:3], row[4]] for row in lines())]
    path.write_text("\n".join(",".join(row) for row in rows) + "\n")
    points = losses(table([str(path)], []), "en", new=False)
    assert len(np.unique(points["run"])) == 12
    assert main(["plan", "fit", str(path), "--old", "en", "--resamples", "100"]) == 0
    said = told(capsys)
    assert "no column run" in said and "60 points, 12 runs" in said


@pytest.mark.parametrize(
    ("replay", "words"),
    [
        ({"memory": {"kind": "everything"}}, "replay drew from everything"),
        ({"memory": {"over": "all"}}, "replay drew from everything"),
        ({"past": ["t2"]}, "t2: in the last phase's mixture, although learned before"),
        ({}, ""),
    ],
)
def test_a_replay_share_that_is_not_of_old_text_is_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], replay: dict[str, object], words: str
) -> None:
    said = doubts.of_runs(runs(cells(tmp_path, **replay)))
    assert len(said) == bool(words) and words in " ".join(said)


@pytest.mark.usefixtures("quick")
def test_fit_and_ask_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pilots, words = cells(tmp_path, memory={"over": "all"}), "replay drew from everything"
    assert main(["plan", "fit", *pilots, "--old", "t1", "--resamples", "100"]) == 0
    assert words in told(capsys)
    assert asked(pilots, "--size", "8e5", "--keep", "t1=30%") == 0
    assert words in told(capsys)


def test_points_of_runs_are_written_and_read_again(tmp_path: Path) -> None:
    given, out = cells(tmp_path), tmp_path / "points.csv"
    fit = ["plan", "fit", *given, "--old", "t1", "--resamples", "100", "--points", str(out)]
    assert main(fit) == 0
    wanted, found = table(given, runs(given)), table([str(out)], [])
    assert len(found["N"]) == 48 and wanted.keys() == found.keys()
    for name, column in wanted.items():
        np.testing.assert_array_equal(found[name], column)


def point_of(loss: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of `lines`, with a loss."""
    rows = np.array([[float(v) for v in row[:3]] for row in lines()]).T
    run = np.repeat(np.arange(12.0), 5)
    return {"N": rows[0], "D": rows[1], "share": rows[2], "run": run, "loss": loss}


@pytest.mark.parametrize(
    ("slope", "new", "words"),
    [
        ({"N": 0.05}, False, "rises with N"),
        ({"N": 0.05}, True, "rises with N"),
        ({"D": 0.02}, True, "rises with D"),
        ({"D": 0.02}, False, ""),
        ({"share": 0.1}, True, "is it the replayed corpus"),
        ({"share": 0.1}, False, "is it the new corpus"),
        ({"N": -0.1, "D": -0.1, "share": -0.1}, True, ""),
    ],
)
def test_a_loss_that_rises_is_doubted(slope: dict[str, float], new: bool, words: str) -> None:
    flat = point_of(np.full(60, 3.0))
    x = {"N": np.log(flat["N"]), "D": np.log(flat["D"]), "share": flat["share"]}
    noise = np.random.default_rng(0).normal(0, 0.005, 60)
    points = point_of(3 * np.exp(sum(b * x[name] for name, b in slope.items()) + noise))
    said = doubts.of_losses(points, "fr", new=new)
    said = [text for text in said if "shown to be better" not in text]
    assert len(said) == bool(words) and words in " ".join(said)


@pytest.mark.parametrize(("slope", "flat"), [(-0.1, False), (0.0, True), (0.02, True)])
@pytest.mark.parametrize("new", [False, True])
def test_the_largest_pilots_that_gain_nothing_are_doubted(
    slope: float, flat: bool, new: bool
) -> None:
    """Up to 8e5 the loss falls, from there on by so much with log N; luck of 0.5% a run."""
    draw = np.random.default_rng(1)
    points = point_of(np.full(60, 3.0))
    small, large = np.minimum(points["N"], 8e5), np.maximum(points["N"], 8e5)
    luck = np.repeat(draw.normal(0, 0.005, 12), 5)
    bent = -0.1 * np.log(small) + slope * np.log(large) - 0.1 * points["share"] + luck
    points["loss"] = 30 * np.exp(bent - 0.02 * np.log(points["D"]))
    said = [t for t in doubts.of_losses(points, "fr", new=new) if "not shown to be better" in t]
    assert len(said) == flat
    assert not flat or "N = 1.6e+06 is not shown to be better than 8e+05" in said[0]
    shorter = points | {"D": points["D"] * np.where(points["N"] > 1e6, 2, 1)}
    assert not [t for t in doubts.of_losses(shorter, "fr", new=new) if "shown to be" in t]


def test_noise_is_seldom_doubted_and_never_refused() -> None:
    """Of losses that depend on nothing, with luck of each run's own: .3 of correlation over
    checkpoints is nothing then."""
    false, rises = 0, 0
    for seed in range(100):
        draw = np.random.default_rng(seed)
        luck = np.repeat(draw.normal(0, 0.01, 12), 5) + draw.normal(0, 0.002, 60)
        points = point_of(3 * np.exp(luck))
        rises += np.corrcoef(points["share"], points["loss"])[0, 1] > 0.3
        false += any("its share" in text for text in doubts.of_losses(points, "en", new=False))
    assert false <= 4 < rises


@pytest.mark.usefixtures("quick")
def test_corpora_that_are_swapped_are_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, lines())
    assert main(["plan", "fit", path, "--old", "fr", "--resamples", "100"]) == 0
    assert "fr: its loss rises with its share of training" in told(capsys)


def test_the_table_of_a_studys_cells_is_no_table_of_pilots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("arm,branch,seed,replay.share,retained\nn1m,,0,0.1,2.5\n")
    assert main(["plan", "fit", str(path), "--old", "en"]) == 2
    said = capsys.readouterr().err
    assert f"name the study's folder, {tmp_path}" in said and len(said.splitlines()) == 1


# -- how the rate went ---------------------------------------------------------------------------


def test_how_the_rate_of_pilots_went(tmp_path: Path) -> None:
    found = manner(runs(cells(tmp_path)))
    assert found is not None and found.schedule == FLAT and found.part == pytest.approx(0.2)
    assert found.anneal == {"shape": "linear", "floor": 0.2}
    (tmp_path / "more").mkdir()
    own = manner(runs(cells(tmp_path / "more", annealed=False)))
    assert own is not None and (own.schedule, own.part) == (FLAT, 0)
    assert manner([]) is None
    with pytest.raises(Invalid, match="of 2 pilots 1 have annealed branches"):
        manner(runs([str(tmp_path / "400000-0.0"), str(tmp_path / "more/400000-0.05")]))


def test_pilots_of_several_schedules_are_no_model_of_a_run(tmp_path: Path) -> None:
    pilots = runs(cells(tmp_path))
    pilots[0][1][0]["recipe"]["schedule"] = FLAT | {"peak": 1e-3}
    found = manner(pilots)
    assert found is not None and found.schedule == {"kind": "constant", "warmup": 0.01}
    pilots[0][1][0]["recipe"]["schedule"] = FLAT | {"warmup": 0.1}
    with pytest.raises(Invalid, match=r"pilots differ in schedule\.warmup; name those"):
        manner(pilots)


def test_pilots_of_several_manners_are_not_fitted_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more").mkdir()
    mixed = [*cells(tmp_path), *cells(tmp_path / "more", annealed=False)]
    assert main(["plan", "fit", *mixed, "--old", "t1"]) == 2
    assert "have annealed branches; name those of one kind" in capsys.readouterr().err
    assert asked(mixed, "--keep", "t1=30%") == 2
    assert "have annealed branches" in capsys.readouterr().err
    flat = runs(mixed[-len(mixed) // 2 :])
    flat[0][1][0]["recipe"]["schedule"] = {"kind": "cosine", "peak": 1e-3}
    with pytest.raises(Invalid, match=r"pilots differ in schedule\.kind"):
        manner(flat)


def test_a_folder_whose_name_has_an_equals_sign_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "date=2024-05"
    folder.mkdir()
    assert len(runs(cells(folder))) == 12
    with pytest.raises(Invalid, match="a=nowhere: no such file or folder"):
        runs(["a=nowhere", "b=nowhere"])
