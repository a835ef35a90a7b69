"""Annealed branches: the run goes on as if they had not been, and they are runs of their own."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
from rich.console import Console

from treering import checkpoint, cli, config, records, training
from treering.analysis import cells, forgetting
from treering.analysis.curves import curves
from treering.analysis.matrix import matrix
from treering.branch import due
from treering.config import Invalid
from treering.position import State

CONSTANT = "schedule={kind='constant', peak=1e-2}"
BRANCHES = "anneal={tokens=640, shape='linear', floor=0.1}"  # 10 steps
PAST = "replay.memory={kind='balanced', over='past'}"


@pytest.fixture(scope="module")
def plain(place: Path, recipe: Path) -> Path:
    """The run without branches."""
    tiny.run(recipe, place / "plain", CONSTANT)
    return place / "plain"


@pytest.fixture(scope="module")
def annealed(place: Path, recipe: Path) -> Path:
    """The same with a branch at each phase's end."""
    tiny.run(recipe, place / "annealed-run", CONSTANT, BRANCHES)
    return place / "annealed-run"


def end_of(out: Path, step: int) -> dict[str, bytes]:
    """The tensors of a checkpoint, as bytes of its files but for what names it."""
    found = checkpoint.place(out / "checkpoints", step)
    return {name: content for name, content in tiny.files(found).items() if "distcp" in name}


def test_a_run_with_branches_goes_on_as_one_without(plain: Path, annealed: Path) -> None:
    assert tiny.story(annealed, ("step", "score")) == tiny.story(plain, ("step", "score"))
    assert tiny.weights(annealed) == tiny.weights(plain)
    assert end_of(annealed, 50) == end_of(plain, 50)  # moments, anchors and the plan too


@pytest.mark.filterwarnings("ignore:replay.memory.over")  # of one phase alone
@pytest.mark.parametrize("over", ["all", "past"])
def test_a_branch_is_the_run_whose_phase_was_longer_and_ended_in_a_decay(
    place: Path, recipe: Path, tmp_path: Path, over: str
) -> None:
    """Its second phase, too: of 25 steps and 10 more, with what was replayed there."""
    wanted = (CONSTANT, f"replay.memory={{kind='balanced', over='{over}'}}")
    tiny.run(recipe, tmp_path / "trunk", *wanted, BRANCHES)
    longer = "schedule={kind='wsd', peak=1e-2, decay=%s, shape='linear', floor=0.1}"
    first = ("phases=[{name='first', tokens=2240, mixture={en=1.0}}]", longer % (10 / 35))
    both = ("phases.1.tokens=2240", longer % (10 / 60))
    for name, sets in (("first", first), ("second", both)):
        tiny.run(recipe, tmp_path / name, *wanted, *sets)
        branch = tmp_path / "trunk/annealed" / name
        assert tiny.weights(branch) == tiny.weights(tmp_path / name)
        steps, whole = tiny.story(branch, ("step",)), tiny.story(tmp_path / name, ("step",))
        assert steps == whole
        assert steps[-1]["rate"] == pytest.approx(1e-2 * (0.1 + 0.9 * 0.1))


def test_a_branch_is_scored_beside_the_run_with_what_it_cost(annealed: Path) -> None:
    found = records.read(annealed)
    scores = [r for r in found if r["kind"] == "branch_score"]
    assert [(r["step"], r["phase"], r["corpus"]) for r in scores] == [
        (step, phase, corpus)
        for step, phase in ((25, "first"), (50, "second"))
        for corpus in ("en", "fr", "de")
    ]
    per_token = found[0]["flops_per_token"]
    assert all(r["tokens_beyond"] == 640 for r in scores)
    assert scores[0]["flops_beyond"] == pytest.approx(640 * per_token, rel=0.02)  # and of Reptile
    own = matrix(found, branch="annealed").values
    assert (own[1:] < matrix(found).values[1:]).any()
    line = next(line for line in cells.lines("x", {}, found) if line["branch"] == "annealed")
    assert line["tokens"] == 3200 + 640
    spent = curves(found, branch="annealed")
    assert spent.tokens.tolist() == [0, 1600 + 640, 3200 + 640]
    numbers = checkpoint.newest(annealed / "checkpoints")
    assert numbers is not None
    assert numbers[1]["ledger"]["anneal_tokens"] == 640  # of the first; the last came after it


def test_a_branch_is_a_run_folder_of_its_own(annealed: Path) -> None:
    branch = annealed / "annealed/second"
    assert (branch / "model/config.json").exists() and (branch / "summary.json").exists()
    found = records.read(branch)
    steps = [r["step"] for r in found if r["kind"] == "step"]
    assert steps == list(range(1, 61))
    rows = matrix(found).rows
    assert [(row.label, row.step) for row in rows] == [("base", 0), ("first", 25), ("second", 60)]


def test_a_summary_has_the_branches_of_the_row_that_is_judged(annealed: Path) -> None:
    """Not those that left earlier phases, whose scores a branch's records begin with."""
    own = forgetting.summary(records.read(annealed))["branches"]
    second = forgetting.summary(records.read(annealed / "annealed/second"))
    assert [*own] == ["annealed"]
    for unit, metrics in own["annealed"].items():
        assert metrics["retained"] == second[unit]["metrics"]["retained"]
    assert second["branches"] == {}


def test_a_checkpoint_that_is_damaged_while_its_branch_is_trained_ends_the_run(
    recipe: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not gone on with from another step; given again it ends as ever."""
    real = training.Run.walk

    def walk(self: training.Run, *more: Any) -> Any:
        ended = real(self, *more)
        if self.out.parent.name == "annealed":
            os.truncate(checkpoint.place(tmp_path / "checkpoints", 25) / "__0_0.distcp", 100)
        return ended

    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="25 is passed over"):
        patch.setattr(training.Run, "walk", walk)
        with pytest.raises(Invalid, match=r"step-000000025: was damaged while a branch .* again"):
            tiny.run(recipe, tmp_path, CONSTANT, BRANCHES)
    with pytest.warns(UserWarning, match="25 is passed over"):
        tiny.run(recipe, tmp_path, CONSTANT, BRANCHES)
    assert tiny.weights(tmp_path) == tiny.weights(plain)


def test_an_annealed_branch_is_exported_as_a_run_of_its_own(
    place: Path, annealed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--cache", str(place / "cache"), "--out", str(tmp_path / "model")]
    assert cli.main(["export", str(annealed), "--branch", "annealed", *given]) == 2
    assert f"name one of {annealed / 'annealed'}" in capsys.readouterr().err
    assert cli.main(["export", str(annealed / "annealed/second"), *given]) == 0


def test_evaluations_of_branches_are_charged(plain: Path, annealed: Path) -> None:
    ends = [records.read(out)[-1]["ledger"]["evaluation_flops"] for out in (plain, annealed)]
    beyond = [r for r in records.read(annealed) if r["kind"] == "branch_score"]
    each = [r["evaluation_flops_beyond"] for r in beyond if r["corpus"] == "en"]
    tokens = sum(
        r["tokens"]
        for phase, step in (("first", 25), ("second", 50))
        for r in records.read(annealed / "annealed" / phase)
        if r["kind"] == "score" and r["step"] > step  # on its way, too
    )
    assert sum(each) == pytest.approx(tokens * records.read(annealed)[0]["flops_per_token"] / 3)
    assert ends[1] == pytest.approx(ends[0] + sum(each))


def test_a_branch_goes_on_where_what_changed_does_not_matter(
    recipe: Path, annealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(30, patch)
        tiny.run(recipe, tmp_path / "run", CONSTANT, BRANCHES)
    tiny.run(recipe, tmp_path / "run", CONSTANT, BRANCHES, "guard.max_skipped=9")
    assert sorted(each.name for each in (tmp_path / "run/annealed").iterdir()) == [
        "first",
        "second",
    ]
    assert tiny.weights(tmp_path / "run/annealed/first") == tiny.weights(
        annealed / "annealed/first"
    )


@pytest.mark.parametrize("share", [0.07, 0.14, 0.28, 0.29, 0.55])
def test_a_branch_leaves_at_the_share_that_was_written(recipe: Path, share: float) -> None:
    """In floats 0.07 * 300 is more than 21."""
    given = f"anneal={{tokens=640, at={{second=[{share}]}}}}"
    wanted = config.load(recipe, sets=(CONSTANT, given))
    at = round(share * 300)
    state = State(300 + at, 1, at, (0,), (0,), {}, {})
    assert due(wanted, (300, 300), state) == share


@pytest.mark.parametrize("at", [5, 27, 30, 47, 65])
def test_interrupted_anywhere_it_goes_on_bit_for_bit(
    recipe: Path, annealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of 25 + 10 + 25 + 10 steps: in the run, early and late in its first branch, after it, and in
    the last one."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(at, patch)
        tiny.run(recipe, out, CONSTANT, BRANCHES)
    tiny.run(recipe, out, CONSTANT, BRANCHES)
    tiny.assert_same_run(out, annealed)
    for phase in ("first", "second"):
        tiny.assert_same_run(out / "annealed" / phase, annealed / "annealed" / phase)


def test_a_run_that_was_killed_after_a_branch_takes_its_scores_once(
    recipe: Path, annealed: Path, tmp_path: Path
) -> None:
    """As it stood at the first phase's end: the branch is whole, no checkpoint came after it."""
    out = tmp_path / "run"
    tiny.run(recipe, out, CONSTANT, BRANCHES, "checkpoint.keep=99")
    for path in (out / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > 25:
            shutil.rmtree(path)
    (out / "summary.json").unlink()
    tiny.run(recipe, out, CONSTANT, BRANCHES, "checkpoint.keep=99")
    tiny.assert_same_run(out, annealed)


def test_a_phase_that_comes_later_goes_on_from_before_the_branch(
    recipe: Path, annealed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    only = "phases=[{name='first', tokens=1600, mixture={en=1.0}}]"
    tiny.run(recipe, out, CONSTANT, BRANCHES, only)
    before = tiny.files(out / "annealed")
    tiny.run(recipe, out, CONSTANT, BRANCHES)
    assert tiny.weights(out) == tiny.weights(annealed)
    assert before.items() <= tiny.files(out / "annealed").items()
    assert tiny.story(out, ("branch_score",)) == tiny.story(annealed, ("branch_score",))


def test_from_where_a_run_stands_branches_are_annealed_as_is_asked_then(
    recipe: Path, plain: Path, tmp_path: Path
) -> None:
    """A run of one phase without branches goes on with them; one whose branch was of 10 steps, with
    branches of 5: that at hand is trained anew, and the other kept aside."""
    only = "phases=[{name='first', tokens=1600, mixture={en=1.0}}]"
    short = BRANCHES.replace("640", "320")
    for name, before in (("none", ()), ("other", (BRANCHES,))):
        out = tmp_path / name
        tiny.run(recipe, out, CONSTANT, only, *before)
        tiny.run(recipe, out, CONSTANT, short)
        assert len(tiny.story(out / "annealed/first", ("step",))) == 30
        assert (out / "annealed/first.old-1").exists() == bool(before)
        scores = tiny.story(out, ("branch_score",))
        assert {r["tokens_beyond"] for r in scores} == {320} and len(scores) == 6
        assert tiny.weights(out) == tiny.weights(plain)


WITHIN = "anneal={tokens=640, shape='linear', floor=0.1, phases=['second'], at={second=[0.3, 0.5]}}"


def test_branches_within_a_phase_are_those_of_shorter_phases(
    recipe: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 8 and 13 of the second phase's 25 steps, over 3 and 5 of 10; interrupted in the second."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(43, patch)
        tiny.run(recipe, out, CONSTANT, WITHIN)
    tiny.run(recipe, out, CONSTANT, WITHIN)
    assert tiny.story(out, ("step", "score")) == tiny.story(plain, ("step", "score"))
    assert tiny.weights(out) == tiny.weights(plain)
    scores = [r for r in records.read(out) if r["kind"] == "branch_score" and r["corpus"] == "en"]
    assert [(r["step"], r["tokens_beyond"]) for r in scores] == [(33, 192), (38, 320), (50, 640)]
    for steps, more in ((8, 3), (13, 5)):
        falls = f"decay={more / (25 + steps + more)}, shape='linear', floor=0.1"
        shorter = (f"phases.1.tokens={64 * (steps + more)}",
                   f"schedule={{kind='wsd', peak=1e-2, {falls}}}")  # fmt: skip
        tiny.run(recipe, tmp_path / f"of-{steps}", *shorter)
        branch = out / f"annealed/second@{steps}"
        assert tiny.weights(branch) == tiny.weights(tmp_path / f"of-{steps}")


@pytest.mark.parametrize(
    ("was", "wrong", "message"),
    [
        ("0.3", "1.5", r"anneal\.at\.second = .*shares of the phase, in"),
        ("second=[", "secnd=[", r"anneal\.at = 'secnd': no such phase; did you mean"),
    ],
)
def test_where_branches_leave_within_a_phase_is_checked(
    recipe: Path, tmp_path: Path, was: str, wrong: str, message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        tiny.run(recipe, tmp_path / "no", CONSTANT, WITHIN.replace(was, wrong))


def test_a_run_begun_before_branches_within_a_phase_keeps_its_branches(
    annealed: Path, tmp_path: Path
) -> None:
    """Its first record, and so its branches' own, knows no `at`."""
    for folder in (annealed, *(annealed / "annealed").iterdir()):
        header = next(r for r in records.read(folder) if r["kind"] == "header")
        assert "at" not in header["identity"].get("anneal", {})


def test_only_the_phases_named_are_annealed(recipe: Path, plain: Path, tmp_path: Path) -> None:
    tiny.run(recipe, tmp_path / "run", CONSTANT, BRANCHES, "anneal.phases=['second']")
    assert [path.name for path in (tmp_path / "run/annealed").iterdir()] == ["second"]
    assert tiny.weights(tmp_path / "run") == tiny.weights(plain)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("anneal.tokens=-1", "anneal.tokens = -1: must not be negative"),
        ("anneal.phases=['secnd']", "anneal.phases = 'secnd': no such phase; did you mean"),
        ("anneal.shape='step'", "anneal.shape = 'step'"),
        ("anneal.floor=1.5", "anneal.floor = 1.5: a share of the rate"),
        ("update={kind='coso', rank=2}", "anneal.tokens = 640: not with update kind 'coso'"),
        (
            "update={kind='outer', every=2, optimizer='sgd', rate={kind='linear', peak=1.0}}",
            "anneal.tokens = 640: not beside a schedule of update.rate",
        ),
        ("adapter={kind='codyra', rank=2, threshold=1.0}", "640: not with an adapter"),
        ("adapter={kind='lora', rank=2}", "640: not with an adapter"),
    ],
)
def test_a_branch_that_cannot_be_is_refused(
    recipe: Path, tmp_path: Path, wrong: str, message: str
) -> None:
    with pytest.raises(Invalid, match=message):
        tiny.run(recipe, tmp_path / "run", "update={kind='descent'}", BRANCHES, wrong)
    assert not (tmp_path / "run").exists()


def test_losses_are_shown_against_the_best_of_the_run_in_all_its_sittings(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a resume, and after a branch, whose own losses are no best of the run's."""

    def shown(out: Path, *sets: str) -> list[str]:
        said, loaded = io.StringIO(), config.load(recipe, sets=(CONSTANT, *sets))
        try:
            with tiny.one_thread():
                training.run(loaded, out, console=Console(file=said, width=200),
                             cache_folder=str(recipe.parent / "cache"))  # fmt: skip
        except KeyboardInterrupt:
            pass
        lines = said.getvalue().splitlines()
        begins = [line for line in lines if "annealed branch" in line or "held-out" in line]
        return begins

    plain = shown(tmp_path / "plain")
    with monkeypatch.context() as patch:
        tiny.interrupt_in_step(30, patch)
        parts = shown(tmp_path / "parts")
    assert [*parts, *shown(tmp_path / "parts")] == plain
    both = shown(tmp_path / "branched", BRANCHES)
    own = {step: line for line in both if " 35 " not in line and " 60 " not in line
           for step in [line.split()[1]]}  # fmt: skip
    assert all(own[line.split()[1]] == line for line in plain)
