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


@pytest.mark.parametrize(
    "sets",
    [
        ("update={kind='agem'}",),
        ("update={kind='gem', strength=0.5}",),
        ("objective.der={weight=1.0, top=4}",),
        ("objective.teacher={weight=1.0, on='replayed'}",),
    ],
)
def test_what_is_of_replayed_rows_is_warned_of_without_replay(
    place: Path, sets: tuple[str, ...]
) -> None:
    with pytest.warns(UserWarning, match=r"does nothing without replay; give replay\.share"):
        shelf.check(config.load(place / "recipe.toml", sets=(*sets, "replay.share=0.0")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.check(config.load(place / "recipe.toml", sets=(*sets, "replay.share=0.25")))


def test_predictions_are_not_recorded_of_what_the_run_does_not_learn(place: Path) -> None:
    sets = (ONE, "objective.der={weight=1.0, top=4}", "replay.past=['en']",
            "replay.memory={kind='everything', over='past'}")  # fmt: skip
    with pytest.warns(UserWarning, match=r"objective\.der .* holds nothing in a run of one phase"):
        shelf.check(config.load(place / "recipe.toml", sets=sets))


@pytest.mark.parametrize(
    "around",
    [
        "{kind='reptile', every=2, rate=0.5, inner=COSO}",
        "{kind='outer', every=2, rate=0.5, inner=COSO}",
        "{kind='outer', every=2, rate=0.5, align=true, optimizer='nesterov', momentum=0.9, "
        "inner=COSO}",
        "{kind='average', decays=[0.9], inner={kind='outer', every=2, rate=0.5, align=true, "
        "optimizer='adam', inner=COSO}}",
    ],
)
def test_no_window_opens_over_what_a_subspace_keeps(place: Path, around: str) -> None:
    given = "update=" + around.replace("COSO", "{kind='coso', rank=2}")
    with pytest.raises(Invalid, match="around 'coso' its window must close where a phase ends"):
        shelf.check(config.load(place / "recipe.toml", sets=(given,)))
    closed = "update={kind='reptile', every=2, rate=0.5, align=true, inner={kind='coso', rank=2}}"
    shelf.check(config.load(place / "recipe.toml", sets=(closed,)))


def test_a_single_rows_weight_is_not_divided_away(place: Path) -> None:
    sets = ("update={kind='per_sample'}", "batch.micro=16",
            "objective={replayed=2.0, normalize='weights'}")  # fmt: skip
    with pytest.raises(Invalid, match="each would be divided by its own weight"):
        shelf.check(config.load(place / "recipe.toml", sets=sets))


def test_rows_are_not_compared_where_they_come_one_at_a_time(place: Path) -> None:
    update = "{kind='per_sample', inner={kind='reptile', every=2, rate=0.5, inner={kind='agem'}}}"
    sets = (f"update={update}", "batch.micro=16")
    with pytest.raises(Invalid, match="'agem' compares the rows of a step"):
        shelf.check(config.load(place / "recipe.toml", sets=sets))
