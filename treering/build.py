"""From names to methods: the recipe's tables become the parts of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import cache as shelf
from treering import downstream, fp8, model, pretrained, tokenizer, trackers
from treering.config import Invalid, Recipe, Table, exact
from treering.evaluate import HeldOut, held_out
from treering.forward import Forward, check_documents, is_linear
from treering.forward import forward as callable_as
from treering.identity import identity
from treering.learner import Learner
from treering.lengths import lengths
from treering.loop import Rules
from treering.mesh import Mesh
from treering.methods import memories, schedules, updates
from treering.methods.objectives.cross_entropy import linear_cross_entropy
from treering.methods.objectives.next_token import NextToken
from treering.methods.schedules.warmup import join
from treering.plan import Planner, Stage, integer_weights
from treering.protocols import Memory, Schedule, Update
from treering.ranks import Ranks
from treering.schema import construct, near
from treering.store import Store
from treering.stream import Stream
from treering.weights import read


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
    check_methods(recipe)
    words = _tokenizer(recipe, cache, run)
    mark, size = tokenizer.fingerprint(words), tokenizer.size(words)
    train: list[Store | None] = []
    validation: dict[str, Store] = {}
    needed = {name for phase in recipe.phases for name in phase.mixture} | set(recipe.replay.past)
    for name, corpus in recipe.corpora.items():
        paths = shelf.cached(corpus.train, corpus.validation, words, cache)
        train.append(
            shelf.opened(paths[0], f"corpora.{name}.train", mark, size) if name in needed else None
        )
        assert paths[1] is not None, "every corpus has a validation"
        validation[name] = shelf.opened(paths[1], f"corpora.{name}.validation", mark, size)
    plan = planner(recipe, tuple(s.samples(recipe.length) if s else 0 for s in train))
    digests = {
        name: {"train": store.digest if store else "", "validation": validation[name].digest}
        for name, store in zip(recipe.corpora, train, strict=True)
    }
    return Data(
        words, tuple(train), validation, plan, lengths(plan), identity(recipe, mark, digests)
    )


def check_methods(recipe: Recipe) -> None:
    """Make every method once: what is misspelt is told before the minutes of a preparation."""
    if recipe.model.from_ is None:
        model.llama(recipe.model, 1, recipe.length)
    update(recipe, recipe.update)
    schedule(recipe, (1,) * len(recipe.phases))
    planner(recipe, (2**40,) * len(recipe.corpora))


def planner(recipe: Recipe, sizes: tuple[int, ...]) -> Planner:
    """The rule of the recipe's stream over corpora of `sizes` samples."""
    names, replay = tuple(recipe.corpora), recipe.replay
    table = dict(replay.memory)
    over = table.pop("over", "all")
    if over not in ("past", "all"):
        raise Invalid(f"replay.memory.over = {over!r}: must be 'past' or 'all'")
    for name, size in zip(names, sizes, strict=True):
        used = any(name in phase.mixture for phase in recipe.phases) or name in replay.past
        if used and not size:
            raise Invalid(
                f"corpora.{name}.train: has not one sample of length {recipe.length} + 1; "
                "give more text or a smaller length"
            )
    stages = []
    for phase in recipe.phases:
        shares = [exact(phase.mixture.get(name, 0.0)) for name in names]
        stages.append(Stage(ceil(phase.tokens / recipe.length), integer_weights(shares)))
    plan = Planner(
        seed=recipe.seed,
        names=names,
        sizes=sizes,
        past=tuple(name in replay.past for name in names),
        stages=tuple(stages),
        rows=recipe.rows,
        share=exact(replay.share),
        budget=replay.budget,
        memory=construct(memories.KINDS, table, "replay.memory"),
        over=over,
    )
    if plan.memory.held(2**62) < plan.rows + plan.replays:
        raise Invalid(
            f"replay.memory.samples = {plan.memory.held(2**62)}: must be at least the samples of "
            f"a step, {ceil(plan.rows + plan.replays)}"
        )
    return plan


def parts(recipe: Recipe, given: Data, mesh: Mesh) -> Parts:
    """Load or make the model and everything that learns. Writes nothing."""
    learns = update(recipe, recipe.update)
    rates = schedule(recipe, given.steps)
    begun = start(recipe, given, spread=mesh.grid is not None)
    per_token = model.cost(begun, recipe.length)
    vocabulary = model.size(begun)
    call = forward(recipe, begun, tokenizer.end_of_text(given.tokenizer), mesh)
    learner = Learner(call, recipe.optimizer, recipe.guard, flops_per_token=per_token)
    resets = recipe.optimizer.at_phase == "reset"
    return Parts(
        Ranks(mesh),
        Stream(given.planner, given.train, given.steps, recipe.length, vocabulary),
        learner,
        learns,
        memories.KINDS["everything"](),
        Rules(recipe.seed, rates, dropout=recipe.model.dropout > 0, reset_at_phase=resets),
        held_outs(recipe, given),
        downstream.load(recipe.evaluate, given.tokenizer),
    )


def forward(recipe: Recipe, begun: PreTrainedModel, end_of_text: int, mesh: Mesh) -> Forward:
    """The root module of a model, callable as the recipe's `[compute]` says; weights that were left
    out are read into it."""
    unread = next(begun.parameters()).is_meta
    chunked = objective(recipe, end_of_text)
    whole = replace(chunked, chunked=None)
    root = model.Root(begun, whole)
    rows = mesh.most(recipe.rows) if recipe.batch.micro is None else recipe.micro_rows
    call = callable_as(root, recipe.compute, rows, mesh)
    if unread:
        assert recipe.model.from_ is not None
        read(pretrained.folder(recipe.model.from_), dict(begun.named_parameters()))
    if is_linear(call, chunked, whole):
        compiled = recipe.compute.compile and mesh.grid is not None  # else the whole root is
        loss = torch.compile(linear_cross_entropy, dynamic=False) if compiled else None
        root.objective = replace(chunked, chunked=loss or linear_cross_entropy)
    check_documents(call, whole.document_end)
    return call


def objective(recipe: Recipe, end_of_text: int) -> NextToken:
    """The loss, for a model whose logits are hidden states times head."""
    return NextToken(document_end=end_of_text if recipe.model.attention == "document" else None)


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
    texts = [
        (corpus.train, None if isinstance(corpus.validation, str) else corpus.validation)
        for corpus in recipe.corpora.values()
    ]
    return shelf.cached_tokenizer(texts, wanted.train, cache)


def update(recipe: Recipe, table: Table, where: str = "update") -> Update:
    """The update that a recipe's table names, with those inside it."""
    table = dict(table)
    if "inner" in table:
        if not isinstance(table["inner"], dict):
            raise Invalid(f"{where}.inner = {table['inner']!r}: must be a table with a kind")
        table["inner"] = update(recipe, table["inner"], where + ".inner")
    if "start" in table:
        names = [phase.name for phase in recipe.phases]
        if table["start"] not in names:
            raise Invalid(f"{where}.start = {table['start']!r}{near(str(table['start']), names)}")
        table["start"] = names.index(table["start"])
    if table.get("kind") == "per_sample" and recipe.micro_rows != 1:
        raise Invalid(
            f"batch.micro = {recipe.micro_rows * recipe.length}: update kind 'per_sample' takes "
            f"one sample at a time; set it to length ({recipe.length})"
        )
    made: Update = construct(updates.KINDS, table, where)
    return made


def schedule(recipe: Recipe, steps: tuple[int, ...]) -> Schedule:
    """The rate at each step of a run whose phases have so many steps."""
    table = dict(recipe.schedule)
    span = table.pop("span", "run")
    shape = construct(schedules.KINDS, table, "schedule")
    if span not in ("run", "phase"):
        raise Invalid(f"schedule.span = {span!r}: must be 'run' or 'phase'")
    spans = (sum(steps),) if span == "run" else steps
    return join([(shape.over(n), n) for n in spans])


def start(recipe: Recipe, given: Data, *, spread: bool = False) -> PreTrainedModel:
    """The model that the recipe begins with; see `model.build`."""
    words = given.tokenizer
    return model.build(recipe, tokenizer.size(words), tokenizer.end_of_text(words), spread=spread)
