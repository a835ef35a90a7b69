"""The recipe: strict, frozen, read from TOML.

The dataclasses below are the schema: a table of the file is a constructor call, an unknown key
or a value of another type is an error. The tables of methods (`[update]`, `[schedule]`,
`replay.memory`) stay tables here; `build.py` constructs the methods that they name.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import typing
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import tomli_w

from treering.schema import Invalid as Invalid
from treering.schema import Table as Table
from treering.schema import lay_over, near, read, values


@dataclass(frozen=True)
class Tokenizer:
    """`train` = size of a byte-level BPE trained on the corpora, or `from_` = folder or hub id."""

    train: int | None = None
    from_: str | None = None


@dataclass(frozen=True)
class Model:
    """`from_` = folder or hub id of a causal language model, or a fresh one by preset or sizes.
    `attention` = "causal" over the whole window, or within each "document" alone."""

    from_: str | None = None
    preset: str | None = None
    kind: str = "llama"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    mlp: int | None = None
    tied: bool | None = None
    dropout: float = 0.0
    attention: str = "causal"
    remote_code: bool = False  # run the code that a hub model brings along


@dataclass(frozen=True)
class Corpus:
    """Text or a store to train on, and the text, store or share of documents to be scored on."""

    train: str
    validation: str | float


@dataclass(frozen=True)
class Phase:
    """A stretch of `tokens` predicted tokens; `mixture` = shares of its fresh tokens by corpus."""

    name: str
    tokens: int
    mixture: dict[str, float]


@dataclass(frozen=True)
class Replay:
    """`share` of trained tokens that is drawn from the memory, and how that is paid for."""

    share: float = 0.0
    budget: str = "total"
    memory: Table = field(default_factory=lambda: {"kind": "everything"})
    past: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchSize:
    """`tokens` of a step over all ranks and `micro`, those of one forward pass on one rank."""

    tokens: int = 4096
    micro: int | None = None


@dataclass(frozen=True)
class Optimizer:
    """The inner optimizer. `decay` is for matrices only; `clip` 0 is off."""

    kind: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0
    at_phase: str = "keep"


@dataclass(frozen=True)
class Guard:
    """A step whose gradient is not finite is skipped; so is one whose loss or gradient norm lies
    `spike` standard deviations above the mean of the phase's last `window` steps (0 = off). After
    `max_skipped` skipped steps in a row the run ends."""

    spike: float = 0.0
    window: int = 128
    max_skipped: int = 10


@dataclass(frozen=True)
class Compute:
    """How the arithmetic is done. `precision` of products: "fp8" is for those of layers, "auto" is
    bf16 where the device has it. `deterministic` absent: on for CPU, off for accelerators.
    `recompute` activations of layers in the backward pass, to save memory: "none", "selective"
    (all but products and attention) or "full"."""

    compile: bool = True
    precision: str = "auto"
    deterministic: bool | None = None
    recompute: str = "none"


@dataclass(frozen=True)
class Evaluate:
    """Held-out `tokens` per corpus (0 = all), at phase ends and every `every_tokens` trained; and
    downstream `tasks` before training and at phase ends: see downstream.py."""

    tokens: int = 32_768
    every_tokens: int | None = None
    tasks: tuple[str, ...] = ()
    task_folder: str | None = None  # of definitions; absent: lm-eval's own
    task_data: str | None = None  # their files are relative to it
    task_limit: int | None = None  # documents of each task; absent: all
    task_batch: int = 8  # sequences in a forward pass


@dataclass(frozen=True)
class Probe:
    """Every `every` steps the gradients of fresh and of earlier samples are compared (absent: no
    probe)."""

    every: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint every `every_tokens` trained tokens and at phase ends. The last `keep` are kept,
    and for good those of every `stay_every_tokens`, and of phase ends if `stay_at_phase`."""

    every_tokens: int | None = None
    keep: int = 2
    stay_every_tokens: int | None = None
    stay_at_phase: bool = False
    grace: float = 300.0  # seconds from SIGTERM or SIGUSR1 until the process ends, saved or not


@dataclass(frozen=True)
class Mesh:
    """Weights spread over `shard` processes (absent: all there are), and that `replicate` times.
    `timeout` = seconds after which a process that does not answer is given up."""

    replicate: int = 1
    shard: int | None = None
    timeout: float = 1800.0


@dataclass(frozen=True)
class Track:
    """The trackers `to` which records are mirrored, and as what; `name` absent: the folder's."""

    to: tuple[str, ...] = ()
    project: str = "treering"
    name: str | None = None


@dataclass(frozen=True)
class Recipe:
    """One run: a model taken through `phases` of corpora. See README for each key."""

    length: int
    model: Model
    corpora: dict[str, Corpus]
    phases: tuple[Phase, ...]
    seed: int = 0
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    replay: Replay = field(default_factory=Replay)
    update: Table = field(default_factory=lambda: {"kind": "descent"})
    schedule: Table = field(default_factory=lambda: {"kind": "cosine", "peak": 1e-3})
    batch: BatchSize = field(default_factory=BatchSize)
    optimizer: Optimizer = field(default_factory=Optimizer)
    guard: Guard = field(default_factory=Guard)
    compute: Compute = field(default_factory=Compute)
    evaluate: Evaluate = field(default_factory=Evaluate)
    probe: Probe = field(default_factory=Probe)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    mesh: Mesh = field(default_factory=Mesh)
    track: Track = field(default_factory=Track)

    @property
    def rows(self) -> int:
        """Samples of a step, before replay enlarges it under `budget = "batch"`."""
        return self.batch.tokens // self.length

    @property
    def micro_rows(self) -> int:
        """Samples of one forward pass."""
        return (self.batch.micro or self.batch.tokens) // self.length


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
    _check_parts(recipe, want)


def _check_parts(recipe: Recipe, want: typing.Callable[[bool, str, object, str], None]) -> None:
    optimizer, tokenizer, model = recipe.optimizer, recipe.tokenizer, recipe.model
    want(optimizer.kind in ("adamw", "sgd"), "optimizer.kind", optimizer.kind, "adamw or sgd")
    betas = optimizer.betas
    want(
        len(betas) == 2 and all(0 <= b < 1 for b in betas),
        "optimizer.betas",
        betas,
        "two, in [0, 1)",
    )
    want(optimizer.eps > 0, "optimizer.eps", optimizer.eps, "must be positive")
    want(optimizer.decay >= 0, "optimizer.decay", optimizer.decay, "must not be negative")
    want(optimizer.clip >= 0, "optimizer.clip", optimizer.clip, "must not be negative (0 = off)")
    at_phase = optimizer.at_phase
    want(at_phase in ("keep", "reset"), "optimizer.at_phase", at_phase, "keep or reset")
    guard = recipe.guard
    want(guard.spike >= 0, "guard.spike", guard.spike, "must not be negative (0 = off)")
    want(guard.window >= 2, "guard.window", guard.window, "must be at least 2 steps")
    want(guard.max_skipped >= 1, "guard.max_skipped", guard.max_skipped, "at least 1 step")
    precision = recipe.compute.precision
    kinds: tuple[str, ...] = ("auto", "fp32", "bf16", "fp8")
    want(precision in kinds, "compute.precision", precision, f"one of {kinds}")
    kinds, recompute = ("none", "selective", "full"), recipe.compute.recompute
    want(recompute in kinds, "compute.recompute", recompute, f"one of {kinds}")
    every_tokens = {
        "evaluate.every_tokens": recipe.evaluate.every_tokens,
        "checkpoint.every_tokens": recipe.checkpoint.every_tokens,
        "checkpoint.stay_every_tokens": recipe.checkpoint.stay_every_tokens,
    }
    for key, every in every_tokens.items():
        want(every is None or every > 0, key, every, "must be positive")
    mesh = recipe.mesh
    for key, number in (("replicate", mesh.replicate), ("shard", mesh.shard)):
        want(number is None or number > 0, f"mesh.{key}", number, "must be at least 1 process")
    want(mesh.timeout > 0, "mesh.timeout", mesh.timeout, "must be positive seconds")
    probe = recipe.probe.every
    want(probe is None or probe > 0, "probe.every", probe, "must be at least 1 step")
    want(recipe.evaluate.tokens >= 0, "evaluate.tokens", recipe.evaluate.tokens, "0 means all")
    grace = recipe.checkpoint.grace
    want(grace > 0, "checkpoint.grace", grace, "must be positive seconds")
    want(recipe.checkpoint.keep >= 1, "checkpoint.keep", recipe.checkpoint.keep, "at least 1")
    both = tokenizer.train is not None and tokenizer.from_ is not None
    want(not both, "tokenizer", values(tokenizer), "give train or from, not both")
    alone = tokenizer.train is not None or tokenizer.from_ is not None or model.from_ is not None
    want(alone, "tokenizer", {}, "a fresh model needs [tokenizer] train = 8192 or from = FOLDER")
    want(model.attention in ("causal", "document"), "model.attention", model.attention,
         "causal or document")  # fmt: skip
    want(0 <= model.dropout < 1, "model.dropout", model.dropout, "must be in [0, 1)")


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
        )
        for name, c in recipe.corpora.items()
    }
    model = dataclasses.replace(recipe.model, from_=maybe(recipe.model.from_))
    tokenizer = dataclasses.replace(recipe.tokenizer, from_=maybe(recipe.tokenizer.from_))
    at = recipe.evaluate
    evaluate = dataclasses.replace(
        at, task_folder=maybe(at.task_folder), task_data=maybe(at.task_data)
    )
    return dataclasses.replace(
        recipe, corpora=corpora, model=model, tokenizer=tokenizer, evaluate=evaluate
    )


def _existing(folder: Path, path: str, suffix: str) -> str | None:
    """The path in the folder, where there is such a file with the suffix."""
    try:
        at = folder.expanduser().absolute() / Path(path).expanduser()
        return str(at) if os.path.exists(f"{at}{suffix}") else None
    except RuntimeError:  # of "~" and a user whom nobody knows
        return None
