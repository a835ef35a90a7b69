"""The recipe: strict, frozen, read from TOML, and checked. Its keys are in tables.py."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import tomli_w

from treering import tables
from treering.schema import Invalid as Invalid
from treering.schema import Table as Table
from treering.schema import lay_over, near, read, values
from treering.tables import Corpus
from treering.tables import Recipe as Recipe

MONTH = 30 * 24 * 3600  # seconds; the clocks of watchdogs have an end
Want = Callable[[bool, str, object, str], None]


def load(path: str | Path, *, data: str | Path | None = None, sets: tuple[str, ...] = ()) -> Recipe:
    """The recipe in a TOML file, with `sets` ("key.key=value") laid over it.

    Its paths are relative to `data`, or to the recipe's own folder. Raises Invalid for an unknown
    key, a value of the wrong type or out of range, a file that is missing.
    """
    table = toml(path)
    for assignment in sets:
        lay_over(table, assignment)
    return resolve(table, data if data is not None else Path(path).parent)


def toml(path: str | Path) -> Table:
    """The tables of a TOML file. Raises Invalid where there is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Invalid(f"recipe {path}: cannot be read ({error}); name an existing file") from error
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of an integer of too many digits
        raise Invalid(f"recipe {path} is not TOML: {error}") from error


def resolve(table: Table, folder: str | Path) -> Recipe:
    """The recipe of a file's tables, whose paths are relative to `folder`; errors as in `load`."""
    recipe = read(Recipe, table, "")
    check(recipe)
    return _located(recipe, Path(folder))


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as TOML."""
    return tomli_w.dumps(values(recipe))


def exact(number: float) -> Fraction:
    """The decimal that was written in the recipe, exactly: 0.1 is 1/10."""
    return Fraction(repr(number))


def check(recipe: Recipe) -> None:
    """What the types cannot say. Raises Invalid with key, value and remedy."""

    def want(good: bool, key: str, value: object, remedy: str) -> None:
        if not good:
            raise Invalid(f"{key} = {value!r}: {remedy}")

    want(recipe.length > 0, "length", recipe.length, "must be at least 1 token")
    batch, replay, known = recipe.batch, recipe.replay, list(recipe.corpora)
    for key, tokens in (("batch.tokens", batch.tokens), ("batch.micro", batch.micro)):
        multiple = tokens is None or (tokens > 0 and tokens % recipe.length == 0)
        want(multiple, key, tokens, f"must be a positive multiple of length ({recipe.length})")
    want(bool(known), "corpora", known, "name at least one, as [corpora.NAME]")
    want(bool(recipe.phases), "phases", [], "name at least one, as [[phases]]")
    names = [phase.name for phase in recipe.phases]
    for i, phase in enumerate(recipe.phases):
        where = f"phases[{i}]"
        want(names.count(phase.name) == 1, f"{where}.name", phase.name, "names must differ")
        want(phase.tokens > 0, f"{where}.tokens", phase.tokens, "must be positive")
        want(bool(phase.mixture), f"{where}.mixture", {}, "name a corpus, as { NAME = 1.0 }")
        for corpus, weight in phase.mixture.items():
            want(
                corpus in known, f"{where}.mixture", corpus, "no such corpus" + near(corpus, known)
            )
            want(0 < weight < float("inf"), f"{where}.mixture.{corpus}", weight, "must be positive")
    want(0 <= replay.share < 1, "replay.share", replay.share, "must be in [0, 1)")
    budgets = ("total", "fresh", "batch")
    want(replay.budget in budgets, "replay.budget", replay.budget, f"one of {budgets}")
    for corpus in replay.past:
        want(corpus in known, "replay.past", corpus, "no such corpus" + near(corpus, known))
    for corpus, at in recipe.corpora.items():
        share = at.validation
        good = isinstance(share, str) or 0 < share < 1
        want(good, f"corpora.{corpus}.validation", share, "a share must lie between 0 and 1")
        want(at.at_least >= 0, f"corpora.{corpus}.at_least", at.at_least, "tokens, or 0 for all")
    _check_parts(recipe, want)


def _check_parts(recipe: Recipe, want: Want) -> None:
    optimizer = recipe.optimizer
    want(optimizer.kind in ("adamw", "sgd"), "optimizer.kind", optimizer.kind, "adamw or sgd")
    good = len(optimizer.betas) == 2 and all(0 <= beta < 1 for beta in optimizer.betas)
    want(good, "optimizer.betas", optimizer.betas, "two, in [0, 1)")
    want(optimizer.eps > 0, "optimizer.eps", optimizer.eps, "must be positive")
    want(optimizer.decay >= 0, "optimizer.decay", optimizer.decay, "must not be negative")
    want(optimizer.clip >= 0, "optimizer.clip", optimizer.clip, "must not be negative (0 = off)")
    moments, ways = optimizer.at_phase, ("keep", "reset", "reset-momentum")
    want(moments in ways, "optimizer.at_phase", moments, f"one of {ways}")
    anneal, names = recipe.anneal, [phase.name for phase in recipe.phases]
    want(anneal.tokens >= 0, "anneal.tokens", anneal.tokens, "must not be negative (0 = no branch)")
    for key, named in (("anneal.phases", anneal.phases), ("anneal.at", anneal.at)):
        for name in named:
            want(name in names, key, name, "no such phase" + near(name, names))
    for name, at in anneal.at.items():
        want(all(0 < x < 1 for x in at), f"anneal.at.{name}", at, "shares of the phase, in (0, 1)")
    _check_objective(recipe.objective, want)
    _check_groups(recipe, want)
    guard = recipe.guard
    want(guard.spike >= 0, "guard.spike", guard.spike, "must not be negative (0 = off)")
    want(guard.window >= 2, "guard.window", guard.window, "must be at least 2 steps")
    want(guard.max_skipped >= 1, "guard.max_skipped", guard.max_skipped, "at least 1 step")
    precision, kinds = recipe.compute.precision, ("auto", "fp32", "bf16", "fp8")
    want(precision in kinds, "compute.precision", precision, f"one of {kinds}")
    recompute, ways = recipe.compute.recompute, ("none", "selective", "full")
    want(recompute in ways, "compute.recompute", recompute, f"one of {ways}")
    cadences = {
        "evaluate.every_tokens": recipe.evaluate.every_tokens,
        "probe.every": recipe.probe.every,
        "checkpoint.every_minutes": recipe.checkpoint.every_minutes,
        "checkpoint.every_tokens": recipe.checkpoint.every_tokens,
        "checkpoint.stay_every_tokens": recipe.checkpoint.stay_every_tokens,
    }
    for key, every in cadences.items():
        want(every is None or every > 0, key, every, "must be positive")
    mesh = recipe.mesh
    for key, number in (("replicate", mesh.replicate), ("shard", mesh.shard)):
        want(number is None or number > 0, f"mesh.{key}", number, "must be at least 1 process")
    seconds = {"mesh.timeout": mesh.timeout, "checkpoint.grace": recipe.checkpoint.grace}
    for key, time in seconds.items():
        want(0 < time <= MONTH, key, time, f"must be positive seconds, {MONTH:,} at most")
    _check_model(recipe, want)
    want(recipe.evaluate.tokens >= 0, "evaluate.tokens", recipe.evaluate.tokens, "0 means all")
    want(recipe.checkpoint.keep >= 1, "checkpoint.keep", recipe.checkpoint.keep, "at least 1")


def _check_model(recipe: Recipe, want: Want) -> None:
    model, tokenizer = recipe.model, recipe.tokenizer
    sizes = ("preset", "width", "depth", "heads", "mlp", "tied")
    for key in sizes if model.from_ is not None else ():
        given = getattr(model, key)
        want(given is None, f"model.{key}", given, "is of a fresh model; give it or from, not both")
    both = tokenizer.train is not None and tokenizer.from_ is not None
    want(not both, "tokenizer", values(tokenizer), "give train or from, not both")
    alone = tokenizer.train is not None or tokenizer.from_ is not None or model.from_ is not None
    want(alone, "tokenizer", {}, "a fresh model needs [tokenizer] train = 8192 or from = FOLDER")
    want(model.attention in ("causal", "document"), "model.attention", model.attention,
         "causal or document")  # fmt: skip
    want(0 <= model.dropout < 1, "model.dropout", model.dropout, "must be in [0, 1)")


def _check_objective(objective: tables.Objective, want: Want) -> None:
    teacher, der, ways = objective.teacher, objective.der, ("rows", "weights")
    offs = {"z": objective.z, "teacher.weight": teacher.weight, "der.weight": der.weight}
    for key, number in {"replayed": objective.replayed, **offs}.items():
        want(number >= 0, f"objective.{key}", number, "must not be negative (0 = off)")
    want(objective.fresh > 0, "objective.fresh", objective.fresh,
         "must be positive: a step without replay would learn nothing")  # fmt: skip
    want(objective.normalize in ways, "objective.normalize", objective.normalize, f"one of {ways}")
    where = "objective.teacher"
    heat, roles = teacher.temperature, ("all", "fresh", "replayed")
    want(heat > 0, f"{where}.temperature", heat, "must be positive")
    want(teacher.on in roles, f"{where}.on", teacher.on, f"one of {roles}")
    want(teacher.every >= 1, f"{where}.every", teacher.every, "must be at least 1 step")
    want(der.top >= 1, "objective.der.top", der.top, "must be at least 1 token")
    alone = not (der.weight and teacher.weight)
    want(alone, "objective.der.weight", der.weight, "not beside a teacher; leave one of them out")


def _check_groups(recipe: Recipe, want: Want) -> None:
    roles = ["embeddings", "head", "norms", "layers", "rest"]
    matches = [group.match for group in recipe.optimizer.groups]
    want(matches.count("rest") <= 1, "optimizer.groups", matches, "name 'rest' once")
    for i, group in enumerate(recipe.optimizer.groups):
        where = f"optimizer.groups[{i}]"
        good = group.match in roles
        want(good, f"{where}.match", group.match, "no such role" + near(group.match, roles))
        want(group.rate >= 0, f"{where}.rate", group.rate, "must not be negative (0 = frozen)")
        for key, layer in (("first", group.first), ("last", group.last)):
            good = layer is None or group.match == "layers"
            want(good, f"{where}.{key}", layer, "only 'layers' have numbers; leave it out")


def _located(recipe: Recipe, folder: Path) -> Recipe:
    """Relative paths made absolute; a missing corpus is an error here, before anything is done."""

    def there(path: str, key: str) -> str:
        if path.startswith("hf://"):
            return path
        found = _existing(folder, path, "") or _existing(folder, path, ".idx")
        if found is None:
            raise Invalid(
                f"{key} = {path!r}: no such file in {folder}; mend it or give --data FOLDER"
            )
        return found

    def maybe(path: str | None) -> str | None:
        return path and (_existing(folder, path, "") or path)

    corpora = {
        name: Corpus(
            there(c.train, f"corpora.{name}.train"),
            there(c.validation, f"corpora.{name}.validation")
            if isinstance(c.validation, str)
            else c.validation,
            c.at_least,
        )
        for name, c in recipe.corpora.items()
    }
    model = dataclasses.replace(recipe.model, from_=maybe(recipe.model.from_))
    tokenizer = dataclasses.replace(recipe.tokenizer, from_=maybe(recipe.tokenizer.from_))
    teacher = recipe.objective.teacher
    if teacher.from_ not in ("start", "phase"):
        teacher = dataclasses.replace(teacher, from_=maybe(teacher.from_) or teacher.from_)
    objective = dataclasses.replace(recipe.objective, teacher=teacher)
    at = recipe.evaluate
    evaluate = dataclasses.replace(
        at, task_folder=maybe(at.task_folder), task_data=maybe(at.task_data)
    )
    return dataclasses.replace(
        recipe,
        corpora=corpora,
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        evaluate=evaluate,
    )


def _existing(folder: Path, path: str, suffix: str) -> str | None:
    """The path in the folder, where there is such a file with the suffix."""
    try:
        at = folder.expanduser().absolute() / Path(path).expanduser()
        return str(at) if os.path.exists(f"{at}{suffix}") else None
    except RuntimeError:  # of "~" and a user whom nobody knows
        return None
