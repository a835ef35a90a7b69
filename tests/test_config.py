"""The recipe: strict, resolved, written back; whatever is wrong with it is one Invalid line."""

from __future__ import annotations

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import tiny
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from treering import config, schema, tables
from treering.config import Invalid


def test_defaults_are_filled_in_and_what_is_resolved_is_written_back(place: Path) -> None:
    recipe = config.load(place / "recipe.toml")
    assert (recipe.seed, recipe.rows, recipe.micro_rows) == (1, 4, 2)
    assert recipe.optimizer == tables.Optimizer()
    (place / "again.toml").write_text(config.to_toml(recipe))
    assert config.load(place / "again.toml") == recipe


def test_paths_are_relative_to_the_recipe_or_to_data(place: Path, tmp_path: Path) -> None:
    recipe = config.load(place / "recipe.toml")
    assert recipe.corpora["en"].train == str(place / "en.jsonl")
    moved = tmp_path / "recipe.toml"
    moved.write_text((place / "recipe.toml").read_text())
    with pytest.raises(Invalid, match=r"corpora.en.train = 'en.jsonl': no such file in .*--data"):
        config.load(moved)
    assert config.load(moved, data=place) == recipe


def test_sets_are_laid_over_tables_lists_and_what_is_not_there_yet(place: Path) -> None:
    sets = ("seed=9", "phases.1.tokens=64", "model.preset=1m", "compute.precision='bf16'")
    recipe = config.load(place / "recipe.toml", sets=(*sets, "optimizer.betas=[0.8, 0.9]"))
    assert (recipe.seed, recipe.phases[1].tokens, recipe.model.preset) == (9, 64, "1m")
    assert (recipe.compute.precision, recipe.optimizer.betas) == ("bf16", (0.8, 0.9))


def test_a_decimal_is_taken_as_it_was_written() -> None:
    assert config.exact(0.1) == Fraction(1, 10)
    assert config.exact(1e-3) == Fraction(1, 1000)


def test_differences_name_the_key_with_old_and_new_value() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert schema.differences(old, new) == ["a.c: 2 -> 4", "d: 3 -> None", "e: None -> 5"]


@pytest.mark.parametrize("path", ["~nobody-knows-me/x", "x" * 5000, "a\\u0000b"])
def test_a_path_that_cannot_be_is_no_such_file(place: Path, path: str) -> None:
    with pytest.raises(Invalid, match=r"corpora.en.train = .*: no such file in .*--data"):
        config.load(place / "recipe.toml", sets=(f'corpora.en.train="{path}"',))


@pytest.mark.parametrize("text", ["seed = " + "9" * 5000, "seed = " + "[" * 5000])
def test_what_no_parser_takes_is_not_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(Invalid, match=r"recipe.toml is not TOML: "):
        config.load(tmp_path / "recipe.toml")


WRONG = {
    "sed=1": r"sed = 1: unknown key; did you mean 'seed'\?",
    "bach.tokens=64": r"bach = .*: unknown key; did you mean 'batch'\?",
    "batch.tokns=64": r"batch.tokns = 64: unknown key; did you mean 'tokens'\?",
    "corpora.en.trian='x'": r"corpora.en.trian = 'x': unknown key; did you mean 'train'\?",
    "phases.0.zzz=1": r"phases\[0\].zzz = 1: unknown key; known: mixture, name, tokens",
    "length=0": r"length = 0: must be at least 1",
    "length=true": r"length = True: must be int",
    "length=16.0": r"length = 16.0: must be int",
    "seed='one'": r"seed = 'one': must be int",
    "optimizer.eps='small'": r"optimizer.eps = 'small': must be a finite number",
    "optimizer.eps=0": r"optimizer.eps = 0.0: must be positive",
    "update.batch=nan": r"update.batch = nan: must be a finite number",
    "update.inner={rate=[1, inf]}": r"update.inner.rate\[1\] = inf: must be a finite number",
    "optimizer.eps=inf": r"optimizer.eps = inf: must be a finite number",
    "optimizer.decay=nan": r"optimizer.decay = nan: must",
    "optimizer.decay=-0.1": r"optimizer.decay = -0.1: must not be negative",
    "optimizer.clip=-1": r"optimizer.clip = -1.0: must not be negative",
    "optimizer.clip=true": r"optimizer.clip = True: must be a finite number",
    "optimizer.kind='adam'": r"optimizer.kind = 'adam': adamw or sgd",
    "optimizer.betas=[0.9]": r"optimizer.betas = \(0.9,\): two",
    "optimizer.betas=0.9": r"optimizer.betas = 0.9: must be a list",
    "optimizer.betas=[0.9, 'x']": r"optimizer.betas\[1\] = 'x': must be a finite number",
    "optimizer.at_phase='forget'": r"optimizer.at_phase = 'forget': one of",
    "compute.precision='fp4'": r"compute.precision = 'fp4': one of .*'fp8'",
    "compute.compile='no'": r"compute.compile = 'no': must be bool",
    "compute.compile=1": r"compute.compile = 1: must be bool",
    "batch.tokens=100": r"batch.tokens = 100: must be a positive multiple of length \(16\)",
    "batch.tokens=-64": r"batch.tokens = -64: must be a positive multiple",
    "batch.micro=24": r"batch.micro = 24: must be a positive multiple of length",
    "batch=64": r"batch = 64 is not a table; write it as \[batch\]",
    "replay.share=1": r"replay.share = 1.0: must be in \[0, 1\)",
    "replay.share=-0.25": r"replay.share = -0.25: must be in \[0, 1\)",
    "replay.share=nan": r"replay.share = nan: must be a finite number",
    "replay.budget='free'": r"replay.budget = 'free': one of",
    "replay.budget=-1": r"replay.budget = -1: must be str",
    "replay.past=['it']": r"replay.past = 'it': no such corpus; known: de, en, fr",
    "replay.memory='reservoir'": r"replay.memory = 'reservoir': must be a table",
    "phases=[]": r"phases = \[\]: name at least one, as \[\[phases\]\]",
    "phases.0.tokens=-1": r"phases\[0\].tokens = -1: must be positive",
    "phases.0.name='second'": r"phases\[0\].name = 'second': names must differ",
    "phases.0.mixture={}": r"phases\[0\].mixture = \{\}: name a corpus",
    "phases.0.mixture={eng=1.0}": r"phases\[0\].mixture = 'eng': no such corpus; did you mean 'en'",
    "phases.0.mixture.en=0": r"phases\[0\].mixture.en = 0.0: must be positive",
    "phases.0.mixture.en=inf": r"phases\[0\].mixture.en = inf: must be",
    "corpora={}": r"corpora = \[\]: name at least one",
    "corpora.en.validation=1.0": r"corpora.en.validation = 1.0: a share must lie between 0 and 1",
    "corpora.en.validation=[]": r"corpora.en.validation = \[\]: must be str or float",
    "corpora.en.train='no.txt'": r"corpora.en.train = 'no.txt': no such file in .*; mend it or",
    "evaluate.tokens=-1": r"evaluate.tokens = -1: 0 means all",
    "evaluate.every_tokens=0": r"evaluate.every_tokens = 0: must be positive",
    "checkpoint.every_tokens=-5": r"checkpoint.every_tokens = -5: must be positive",
    "checkpoint.keep=0": r"checkpoint.keep = 0: at least 1",
    "checkpoint.grace=1e10": r"checkpoint.grace = 1.*: must be positive seconds, 2,592,000 at most",
    "mesh.timeout=1e10": r"mesh.timeout = 1.*: must be positive seconds, 2,592,000 at most",
    "mesh.timeout=0": r"mesh.timeout = 0.0: must be positive",
    "model={from='en.jsonl', preset='3m'}": r"model.preset = '3m': is of a fresh model; give it or",
    "model.from='en.jsonl'": r"model.width = 16: is of a fresh model; give it or from, not both",
    f"seed={'9' * 5000}": r"^--set seed=9{55}...: is not TOML: ",
    f"seed={'[' * 5000}": r"^--set seed=\[{55}...: is not TOML: ",
    "tokenizer={}": r"tokenizer = \{\}: a fresh model needs \[tokenizer\] train = 8192",
    "tokenizer.from='x'": r"tokenizer = .*: give train or from, not both",
    "model.dropout=1": r"model.dropout = 1.0: must be in \[0, 1\)",
    "seed": r"--set seed: write it as key.key=value",
    "phases.7.tokens=1": r"--set phases.7.tokens=1: ",
    "seed.deep.er=1": r"--set seed.deep.er=1: ",
}


@pytest.mark.parametrize("assignment", WRONG)
def test_what_is_wrong_is_named_with_key_value_and_remedy(place: Path, assignment: str) -> None:
    with pytest.raises(Invalid, match=WRONG[assignment]) as caught:
        config.load(place / "recipe.toml", sets=(assignment,))
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(place: Path, tmp_path: Path) -> None:
    for table in ("length", "model", "corpora", "phases"):
        with pytest.raises(Invalid, match=f"^{table} is missing: add it to the recipe$"):
            config.load(tiny.without(place, table))
    with pytest.raises(Invalid, match=r"nowhere.toml: cannot be read .*; name an existing file"):
        config.load(tmp_path / "nowhere.toml")
    (tmp_path / "broken.toml").write_text("length = = 3")
    with pytest.raises(Invalid, match=r"broken.toml is not TOML: "):
        config.load(tmp_path / "broken.toml")
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(Invalid, match=r"latin.toml: cannot be read"):
        config.load(tmp_path / "latin.toml")


def test_a_key_that_holds_a_line_break_is_still_one_line(place: Path) -> None:
    table = tomllib.loads(tiny.RECIPE) | {"a\nkey": 1}
    (place / "broken.toml").write_text(tomli_w.dumps(table))
    with pytest.raises(Invalid, match=r"^a key = 1: unknown key; known: .*$"):
        config.load(place / "broken.toml")


BASE: dict[str, Any] = tomllib.loads(tiny.RECIPE)
KEYS = sorted({*BASE, *(key for t in BASE.values() if isinstance(t, dict) for key in t), "from"})
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.just(10**400),
    st.floats(),
    st.text(st.characters(codec="utf-8"), max_size=5),
    st.sampled_from(["en.jsonl", "total", "reptile", "llama", "3m"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text("ab\n.", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def accepted(table: dict[str, Any], path: Path) -> bool:
    """Whether the recipe is taken; if not, it is one Invalid line, and nothing else is raised."""
    path.write_text(tomli_w.dumps(table))
    try:
        recipe = config.load(path)
    except Invalid as error:
        assert "\n" not in str(error)
        return False
    assert schema.read(config.Recipe, tomllib.loads(config.to_toml(recipe)), "") == recipe
    return True


@settings(max_examples=150, deadline=None)
@given(table=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_random_tables_are_never_anything_but_invalid(place: Path, table: dict[str, Any]) -> None:
    accepted(table, place / "random.toml")


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_recipe_with_one_random_value_is_taken_or_invalid(
    place: Path, data: st.DataObject
) -> None:
    table: dict[str, Any] = tomllib.loads(tiny.RECIPE)
    at: Any = table
    while True:
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = data.draw(VALUES)
        break
    accepted(table, place / "random.toml")


def test_the_recipe_itself_is_taken(place: Path) -> None:
    assert accepted(tomllib.loads(tiny.RECIPE), place / "random.toml")
