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


@pytest.mark.parametrize("update", ["agem", "descent"])
def test_nothing_to_replay_from_is_said(place: Path, update: str) -> None:
    sets = (ONE, "replay.memory={kind='everything', over='past'}", f"update={{kind='{update}'}}")
    nothing = "no sample is replayed" + " and update kind 'agem' does nothing" * (update == "agem")
    with pytest.warns(UserWarning, match=f"over = 'past': {nothing} in a run of one phase"):
        shelf.check(config.load(place / "recipe.toml", sets=sets))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.check(config.load(place / "recipe.toml", sets=(*sets, "replay.past=['en']")))


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (("anneal.at={first=[0.5]}",), "anneal: no branch is trained; give anneal.tokens"),
        (("optimizer.kind='sgd'", "optimizer.at_phase='reset'"), "'reset': sgd has no moments"),
        (("update={kind='reptile', every=60, rate=0.5}",), "every = 60: no step of reptile in 50"),
        (("update={kind='outer', every=26, rate=0.5, start='second'}",), "outer in 25 steps"),
        (("surgeries=[{kind='vocabulary'}]",), "'vocabulary' has no new tokens; give tokenizer"),
        (("surgeries=[{kind='vocabulary'}]", "adapter={kind='lora', rank=2}"),
         "stay as they begin, as an adapter"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:surgeries. kind 'vocabulary'")
def test_what_has_no_effect_is_said(place: Path, sets: tuple[str, ...], said: str) -> None:
    with pytest.warns(UserWarning, match=said):
        shelf.check(config.load(place / "recipe.toml", sets=sets))


def test_steps_of_a_budget_beside_the_tokens_count(place: Path) -> None:
    """A third of replay beside 50 steps of fresh tokens: some 75."""
    sets = ("replay={share=0.34, budget='fresh'}", "update={kind='reptile', every=60, rate=0.5}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shelf.check(config.load(place / "recipe.toml", sets=sets))


@pytest.mark.parametrize("update", ["agem", "gem"])
@pytest.mark.parametrize("objective", ["replayed = 0", "teacher.on = 'replayed'"])
def test_what_is_a_reference_is_not_trained_on(place: Path, update: str, objective: str) -> None:
    sets = (f"update={{kind='{update}'}}", f"objective.{objective}".replace(" ", ""))
    weight = ("objective.teacher.weight=1.0",) * objective.startswith("teacher")
    with pytest.raises(Invalid, match=f"objective.{objective}: not with update kind '{update}'"):
        shelf.check(config.load(place / "recipe.toml", sets=(*sets, *weight)))


@pytest.mark.parametrize(
    ("outer", "name"),
    [("{kind='latest', every=2, last=2, inner=INNER}", "sma 2"),
     ("{kind='reptile', every=2, rate=0.5, inner={kind='latest', every=3, last=2, inner=INNER}}",
      "sma 2"),
     ("{kind='average', decays=[0.9], inner={kind='average', decays=[0.5, 0.9]}}", "average 0.9")],
)  # fmt: skip
def test_branches_of_one_name_are_refused(place: Path, outer: str, name: str) -> None:
    given = "update=" + outer.replace("INNER", "{kind='latest', every=5, last=2}")
    with pytest.raises(Invalid, match=f"two branches are called '{name}'; keep one"):
        shelf.check(config.load(place / "recipe.toml", sets=(given,)))


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


@pytest.mark.parametrize(
    ("inner", "said"),
    [("rate=1.5, every=2", "update.inner.rate = 1.5: must be in"),
     ("rate=0.5, every=0", "update.inner.every = 0: must be at least 1"),
     ("rate=0.5, evry=2", "update.inner.evry = 2: unknown key")],
)  # fmt: skip
def test_what_is_wrong_inside_is_named_where_it_stands(place: Path, inner: str, said: str) -> None:
    given = f"update={{kind='reptile', every=2, rate=0.5, inner={{kind='reptile', {inner}}}}}"
    with pytest.raises(Invalid, match=f"^{said}"):
        shelf.check(config.load(place / "recipe.toml", sets=(given,)))
