"""Arms at equal cost: over the same corpora or without a verdict, annealed runs by their branch."""

from __future__ import annotations

import io
import json
import math
from typing import Any

from recorded import cut, run
from rich.console import Console
from test_compare import BASE, near, two

from treering.analysis import cells
from treering.analysis.compare import compare, is_finished
from treering.analysis.curves import end, matrix_at, spent
from treering.analysis.matrix import lent, matrix
from treering.analysis.runs import Arm, branched
from treering.report.comparison import markdown, show


def annealed(found: Any, ends: dict[int, list[float | None]], beyond: int = 500) -> Any:
    """The run with annealed branches that left at some steps, `beyond` tokens long."""
    costs = {"tokens_beyond": beyond, "fresh_tokens_beyond": beyond, "flops_beyond": beyond * 1e7}
    more = [
        {"kind": "branch_score", "branch": "annealed", "step": step, "corpus": f"t{j + 1}",
         "loss": loss, "bits_per_byte": None if loss is None else loss / 2, **costs}
        for step, row in ends.items()
        for j, loss in enumerate(row)
    ]  # fmt: skip
    return [*found[:-1], *more, found[-1]]


def shown(found: Any) -> str:
    out = io.StringIO()
    show(found, Console(file=out, width=300))
    return out.getvalue()


# -- over the same corpora -----------------------------------------------------------------------


def plain(**more: Any) -> Arm:
    return Arm("plain", {s: two(5.0 + s / 10, 2.0, seed=s, **more) for s in (0, 1)})


def test_an_arm_that_is_cut_in_an_earlier_phase_has_no_verdict() -> None:
    """At plain's end the other has just learned t1: its mean is over t1 alone."""
    other = Arm("fresh", {s: two(4.0, 2.0, seed=s, spent=(200, 1e9)) for s in (0, 1)})
    table = compare([plain(), other])
    for metric in ("retained", "learned"):
        found = table["equal_tokens"]["differences"]["fresh"][metric]
        assert found["verdict"] == "other corpora" and found["apart"] == ["t2"]
        assert found["mean"] is found["t"] is found["bootstrap"] is None and found["n"] == 0
    notes = [note for note in table["notes"] if "not compared" in note]
    assert notes == ["at equal tokens only one of fresh and plain is judged by t2: their means are "
                     "not compared"]  # fmt: skip
    assert table["equal_flops"]["differences"]["fresh"]["retained"]["verdict"] != "other corpora"
    for text in (shown(table), markdown(table)):
        assert "other corpora" in text and notes[0] in text


def test_a_corpus_that_both_have_is_compared_all_the_same() -> None:
    other = Arm("fresh", {s: two(4.0, 2.0, seed=s, spent=(200, 1e9)) for s in (0, 1)})
    found = compare([plain(), other])["equal_tokens"]["differences"]["fresh"]["retained"]
    assert list(found["per_corpus"]) == ["t1"]
    assert found["per_corpus"]["t1"]["values"] == {0: near(-2.0), 1: near(-2.1)}


def test_cut_in_the_same_phase_both_are_compared() -> None:
    other = Arm("dear", {s: two(4.0, 2.0, seed=s, spent=(125, 1e9)) for s in (0, 1)})
    table = compare([plain(), other])
    found = table["equal_tokens"]["differences"]["dear"]["retained"]
    assert (
        found["apart"] == []
        and found["n"] == 2
        and not any("compared" in n for n in table["notes"])
    )


def test_arms_that_were_trained_on_other_corpora_have_no_verdict_at_their_ends_either() -> None:
    """That which replays t2 from before training is judged by it; the other is not."""
    values = [[8.0, 3.0], [3.0, 6.0]]
    arms = [
        Arm(name, {s: run(values, mixtures=[["t1"]], past=past, seed=s) for s in (0, 1)})
        for name, past in (("without", []), ("with", ["t2"]))
    ]
    table = compare(arms)
    assert table["end"]["differences"]["with"]["retained"]["verdict"] == "other corpora"
    assert table["end"]["differences"]["with"]["forgetting"]["verdict"] == "none"
    assert any(n.startswith("at the end only one of with and without") for n in table["notes"])


# -- a branch of the last phase alone ------------------------------------------------------------


LAST = {20: [4.4, 1.6]}


def test_before_a_branch_its_runs_rows_stand() -> None:
    found = annealed(two(5.0, 2.0), LAST)
    assert lent(found, "annealed") == {10: "p1"} and lent(found, None) == {}
    assert matrix(found, branch="annealed").values.tolist() == [BASE, [3.0, 6.0], [4.4, 1.6]]
    both = annealed(two(5.0, 2.0), {10: [2.5, 6.0], **LAST})
    assert lent(both, "annealed") == {}
    assert matrix(both, branch="annealed").values.tolist() == [BASE, [2.5, 6.0], [4.4, 1.6]]
    line = cells.lines("x", {}, found)[1]
    assert line["forgetting"] == near(1.4) and line["learned"] == near(2.3)
    assert line["learned t1"] == 3.0


def test_a_branch_of_an_earlier_phase_ends_there() -> None:
    found = annealed(two(5.0, 2.0), {10: [2.5, 6.0]})
    assert matrix(found, branch="annealed").values.tolist() == [BASE, [2.5, 6.0]]
    assert spent(found, "annealed")["tokens"] == 1500 and end(found, "flops", "annealed") == 15e9
    assert spent(found)["tokens"] == 2000


def test_what_is_missing_of_a_score_that_was_made_is_not_lent() -> None:
    found = annealed(two(5.0, 2.0), {10: [None, 6.0], **LAST})
    assert math.isnan(matrix(found, branch="annealed").values[1, 0])


def test_a_branch_is_compared_over_all_its_corpora_and_a_note_says_whose_rows_are_whose() -> None:
    runs = {s: annealed(two(5.0 + s / 10, 2.0, seed=s), LAST) for s in (0, 1)}
    table = compare(branched("wsd", runs))
    judged = table["end"]["arms"]["wsd, annealed"]
    assert judged["learned"]["mean"] == near(2.3) and judged["forgetting"]["mean"] == near(1.4)
    assert table["end"]["differences"]["wsd, annealed"]["forgetting"]["n"] == 2
    assert ("wsd, annealed: the scores at the end of p1 are those of the run, which it left later"
            in table["notes"])  # fmt: skip


def test_a_run_that_was_killed_in_its_last_branch_is_not_finished() -> None:
    found = annealed(two(5.0, 2.0), {10: [2.5, 6.0]})
    assert is_finished(found) and not is_finished(cut(found, 20))


# -- annealed runs at equal cost -----------------------------------------------------------------


def test_before_its_branch_an_annealed_run_is_cut_as_the_run_is() -> None:
    """2000 tokens of the run and 500 of the branch."""
    found = annealed(two(5.0, 2.0), LAST)
    for tokens in (400, 1000, 1500, 2000):
        own = matrix_at(found, "tokens", tokens, branch="annealed")
        its_runs = matrix_at(found, "tokens", tokens)
        assert own.values.tolist() == its_runs.values.tolist() and own.rows == its_runs.rows
    half = matrix_at(found, "tokens", 2250, branch="annealed")
    assert half.values.tolist() == [BASE, [3.0, 6.0], [near(4.7), near(1.8)]]
    assert [row.label for row in half.rows] == ["base", "p1", "p2, cut"]
    whole = matrix_at(found, "tokens", 2500, branch="annealed")
    assert whole.values.tolist() == matrix(found, branch="annealed").values.tolist()
    assert whole.learned == {"t1": 1, "t2": 2}
    for unknown in (2501, math.nan):
        beyond = matrix_at(found, "tokens", unknown, branch="annealed")
        assert all(map(math.isnan, beyond.values[-1]))
    assert matrix_at(found, "flops", 22.5e9, branch="annealed").values[-1, 0] == near(4.7)


def test_of_runs_that_are_annealed_at_their_ends_the_branches_are_compared_at_equal_cost() -> None:
    """One that spends 2500 without a branch, one 2000 and 500, one 2200 and 500."""
    cosine = Arm("cosine", {s: two(5.0, 2.0, seed=s, spent=(125, 1.25e9)) for s in (0, 1)})
    wsd = {s: annealed(two(5.2, 2.2, seed=s), LAST) for s in (0, 1)}
    dear = {s: annealed(two(5.2, 2.2, seed=s, spent=(110, 1.1e9)), LAST) for s in (0, 1)}
    table = compare([cosine, *branched("wsd", wsd), *branched("dear", dear)])
    view = table["equal_tokens"]
    assert view["at"] == 2500 and table["equal_flops"]["at"] == near(25e9)
    assert list(view["arms"]) == ["cosine", "wsd, annealed", "dear, annealed"]
    assert view["arms"]["cosine"] == table["end"]["arms"]["cosine"]
    assert view["arms"]["wsd, annealed"] == table["end"]["arms"]["wsd, annealed"]
    now = view["arms"]["dear, annealed"]["retained"]["per_corpus"]
    assert now["t1"]["mean"] == near(5.2 + 0.6 * (4.4 - 5.2))  # 300 of the 500
    assert "wsd: at equal tokens and FLOPs wsd, annealed stands for it" in table["notes"]
    assert table["arms"]["wsd"]["tokens"] == 2000 and "wsd" in table["end"]["differences"]
    assert "at equal tokens, 2,500" in shown(table)
    json.dumps(table, allow_nan=False)


def test_an_annealed_run_that_is_cut_before_its_branch_is_said_not_to_be_annealed_there() -> None:
    wsd = {s: annealed(two(5.2, 2.2, seed=s), LAST) for s in (0, 1)}
    table = compare([plain(), *branched("wsd", wsd)])
    said = "at equal tokens wsd, annealed is cut before the branch: not annealed yet"
    assert table["equal_tokens"]["at"] == 2000 and said in table["notes"]
    assert table["equal_tokens"]["arms"]["wsd, annealed"] == table["end"]["arms"]["wsd"]
    alone = compare(branched("wsd", wsd))
    assert not any("not annealed yet" in note for note in alone["notes"])


def test_a_baseline_that_was_annealed_is_its_branch_at_equal_cost() -> None:
    wsd = {s: annealed(two(5.2, 2.2, seed=s), LAST) for s in (0, 1)}
    other = Arm("other", {s: two(4.0, 2.0, seed=s, spent=(125, 1.25e9)) for s in (0, 1)})
    table = compare([*branched("wsd", wsd), other])
    end_of, equal = (table[view]["differences"] for view in ("end", "equal_tokens"))
    assert list(end_of) == ["wsd, annealed", "other"] and list(equal) == ["other"]
    assert end_of["other"]["retained"]["baseline"] == "wsd"
    assert equal["other"]["retained"]["baseline"] == "wsd, annealed"
    assert equal["other"]["retained"]["values"][0] == near((4.0 + 2.0 - 4.4 - 1.6) / 2)


def test_a_trunk_and_its_branch_alone_are_not_laid_beside_each_other_at_equal_cost() -> None:
    table = compare(branched("wsd", {0: annealed(two(5.2, 2.2), LAST)}))
    assert list(table["equal_tokens"]["arms"]) == ["wsd, annealed"]
    assert "at equal tokens," not in shown(table)


def test_a_branch_that_left_in_an_earlier_phase_stands_by_its_run() -> None:
    early = {s: annealed(two(5.2, 2.2, seed=s), {10: [2.5, 6.0]}) for s in (0, 1)}
    table = compare([plain(), *branched("wsd", early)])
    assert table["equal_tokens"]["at"] == 2000
    assert list(table["equal_tokens"]["arms"]) == ["plain", "wsd"]
    assert table["arms"]["wsd, annealed"]["tokens"] == 1500
    found = table["end"]["differences"]["wsd, annealed"]["retained"]
    assert found["verdict"] == "other corpora" and found["apart"] == ["t2"]


def test_averages_of_a_run_stand_beside_it_at_equal_cost() -> None:
    averages = {"average 0.9": [[3.5, 6.0], [4.0, 2.1]]}
    table = compare(branched("ema", {s: two(5.0, 2.0, seed=s, branches=averages) for s in (0, 1)}))
    assert list(table["equal_tokens"]["arms"]) == ["ema", "ema, average 0.9"]
