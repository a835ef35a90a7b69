"""Arms against one another: intervals and paired differences by hand, and what is left out."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from recorded import cut, run
from rich.console import Console

from treering.analysis.compare import compare, is_finished
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


def test_losses_over_other_tokens_are_noted_and_bits_are_not() -> None:
    apart = arm("other words", {0: (5.0, 2.0), 1: (5.2, 2.1)})
    arms_ = [plain(), apart]
    assert not [n for n in compare(arms_)["notes"] if "tokenizers" in n]
    for records in apart.runs.values():
        records[0]["identity"]["tokenizer"] = "another digest"
    noted = [n for n in compare(arms_)["notes"] if "tokenizers differ" in n]
    assert len(noted) == 1 and "--metric bits_per_byte" in noted[0]
    assert not [n for n in compare(arms_, metric="bits_per_byte")["notes"] if "tokenizers" in n]


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
    assert table["end"]["differences"]["joint"]["retained"]["verdict"] == "not shown"
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
