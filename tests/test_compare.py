"""Arms against one another: intervals and paired differences by hand, and what is left out."""

from __future__ import annotations

import io
import itertools
import json
import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import cut, run
from rich.console import Console

from treering.analysis.compare import compare, is_finished
from treering.analysis.intervals import difference, estimate
from treering.analysis.runs import Arm, arms, branched
from treering.config import Invalid
from treering.report.comparison import markdown, show

BASE = [8.0, 8.0]
TWO = (("t1",), ("t2",))
Runs = dict[int, Any]


def two(retained: float, learned: float, **more: Any) -> Any:
    """A run of two phases that learned t1 to 3 and t2 to `learned`, and ended with t1 at
    `retained`: forgetting is retained - 3."""
    return run([BASE, [3.0, 6.0], [retained, learned]], mixtures=TWO, **more)


def near(*values: float) -> Any:
    return pytest.approx(values if len(values) > 1 else values[0], abs=1e-9)


# -- a mean and its intervals --------------------------------------------------------------------

# Two-sided 95% quantiles of Student's t, from the tables that are printed everywhere.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 8: 2.365, 10: 2.262}


def test_three_seeds_by_hand() -> None:
    found = estimate({0: 1.0, 1: 2.0, 2: 3.0})
    half = 4.303 * 1 / math.sqrt(3)
    assert found.mean == 2.0 and found.n == 3 and found.values == {0: 1.0, 1: 2.0, 2: 3.0}
    assert found.t == pytest.approx((2 - half, 2 + half), abs=1e-3)


@pytest.mark.parametrize("n", STUDENT)
def test_the_interval_is_students(n: int) -> None:
    values = [float(i * i) for i in range(n)]
    mean = fmean(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    found = estimate(dict(enumerate(values)))
    assert found.t is not None
    assert (found.t[1] - found.t[0]) / 2 == pytest.approx(STUDENT[n] * spread / math.sqrt(n), 1e-3)
    assert sum(found.t) / 2 == near(mean)


def percentile(ordered: list[float], share: float) -> float:
    """Linear between the two values around it."""
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


@given(st.lists(st.floats(-10, 10).map(lambda x: round(x, 3)), min_size=2, max_size=5))
def test_the_bootstrap_of_few_seeds_takes_every_resample(values: list[float]) -> None:
    means = sorted(fmean(some) for some in itertools.product(values, repeat=len(values)))
    found = estimate(dict(enumerate(values)))
    assert found.bootstrap == near(percentile(means, 0.025), percentile(means, 0.975))


def test_the_bootstrap_of_many_seeds_is_drawn_and_always_the_same() -> None:
    values = {seed: math.sin(seed) for seed in range(20)}
    found = estimate(values)
    assert found == estimate(values)
    assert found.t is not None and found.bootstrap is not None
    mean, spread = found.mean, math.sqrt(fmean((v - found.mean) ** 2 for v in values.values()))
    half = 1.96 * spread / math.sqrt(20)
    assert found.bootstrap == pytest.approx((mean - half, mean + half), abs=0.1 * half)
    assert found.t[0] < found.bootstrap[0] < found.bootstrap[1] < found.t[1]


def test_of_one_seed_or_none_there_is_no_interval() -> None:
    one = estimate({7: 2.5})
    assert (one.mean, one.n, one.t, one.bootstrap) == (2.5, 1, None, None)
    none = estimate({})
    assert math.isnan(none.mean) and none.n == 0 and none.t is None


def test_what_is_not_finite_is_left_out_of_a_mean() -> None:
    found = estimate({0: 1.0, 1: math.nan, 2: 3.0, 3: math.inf})
    assert found.mean == 2.0 and found.n == 2 and list(found.values) == [0, 2]


# -- paired differences --------------------------------------------------------------------------


def test_differences_are_taken_seed_by_seed() -> None:
    """The arms overlap widely, the seeds agree: unpaired nothing would be shown."""
    arm, baseline = {0: 1.0, 1: 5.0, 2: 9.0}, {0: 2.0, 1: 6.1, 2: 9.9}
    found = difference(arm, baseline)
    assert found["values"] == {0: near(-1.0), 1: near(-1.1), 2: near(-0.9)}
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found["mean"] == near(-1.0) and found["n"] == 3
    assert found["t"] == pytest.approx((-1 - half, -1 + half), abs=1e-4)
    assert found["verdict"] == "lower" and found["lower"] == 3
    assert difference(baseline, arm)["verdict"] == "higher"
    assert difference(baseline, arm)["lower"] == 0


def test_an_interval_that_holds_0_shows_nothing() -> None:
    found = difference({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0, 1: 2.5, 2: 0.9})
    assert found["lower"] == 2 and found["verdict"] == "not shown"
    same = difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})
    assert same["t"] == (0.0, 0.0) and same["verdict"] == "not shown" and same["lower"] == 0


def test_only_seeds_of_both_arms_are_paired() -> None:
    found = difference({0: 1.0, 2: 4.0, 5: 7.0}, {0: 2.0, 1: 9.0, 2: 6.0})
    assert found["values"] == {0: -1.0, 2: -2.0}
    one = difference({0: 1.0, 3: 1.0}, {0: 2.0, 1: 1.0})
    assert one["verdict"] == "one seed" and one["mean"] == -1.0 and one["t"] is None
    none = difference({0: 1.0}, {1: 1.0})
    assert none["verdict"] == "none" and none["n"] == 0 and math.isnan(none["mean"])
    diverged = difference({0: math.nan, 1: 1.0}, {0: 1.0, 1: 2.0})
    assert diverged["verdict"] == "one seed"


# -- runs to arms --------------------------------------------------------------------------------


def names(*runs: tuple[str, Any]) -> dict[str, list[int]]:
    return {arm.name: sorted(arm.runs) for arm in arms(runs)}


def test_runs_that_differ_by_their_seed_alone_are_one_arm() -> None:
    found = arms(
        [(f"mer-seed{s}", two(4, 2, seed=s, method="reptile")) for s in (3, 1)]
        + [("plain-seed1", two(5, 2, seed=1))]
    )
    assert [(arm.name, list(arm.runs), arm.branch) for arm in found] == [
        ("mer", [3, 1], None),
        ("plain", [1], None),
    ]


def test_the_order_of_a_recipes_keys_makes_no_other_arm() -> None:
    first, second = two(4, 2, seed=0), two(4, 2, seed=1)
    second[0]["identity"] = dict(reversed(list(second[0]["identity"].items())))
    second[0]["identity"]["replay"] = dict(reversed(list(second[0]["identity"]["replay"].items())))
    assert names(("a-0", first), ("a-1", second)) == {"a": [0, 1]}


def test_a_name_loses_its_seed_and_nothing_else() -> None:
    def alone(name: str, seed: int) -> str:
        return next(iter(names((name, two(4, 2, seed=seed)))))

    assert alone("mer-seed0", 0) == "mer" and alone("mer_seed=12", 12) == "mer"
    assert alone("mer-s3", 3) == "mer" and alone("seed0", 0) == "seed0"
    assert alone("replay-50", 0) == "replay-50" and alone("replay-2", 2) == "replay-2"
    assert alone("mer-seed10", 0) == "mer-seed10" and alone("runs3", 3) == "runs3"
    several = [(f"replay-2-{seed}", two(4, 2, seed=seed)) for seed in (0, 2)]
    assert names(*several) == {"replay-2": [0, 2]}
    given = [("replay-2", two(4, 2, seed=seed)) for seed in (0, 1, 2)]  # as in ARM=RUN
    assert names(*given) == {"replay-2": [0, 1, 2]}


def test_arms_of_the_same_name_are_numbered_and_none_is_lost() -> None:
    methods = enumerate(["reptile", "descent", "average", "per_sample"])
    folders = ["run", "run", "run (2)", "run"]
    found = names(*((folders[i], two(4, 2, method=method)) for i, method in methods))
    assert len(found) == 4 and next(iter(found)) == "run"


def test_the_same_run_twice_is_refused_with_both_names() -> None:
    with pytest.raises(Invalid, match="^b-0: .* seed 0 are those of a-seed0; name one"):
        arms([("a-seed0", two(4, 2)), ("a-seed1", two(4, 2, seed=1)), ("b-0", two(5, 2))])


def test_digests_of_the_text_make_another_arm_and_folders_do_not() -> None:
    first, second, third = (two(4, 2, seed=seed) for seed in range(3))
    second[0]["recipe"]["corpora"]["t1"]["train"] = "elsewhere/t1.txt"
    third[0]["identity"]["corpora"]["t1"]["train"] = "another digest"
    assert names(("a-0", first), ("a-1", second), ("b-2", third)) == {"a": [0, 1], "b-2": [2]}


# -- the comparison ------------------------------------------------------------------------------


def arm(name: str, ends: dict[int, tuple[float, float]], **more: Any) -> Arm:
    return Arm(name, {seed: two(*end, seed=seed, **more) for seed, end in ends.items()})


def plain() -> Arm:
    return arm("plain", {0: (5.0, 2.0), 1: (5.2, 2.1), 2: (5.1, 1.9)})


def test_metrics_are_estimated_over_seeds_and_differ_from_the_baselines() -> None:
    replay = arm("replay", {0: (4.0, 2.2), 1: (4.1, 2.3), 2: (4.2, 2.1)}, spent=(100, 1e9))
    table = compare([plain(), replay])
    assert table["baseline"] == "plain" and list(table["arms"]) == ["plain", "replay"]
    judged = table["end"]["arms"]["plain"]
    assert judged["forgetting"]["mean"] == near(2.1) and judged["forgetting"]["n"] == 3
    assert judged["retained"]["mean"] == near((5.1 + 2.0) / 2)
    assert judged["retained"]["per_corpus"]["t1"]["mean"] == near(5.1)
    assert judged["learned"]["per_corpus"]["t2"]["mean"] == near(2.0)
    assert set(judged["forgetting"]["per_corpus"]) == {"t1"}
    found = table["end"]["differences"]["replay"]
    assert found["forgetting"]["values"] == {0: near(-1.0), 1: near(-1.1), 2: near(-0.9)}
    assert found["forgetting"]["verdict"] == "lower" and found["forgetting"]["lower"] == 3
    assert found["learned"]["mean"] == near(0.1)  # half of 0.2: t1 was learned to 3 in both
    assert "plain" not in table["end"]["differences"] and table["notes"] == []
    assert table["arms"]["replay"]["tokens"] == 2000 and table["arms"]["replay"]["seconds"] == 40


def test_the_baseline_can_be_named_and_must_be_known() -> None:
    replay = arm("replay", {0: (4.0, 2.2), 1: (4.1, 2.3)})
    table = compare([plain(), replay], baseline="replay")
    assert list(table["end"]["differences"]) == ["plain"]
    assert table["end"]["differences"]["plain"]["forgetting"]["n"] == 2
    with pytest.raises(Invalid, match="--baseline mer: no such finished arm; .*plain, replay"):
        compare([plain(), replay], baseline="mer")


def settings(*given: tuple[str, str | None]) -> list[Arm]:
    """Arms that end at 5.0, 4.9, ..., each with its own baseline."""
    return [
        replace(arm(name, dict.fromkeys((0, 1), (5.0 - i / 10, 2.0))), baseline=baseline)
        for i, (name, baseline) in enumerate(given)
    ]


def test_each_arm_may_have_a_baseline_of_its_own() -> None:
    pairs = settings(("mer-0", "seq-0"), ("seq-0", "seq-0"), ("seq-1", "seq-1"), ("mer-1", "seq-1"))
    table = compare(pairs)
    found = table["end"]["differences"]
    assert table["baseline"] == "seq-0" and list(found) == ["mer-0", "mer-1"]
    for name, baseline, by in (("mer-0", "seq-0", 0.1), ("mer-1", "seq-1", -0.1)):
        assert {each["baseline"] for each in found[name].values()} == {baseline}
        assert found[name]["forgetting"]["mean"] == near(by)
    text = markdown(table)
    assert text.count("**differences to seq-0 at") == text.count("**differences to seq-1 at") == 1
    one = compare(pairs, baseline="mer-1")
    assert one["baseline"] == "mer-1"
    assert list(one["end"]["differences"]) == ["mer-0", "seq-0", "seq-1"]
    assert one["end"]["differences"]["mer-0"]["forgetting"]["baseline"] == "mer-1"


def test_an_arm_without_a_baseline_of_its_own_has_the_first_there_is() -> None:
    table = compare(settings(("one", None), ("seq", "seq"), ("mer", "seq")))
    assert table["baseline"] == "seq" and list(table["end"]["differences"]) == ["one", "mer"]


def test_a_baseline_that_is_not_finished_is_named_and_another_stands_in() -> None:
    found = settings(("seq-0", "seq-0"), ("mer-0", "seq-0"), ("mer-1", "seq-1"))
    late = replace(Arm("seq-1", {0: cut(two(5, 2), 12)}), baseline="seq-1")
    table = compare([*found, late])
    assert table["baseline"] == "seq-0"
    assert table["end"]["differences"]["mer-1"]["retained"]["baseline"] == "seq-0"
    assert ("seq-1, the baseline, is not finished: differences of mer-1 are to seq-0"
            in table["notes"])  # fmt: skip


def rows(text: str, title: str) -> dict[tuple[str, ...], str]:
    """The table under a title, without its lines: the rest of each row by its first two cells."""
    words = [line.replace("|", " ").split() for line in text.split(title)[1].splitlines()]
    return {tuple(row[:2]): " ".join(row[2:]) for row in reversed(words)}


def test_of_every_corpus_it_is_shown_what_was_learned_is_left_and_was_forgotten() -> None:
    table = compare([plain(), arm("mer", {0: (4.0, 2.2), 1: (4.2, 2.3), 2: (4.1, 2.1)})])
    out = io.StringIO()
    show(table, Console(file=out, width=200))
    title, other = "each corpus at the end of each run", "each corpus against plain at the end"
    half = f"± {4.3027 * 0.1 / math.sqrt(3):.3f}"
    for text in (out.getvalue(), markdown(table)):
        means, changes = (rows(text, title) for title in (title, other))
        assert means["plain", "t1"] == f"3.000 ± 0.000 5.100 {half} 2.100 {half}"
        assert means["plain", "t2"] == f"2.000 {half} 2.000 {half} -"
        assert changes["mer", "t1"].startswith("+0.000 ± 0.000 -1.000 ± ")
        assert changes["mer", "t1"].endswith(", lower")
        assert changes["mer", "t2"].startswith("+0.200 ± ") and changes["mer", "t2"].endswith(" -")
    each = table["end"]["differences"]["mer"]["forgetting"]["per_corpus"]
    assert list(each) == ["t1"] and each["t1"]["verdict"] == "lower" and each["t1"]["n"] == 3


def test_equal_tokens_are_the_least_that_any_run_spent() -> None:
    long = arm("fresh", {0: (4.0, 2.0), 1: (4.0, 2.0)}, spent=(200, 1e9))
    table = compare([plain(), long])
    assert table["equal_tokens"]["at"] == 2000 and table["equal_flops"]["at"] == 20e9
    judged = table["equal_tokens"]["arms"]
    assert judged["fresh"]["retained"]["mean"] == near(3.0)  # it is at the end of its phase 1
    assert judged["fresh"]["forgetting"]["mean"] is None
    assert judged["plain"] == table["end"]["arms"]["plain"]
    assert table["equal_flops"]["arms"] == table["end"]["arms"]
    found = table["equal_tokens"]["differences"]["fresh"]
    assert found["forgetting"]["verdict"] == "none"
    assert found["retained"]["verdict"] == found["learned"]["verdict"] == "other corpora"


def test_the_metric_can_be_bits_per_byte() -> None:
    table = compare([plain()], metric="bits_per_byte")
    assert table["metric"] == "bits_per_byte"
    for view in ("end", "equal_tokens", "equal_flops"):
        assert table[view]["arms"]["plain"]["forgetting"]["mean"] == near(1.05)


def test_of_one_seed_nothing_is_concluded_and_the_table_says_so() -> None:
    table = compare([arm("plain", {0: (5, 2)}), arm("mer", {0: (4, 2)})])
    assert table["end"]["differences"]["mer"]["forgetting"]["verdict"] == "one seed"
    assert any("nothing can be concluded" in note for note in table["notes"])
    apart = compare([plain(), arm("mer", {2: (4, 2), 7: (4, 2)})])
    assert any("mer" in note and "nothing can be" in note for note in apart["notes"])


def test_an_unfinished_run_is_left_out_with_a_note() -> None:
    half = Arm("mer", {0: two(4, 2), 1: cut(two(4, 2, seed=1), 12)})
    table = compare([plain(), half, Arm("late", {0: cut(two(4, 2), 15)})])
    assert table["arms"]["mer"]["seeds"] == [0] and "late" not in table["arms"]
    assert "mer, seed 1: not finished, left out" in table["notes"]
    assert "late, seed 0: not finished, left out" in table["notes"]
    with pytest.raises(Invalid, match="no run is finished"):
        compare([Arm("late", {0: cut(two(4, 2), 15)})])


def test_a_run_killed_while_it_was_scored_for_the_last_time_is_not_finished() -> None:
    whole = two(4.0, 2.0)
    assert is_finished(whole) and is_finished(whole[:-1])  # its last line was torn
    assert not is_finished(whole[:-2]) and not is_finished(cut(whole, 19))
    holed = [r for r in whole if not (r["kind"] == "score" and r.get("corpus") == "t2")]
    assert is_finished(holed)  # it says that it is; the score is missing


def test_a_run_without_any_record_of_its_steps_can_be_compared() -> None:
    bare = [record for record in two(4.0, 2.0) if record["kind"] != "step"]
    table = compare([plain(), Arm("bare", {0: [{"no": "kind"}, *bare]})])
    assert table["arms"]["bare"]["tokens"] is None
    assert table["end"]["arms"]["bare"]["forgetting"]["mean"] == near(1.0)


def test_joint_training_has_no_forgetting_and_its_difference_none() -> None:
    joint = Arm("joint", {s: run([BASE, [3.0, 2.5]], mixtures=[["t1", "t2"]]) for s in (0, 1)})
    table = compare([plain(), joint])
    judged = table["end"]["arms"]["joint"]
    assert judged["forgetting"]["mean"] is None and judged["forgetting"]["per_corpus"] == {}
    assert "no corpus was learned" in judged["forgetting"]["reason"]
    assert judged["retained"]["mean"] == near(2.75)
    assert table["end"]["differences"]["joint"]["forgetting"]["verdict"] == "none"
    assert table["end"]["differences"]["joint"]["retained"]["verdict"] in ("lower", "not shown")
    assert not any(note.startswith("joint") for note in table["notes"])


def test_a_diverged_run_is_none_and_is_named() -> None:
    """A mean over those that survived flatters the arm: the reader is told."""
    ends: Any = {0: (4.0, 2.0), 1: (None, None), 2: (4.2, 2.0)}
    table = compare([plain(), arm("wild", ends), arm("gone", {0: (None, None)})])  # type: ignore[dict-item]
    assert json.loads(json.dumps(table, allow_nan=False))["baseline"] == "plain"
    assert table["end"]["arms"]["gone"]["retained"]["mean"] is None
    assert table["end"]["arms"]["gone"]["retained"]["per_corpus"]["t1"]["mean"] is None
    wild = table["end"]["arms"]["wild"]["retained"]
    assert wild["n"] == 2 and wild["mean"] == near(3.05) and "missing" in wild["reason"]
    assert table["end"]["differences"]["wild"]["retained"]["n"] == 2
    assert any(note.startswith("wild, seed 1: ") and "'t1'" in note for note in table["notes"])
    assert any(note.startswith("gone, seed 0: ") for note in table["notes"])


def test_every_view_of_any_arms_is_json_without_nan() -> None:
    odd = Arm("odd", {0: run([BASE, [3.0, None], [None, 2.0]], mixtures=TWO, spent=(100, None))})
    table = compare([plain(), odd])
    json.dumps(table, allow_nan=False)
    assert table["equal_flops"]["at"] is None
    assert table["equal_flops"]["arms"]["plain"]["retained"]["mean"] is None


# -- branches ------------------------------------------------------------------------------------


def averaged(seed: int, *ends: tuple[float, float]) -> Any:
    branches = {f"average {i}": [[3.5, 6.0], list(end)] for i, end in enumerate(ends)}
    return two(5.0, 2.0, seed=seed, branches=branches)


def test_weights_beside_the_trained_ones_are_arms_of_their_own() -> None:
    runs = {seed: averaged(seed, (4.0 + seed / 10, 2.1), (4.5, 2.5)) for seed in (0, 1)}
    found = branched("ema", runs)
    assert [arm.name for arm in found] == ["ema", "ema, average 0", "ema, average 1"]
    assert arms([("ema-0", runs[0]), ("ema-1", runs[1])]) == found
    table = compare(found)
    judged = table["end"]["arms"]
    assert judged["ema"]["forgetting"]["mean"] == near(2.0)
    assert judged["ema, average 0"]["forgetting"]["mean"] == near(4.05 - 3.5)
    assert judged["ema, average 1"]["retained"]["mean"] == near(3.5)
    assert table["end"]["differences"]["ema, average 1"]["retained"]["verdict"] == "not shown"
    assert table["arms"]["ema, average 0"]["tokens"] == 2000


def test_a_branch_holds_those_runs_that_have_it_and_an_unfinished_one_is_noted_once() -> None:
    late = cut(averaged(2, (4.0, 2.0)), 15)
    found = branched("ema", {0: averaged(0, (4.0, 2.0)), 1: two(5, 2, seed=1), 2: late})
    assert [sorted(arm.runs) for arm in found] == [[0, 1, 2], [0, 2]]
    table = compare(found)
    assert table["arms"]["ema, average 0"]["seeds"] == [0]
    assert [note for note in table["notes"] if "not finished" in note] == [
        "ema, seed 2: not finished, left out"
    ]


def test_the_cosine_is_the_mean_of_all_probes_and_none_where_nothing_was_probed() -> None:
    probed = two(4.0, 2.0)
    probed[4:4] = [{"kind": "probe", "step": 1, "cosine": c} for c in (0.5, None, -0.1)]
    table = compare([plain(), Arm("mer", {0: probed})])
    assert table["arms"]["mer"]["cosine"] == near(0.2) and table["arms"]["plain"]["cosine"] is None
