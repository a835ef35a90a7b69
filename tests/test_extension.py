"""A recipe that grows: what is done stays done, and the rest is as if it had always been so."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import tomli_w

from treering import build, config, folder, records, shelf, training
from treering.analysis.runs import gather
from treering.config import Invalid
from treering.report.page import compared, page

Change = Callable[[dict[str, Any]], object]
CONSTANT = {"kind": "constant", "peak": 1e-2, "warmup": 0.0}
THIRD = {"name": "third", "tokens": 640, "mixture": {"de": 1.0}}


@pytest.fixture(scope="module")
def words(place: Path) -> Path:
    """A tokenizer in a folder, so that corpora that come later do not change it."""
    data = build.data(config.load(place / "recipe.toml"), place / "cache")
    data.tokenizer.save_pretrained(place / "words")
    return place / "words"


def recipe(place: Path, name: str, *changes: Change) -> Path:
    """The tiny recipe at a constant rate and with the tokenizer in a folder, changed."""
    table = tomllib.loads(tiny.RECIPE)
    table |= {"schedule": dict(CONSTANT), "tokenizer": {"from": str(place / "words")}}
    for change in changes:
        change(table)
    path = place / f"{name}.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def phases(count: int) -> Change:
    return lambda table: table.update(phases=[*table["phases"], THIRD][:count])


def without_de(table: dict[str, Any]) -> None:
    del table["corpora"]["de"]
    table["phases"] = [table["phases"][0] | {"tokens": 1280}]


def longer(table: dict[str, Any]) -> None:
    table["phases"][0]["tokens"] = 2560


def weighted(table: dict[str, Any]) -> None:
    table["phases"][1]["mixture"] = {"fr": 1.0, "de": 3.0}


def by_phase(table: dict[str, Any]) -> None:
    table["schedule"] = {"kind": "cosine", "peak": 1e-2, "warmup": 0.1, "span": "phase"}


def shorter(table: dict[str, Any]) -> None:
    table["phases"][0]["tokens"] = 1280


def elsewhere(table: dict[str, Any]) -> None:
    """What never matters: other micro-batches are the same sums in another order, so not these."""
    table["checkpoint"] = {"every_tokens": 320, "keep": 5}
    table["mesh"] = {"timeout": 99.0}
    table["probe"] = {"every": 7}
    table["guard"] = {"max_skipped": 3}


GROWN: dict[str, tuple[list[Change], list[Change]]] = {
    "a phase more": ([phases(1)], [phases(2)]),
    "two phases more": ([phases(1)], [phases(3)]),
    "a phase more, each with its own rate": ([phases(1), by_phase], [phases(2), by_phase]),
    "a longer phase": ([shorter], []),
    "the last phase longer": ([shorter, phases(1)], [longer, phases(1)]),
    "weights of a later phase": ([], [weighted]),
    "a corpus more": ([without_de], [shorter]),
    "a corpus and replay of the past": (
        [without_de, lambda t: t["replay"].update(memory={"kind": "balanced", "over": "past"})],
        [shorter, lambda t: t["replay"].update(memory={"kind": "balanced", "over": "past"})],
    ),
    "what does not matter": ([elsewhere], []),
}


WITHIN = ("a longer phase", "the last phase longer", "weights of a later phase",
          "what does not matter")  # fmt: skip


@pytest.mark.parametrize("stop", [9, None])
@pytest.mark.parametrize("name", GROWN)
@pytest.mark.filterwarnings("ignore:replay.memory.over")  # one phase at first
def test_a_recipe_that_grew_is_the_recipe_that_was_always_so(
    place: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, stop: int | None,
) -> None:  # fmt: skip
    """Interrupted in step 9, or after its end: the same samples, records and weights as the larger
    recipe from the start, whose row 0 has every corpus."""
    small, large = (recipe(place, f"{name}-{i}", *each) for i, each in enumerate(GROWN[name]))
    if stop is None:
        if name in WITHIN:
            pytest.skip("the phase that changes is done by then")
        tiny.run(small, tmp_path / "grown")
    else:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            tiny.interrupt_in_step(stop, patch)
            tiny.run(small, tmp_path / "grown")
    shutil.copytree(tmp_path / "grown", tmp_path / "first")
    summary = tiny.run(large, tmp_path / "grown")
    if not (place / f"whole-{name}").exists():
        tiny.run(large, place / f"whole-{name}")
    unbroken = place / f"whole-{name}"
    assert tiny.weights(tmp_path / "grown") == tiny.weights(unbroken)
    kinds = ("step", "score") if name != "what does not matter" else ("step",)
    found, wanted = (tiny.story(out, kinds) for out in (tmp_path / "grown", unbroken))
    until = stop or max(r.get("step", 0) for r in records.read(tmp_path / "first"))
    added = [r for r in found if r not in wanted]
    left_out = [r for r in wanted if r not in found]
    assert all(r["kind"] == "score" for r in added), "at what was the end before"
    assert all(r["corpus"] == "de" and 0 < r["step"] <= until for r in left_out), "came later"
    steps = [record["step"] for record in found if record["kind"] == "step"]
    assert steps == list(range(1, len(steps) + 1))
    assert summary["end"] == "finished"
    headers = [r for r in records.read(tmp_path / "grown") if r["kind"] == "header"]
    assert [bool(header["changes"]) for header in headers] == [False, True]


@pytest.mark.usefixtures("words")
def test_a_run_that_has_grown_is_finished_at_its_new_end_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.run(recipe(place, "before", phases(1)), tmp_path)
    assert folder.finished(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(2, patch)
        tiny.run(recipe(place, "after", phases(2)), tmp_path)
    *killed, end = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    assert '"interrupted"' in end
    (tmp_path / "records.jsonl").write_text("".join(killed))
    assert not folder.finished(tmp_path)
    tiny.run(recipe(place, "after", phases(2)), tmp_path)
    assert folder.finished(tmp_path) and folder.finished(tmp_path, 50)


@pytest.mark.usefixtures("words")
def test_the_summary_and_the_page_are_of_the_recipe_as_it_is_now(
    place: Path, tmp_path: Path
) -> None:
    tiny.run(recipe(place, "before", without_de), tmp_path)
    first = training.outcome.forgetting.summary(records.read(tmp_path))
    summary = tiny.run(recipe(place, "after", shorter), tmp_path)
    assert first["corpora"] == ["en", "fr"] and summary["corpora"] == ["en", "fr", "de"]
    assert [row["label"] for row in summary["rows"]] == ["base", "first", "second"]
    for kept in (summary, json.loads((tmp_path / "summary.json").read_text())):
        assert len(kept["loss"]["values"][0]) == 3 and None not in kept["loss"]["values"][0]
    found = records.read(tmp_path)  # row 0 of what came later is charged, too
    tokens = sum(r["tokens"] for r in found if r["kind"] == "score")
    spent = tokens * next(r["flops_per_token"] for r in found if r["kind"] == "header") / 3
    assert found[-1]["ledger"]["evaluation_flops"] == pytest.approx(spent)
    arms = gather([str(tmp_path)])
    made = page(arms, compared(arms))
    assert all(f"{loss:.3f}" in made for loss in summary["loss"]["values"][0])


def test_a_trained_tokenizer_stays_that_of_the_run(place: Path, tmp_path: Path) -> None:
    """A corpus that comes later would make it another one."""
    table = tomllib.loads(tiny.RECIPE) | {"schedule": dict(CONSTANT)}
    without_de(table)
    (place / "small.toml").write_text(tomli_w.dumps(table))
    tiny.run(place / "small.toml", tmp_path / "run")
    whole = tomllib.loads(tiny.RECIPE) | {"schedule": dict(CONSTANT)}
    shorter(whole)
    (place / "large.toml").write_text(tomli_w.dumps(whole))
    tiny.run(place / "large.toml", tmp_path / "run")
    marks = [
        r["identity"]["tokenizer"] for r in records.read(tmp_path / "run") if r["kind"] == "header"
    ]
    assert len(marks) == 2 and marks[0] == marks[1]
    shutil.rmtree(tmp_path / "run/tokenizer")
    phases(3)(whole)
    (place / "larger.toml").write_text(tomli_w.dumps(whole))
    with pytest.raises(Invalid, match=r"recipe changed: corpora"):
        tiny.run(place / "larger.toml", tmp_path / "run")


REFUSED: dict[str, tuple[Change, str]] = {
    "seed": (lambda t: t.update(seed=2), r"changed: seed: 1 -> 2; undo it"),
    "update": (lambda t: t["update"].update(rate=0.1), r"update.rate: 0.5 -> 0.1"),
    "a phase that is done": (
        lambda t: t["phases"][0].update(tokens=3200),
        r"phases\[0\] = .*'tokens': 3200.*: was .*'tokens': 1600.* and is done; undo it",
    ),
    "a phase that is gone": (lambda t: t["phases"].pop(0), r"\[0\] = .*second.* is done; undo it"),
    "the present mixture": (
        lambda t: t["phases"][1].update(mixture={"de": 1.0}),
        r"phases\[1\] = .* and is being trained: only its tokens may change",
    ),
    "too short": (
        lambda t: t["phases"][1].update(tokens=256),
        r"phases\[1\].tokens = 256: are 4 steps, and 5 of it are trained; give more",
    ),
    "a corpus before the others": (
        lambda t: t.update(corpora={"it": t["corpora"]["en"], **t["corpora"]}),
        r"corpora = \['it', 'en', 'fr', 'de'\]: the run has \['en', 'fr', 'de'\]; keep .*\['it'\]",
    ),
    "another text": (
        lambda t: t["corpora"]["de"].update(train="fr.jsonl"), r"corpora.de.train: "
    ),
    "a jump of the rate": (
        lambda t: t["schedule"].update(peak=2e-2),
        r"schedule: at step 31 the rate would go from 0.01 to 0.02, .*'phase', or .*--accept-jump",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def begun(place: Path, words: Path) -> Path:
    """A run that was interrupted in the fifth step of its second phase."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(30, patch)
        tiny.run(recipe(place, "begun"), place / "begun")
    return place / "begun"


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_another_run_is_refused_by_name(
    place: Path, words: Path, begun: Path, name: str
) -> None:
    change, said = REFUSED[name]
    before = tiny.files(begun)
    with pytest.raises(Invalid, match=said):
        tiny.run(recipe(place, "refused", change), begun)
    assert tiny.files(begun) == before


def test_a_jump_of_the_rate_may_be_accepted(
    place: Path, words: Path, begun: Path, tmp_path: Path
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    loaded = config.load(recipe(place, "jump", lambda t: t["schedule"].update(peak=2e-2)))
    cache = str(place / "cache")
    with tiny.one_thread():
        training.run(loaded, tmp_path / "run", accept_jump=True, cache_folder=cache)
    rates = [r["rate"] for r in records.read(tmp_path / "run") if r["kind"] == "step"]
    assert rates == [1e-2] * 30 + [2e-2] * 20


def test_a_longer_cosine_over_the_run_jumps_and_names_the_rates(
    place: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cosine(table: dict[str, Any]) -> None:
        table["schedule"] = {"kind": "cosine", "peak": 1e-2}

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(20, patch)
        tiny.run(recipe(place, "cosine", cosine), tmp_path)
    whole = config.load(recipe(place, "longer", cosine, phases(3)))
    rate = shelf.schedule(config.load(place / "cosine.toml"), (25, 25))
    grown = shelf.schedule(whole, (25, 25, 10))
    with pytest.raises(Invalid, match=rf"go from {rate(20):.4g} to {grown(20):.4g}, as its span"):
        tiny.run(place / "longer.toml", tmp_path)


def outer(table: dict[str, Any]) -> None:
    table["update"] = {"kind": "average", "decays": [0.9], "inner": {
        "kind": "outer", "every": 2, "rate": {"kind": "cosine", "peak": 0.9}}}  # fmt: skip


def thinned(table: dict[str, Any]) -> None:
    table["update"] = {"kind": "descent"}
    table["adapter"] = {"kind": "codyra", "rank": 2, "threshold": 1.0}


def longer_second(table: dict[str, Any]) -> None:
    table["phases"][1]["tokens"] = 3200


@pytest.mark.parametrize(
    ("method", "grown", "said"),
    [
        (outer, phases(3), r"update\.inner\.rate: at step 31 the rate would go from 0\.\d+ to 0"),
        (thinned, longer_second, r"phases\[1\]\.tokens = 3200: adapter\.threshold thins gates by"),
    ],
)
def test_what_goes_by_the_length_of_a_run_or_phase_does_not_jump(
    place: Path, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Change,
    grown: Change, said: str,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.interrupt_in_step(30, patch)
        tiny.run(recipe(place, "goes-by-length", method), tmp_path)
    longer = config.load(recipe(place, "grows", method, grown))
    with pytest.raises(Invalid, match=said):
        tiny.run(place / "grows.toml", tmp_path)
    with tiny.one_thread():
        cache = str(place / "cache")
        training.run(longer, tmp_path, accept_jump=True, cache_folder=cache)


@pytest.mark.parametrize(
    "change",
    [lambda t: t["schedule"].update(peak=2e-2), lambda t: t.update(anneal={"tokens": 64})],
    ids=["rate", "branches"],
)
def test_a_finished_run_is_not_shown_for_another_recipe(
    place: Path, words: Path, tmp_path: Path, change: Change
) -> None:
    def brief(table: dict[str, Any]) -> None:
        table["phases"] = [{"name": "one", "tokens": 128, "mixture": {"en": 1.0}}]
        table["update"] = {"kind": "descent"}

    tiny.run(recipe(place, "brief", brief), tmp_path / "run")
    tiny.run(recipe(place, "same", brief, elsewhere), tmp_path / "run")
    before = tiny.files(tmp_path / "run")
    with pytest.raises(Invalid, match="is finished, and the recipe changed: .*; add a phase, name"):
        tiny.run(recipe(place, "other", brief, change), tmp_path / "run")
    assert tiny.files(tmp_path / "run") == before
