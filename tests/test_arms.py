"""Runs that differ by their seed alone are an arm, and none is lost."""

from __future__ import annotations

from typing import Any

import pytest
from test_compare import two

from treering.analysis.runs import arms
from treering.config import Invalid


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
