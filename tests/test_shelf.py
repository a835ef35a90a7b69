"""What does not go together is told before anything is done, and what would do nothing is said."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from treering import config, shelf
from treering.config import Invalid

ONE = "phases=[{name='fr', tokens=640, mixture={fr=1.0}}]"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("penalties=[{kind='l2', weight=1.0}]",), "anchor = 'start'"),
        (("penalties=[{kind='ewc', weight=1.0}]",), "give replay.past"),
        (("penalties=[{kind='mas', weight=1.0}]",), "give replay.past"),
        (("objective.teacher={weight=1.0, from='phase'}",), "objective.teacher"),
    ],
)
def test_what_holds_nothing_in_a_run_of_one_phase_is_said(
    place: Path, sets: tuple[str, ...], words: str
) -> None:
    """Of two phases it is what is wanted, and of one it may be, as another may come."""
    with pytest.warns(UserWarning, match="holds nothing in a run of one phase") as said:
        shelf.check(config.load(place / "recipe.toml", sets=(ONE, *sets)))
    assert len(said) == 1 and words in str(said[0].message)
    shelf.check(config.load(place / "recipe.toml", sets=sets))


@pytest.mark.parametrize(
    "sets",
    [
        ("penalties=[{kind='l2', weight=1.0, anchor='start'}]",),
        ("penalties=[{kind='l2', weight=0.0}]",),
        ("penalties=[{kind='ewc', weight=1.0}]", "replay.past=['en']"),
        ("objective.teacher={weight=1.0, from='start'}",),
    ],
)
def test_what_holds_something_from_the_first_phase_on_is_not_warned_of(
    place: Path, sets: tuple[str, ...]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.check(config.load(place / "recipe.toml", sets=(ONE, *sets)))


def test_rows_are_not_compared_where_they_come_one_at_a_time(place: Path) -> None:
    update = "{kind='per_sample', inner={kind='reptile', every=2, rate=0.5, inner={kind='agem'}}}"
    sets = (f"update={update}", "batch.micro=16")
    with pytest.raises(Invalid, match="'agem' compares the rows of a step"):
        shelf.check(config.load(place / "recipe.toml", sets=sets))
