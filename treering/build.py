"""From a recipe to the parts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import (
    adapter,
    downstream,
    fp8,
    groups,
    model,
    shelf,
    surgery,
    tables,
    tokenizer,
    trackers,
)
from treering.cache import cached_tokenizer, of_corpus, opened
from treering.config import Invalid, Recipe, Table
from treering.evaluate import HeldOut, held_out
from treering.identity import identity
from treering.learner import Learner
from treering.lengths import lengths
from treering.loop import Rules
from treering.mesh import Mesh
from treering.methods import memories
from treering.objective import forward, teacher
from treering.plan import Planner
from treering.protocols import Memory, Update
from treering.ranks import Ranks
from treering.store import Store
from treering.stream import Stream


@dataclass(frozen=True)
class Data:
    """What a run reads. `identity` is the recipe by values and digests, without paths: two runs
    with the same identity are the same run."""

    tokenizer: PreTrainedTokenizerBase
    train: tuple[Store | None, ...]  # None for a corpus that no phase and no replay can see
    validation: dict[str, Store]
    planner: Planner
    steps: tuple[int, ...]
    identity: Table


@dataclass(frozen=True)
class Parts:
    """What a run computes with."""

    ranks: Ranks
    stream: Stream
    learner: Learner
    update: Update
    earlier: Memory  # of which a probe draws
    rules: Rules
    held_out: tuple[HeldOut, ...]
    tasks: downstream.Tasks


def check_extras(recipe: Recipe) -> None:
    """Raises Invalid where the recipe names a task, a tracker or fp8, and it is not installed."""
    fp8.check_extra(recipe.compute.precision)
    downstream.find(recipe.evaluate)
    trackers.check(recipe.track)


def data(recipe: Recipe, cache: Path, run: Path | None = None) -> Data:
    """Prepare and open the corpora, and lay out the plan. Writes nothing but the cache. `run` is
    the folder of one that has begun: its tokenizer stays, whatever corpora come later."""
    shelf.check(recipe)
    words = _tokenizer(recipe, cache, run)
    mark, size = tokenizer.fingerprint(words), tokenizer.size(words)
    train: list[Store | None] = []
    validation: dict[str, Store] = {}
    needed = {name for phase in recipe.phases for name in phase.mixture} | set(recipe.replay.past)
    for name, corpus in recipe.corpora.items():
        paths = of_corpus(corpus, words, cache)
        at = f"corpora.{name}.train"
        train.append(opened(paths[0], at, mark, size) if name in needed else None)
        assert paths[1] is not None, "every corpus has a validation"
        validation[name] = opened(paths[1], f"corpora.{name}.validation", mark, size)
    plan = shelf.planner(recipe, tuple(s.samples(recipe.length) if s else 0 for s in train))
    digests = {
        name: {"train": store.digest if store else "", "validation": validation[name].digest}
        for name, store in zip(recipe.corpora, train, strict=True)
    }
    same = identity(recipe, mark, digests)
    return Data(words, tuple(train), validation, plan, lengths(plan), same)


def parts(recipe: Recipe, given: Data, mesh: Mesh) -> Parts:
    """Load or make the model and everything that learns. Writes nothing."""
    rates = shelf.schedule(recipe, given.steps)
    begun = start(recipe, given, spread=mesh.grid is not None and surgery.by_rows(recipe))
    taught_by = teacher(recipe, begun, given.identity["tokenizer"])
    begun = adapter.adapted(recipe, begun)
    check_der(recipe.objective.der, model.size(begun), mesh.world)
    per_token = model.cost(begun, recipe.length)
    call = forward(recipe, begun, tokenizer.end_of_text(given.tokenizer), mesh, taught_by)
    learner = Learner(
        call, recipe.optimizer, recipe.guard, objective=recipe.objective,
        penalties=shelf.penalties(recipe), flops_per_token=per_token,
    )  # fmt: skip
    update = shelf.update(recipe, recipe.update, steps=given.steps)
    learns = adapter.around(recipe, update, begun, given.steps)
    return Parts(
        Ranks(mesh),
        Stream(given.planner, given.train, given.steps, recipe.length, model.size(begun)),
        learner,
        learns,
        memories.KINDS["everything"](),
        Rules(recipe.seed, rates, recipe.model.dropout > 0, recipe.optimizer.at_phase),
        held_outs(recipe, given),
        downstream.load(recipe.evaluate, given.tokenizer),
    )


def check_der(wanted: tables.DER, vocabulary: int, world: int) -> None:
    """Raises Invalid where `world` processes cannot record the predictions of a run."""
    if wanted.weight and world > 1:
        raise Invalid(
            f"objective.der.weight = {wanted.weight}: predictions are recorded by one process; "
            "train on one, or keep what was known by objective.teacher"
        )
    if wanted.weight and wanted.top >= vocabulary:
        raise Invalid(
            f"objective.der.top = {wanted.top}: must be below the model's {vocabulary} ids"
        )


def held_outs(recipe: Recipe, given: Data) -> tuple[HeldOut, ...]:
    """The held-out windows of every corpus."""
    lengths = tokenizer.byte_lengths(given.tokenizer)
    return tuple(
        held_out(name, store, lengths, length=recipe.length, tokens=recipe.evaluate.tokens)
        for name, store in given.validation.items()
    )


def _tokenizer(recipe: Recipe, cache: Path, run: Path | None) -> PreTrainedTokenizerBase:
    wanted = recipe.tokenizer
    if wanted.train is not None and run is not None and (run / "tokenizer").exists():
        return tokenizer.load(run / "tokenizer")
    if wanted.train is None:
        source = wanted.from_ or recipe.model.from_
        assert source is not None, "config.check wants one of them"
        return tokenizer.load(source, remote_code=recipe.model.remote_code)
    every = recipe.corpora.values()
    texts = [(c.train, None if isinstance(c.validation, str) else c.validation) for c in every]
    return cached_tokenizer(texts, wanted.train, cache)


def start(recipe: Recipe, given: Data, *, spread: bool = False) -> PreTrainedModel:
    """The model that the recipe begins with, see `surgery.start`; what is frozen is marked so."""
    spread &= not recipe.adapter  # none is put beside weights that are yet to be read
    begun = surgery.start(recipe, given.tokenizer, spread=spread)
    return groups.frozen(begun, recipe.optimizer.groups)
