"""The tables of a recipe, one for each heading of its TOML: every key and its default.

A dataclass is a schema: an unknown key or a value of another type is an error (schema.py); what the
types cannot say is checked in config.py. The tables of methods (`[update]`, `[[penalties]]`,
`[schedule]`, `[[surgeries]]`, `replay.memory`) stay tables here; `shelf.py` and `surgery.py`
construct the methods that they name.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from treering.schema import Table

# What makes no other run: it may change while a run goes on, and is not in its identity.
FREE = ("compute.", "batch.micro", "probe.", "guard.max_skipped", "evaluate.every_tokens",
        "evaluate.task_batch", "checkpoint.", "mesh.", "track.")  # fmt: skip


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
    """Text or a store to train on, and the text, store or share of documents to be scored on. Of
    text the documents of `at_least` so many tokens: long ones are a corpus with a weight of its
    own."""

    train: str
    validation: str | float
    at_least: int = 0


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
class Anneal:
    """A branch beside the run, see branch.py: at the ends of `phases` (absent: all) `tokens` more
    (0 = none) of the phase are trained while the rate falls to `floor` times what it was, by
    `shape`: "linear", "cosine", "1-sqrt", "exponential", "rsqrt". So it is within a phase that `at`
    names, where those shares of it are trained, over that share of `tokens`."""

    tokens: int = 0
    floor: float = 0.1
    shape: str = "1-sqrt"
    phases: tuple[str, ...] = ()
    at: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def after(self, phase: str) -> bool:
        """Whether there is one at the end of a phase."""
        return self.tokens > 0 and (not self.phases or phase in self.phases)


@dataclass(frozen=True)
class BatchSize:
    """`tokens` of a step over all ranks and `micro`, those of one forward pass on one rank."""

    tokens: int = 4096
    micro: int | None = None


@dataclass(frozen=True)
class Group:
    """Parameters whose rate is `rate` times the schedule's; at 0 they are frozen. `match` = their
    role, see groups.py; of "layers" from `first` to `last`, counted from 0, or from the top by
    negative numbers."""

    match: str
    rate: float
    first: int | None = None
    last: int | None = None


@dataclass(frozen=True)
class Optimizer:
    """The inner optimizer. `decay` is for matrices only; `clip` 0 is off. `at_phase`: where a phase
    begins its moments and steps are kept, "reset", or the first moment alone ("reset-momentum").
    Parameters in none of the `groups` have the schedule's rate."""

    kind: str = "adamw"
    betas: tuple[float, ...] = (0.9, 0.95)
    eps: float = 1e-8
    decay: float = 0.1
    clip: float = 1.0
    at_phase: str = "keep"
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True)
class Teacher:
    """`weight` * T^2 * KL(teacher || model), in nats/token at the `temperature` T, is added to the
    loss of rows `on` "all", "fresh" or "replayed", at every `every`-th step. `from_` = "start" (the
    weights that the run begins with), "phase" (those of the last phase's end; none before that) or
    a folder of a model with the same tokenizer. A weight of 0 is no teacher."""

    weight: float = 0.0
    from_: str = "start"
    temperature: float = 2.0
    on: str = "all"
    every: int = 1


@dataclass(frozen=True)
class DER:
    """Dark experience replay: `weight` * KL(prediction when a sample was first learned || now), in
    nats/token, is added to the loss of replayed rows. Of a prediction the `top` likeliest tokens
    are kept, and what the others had together. DER leaves the loss of replayed rows out
    (`objective.replayed` = 0), DER++ does not. A weight of 0 is none."""

    weight: float = 0.0
    top: int = 32


@dataclass(frozen=True)
class Objective:
    """What is minimised: the sum of weights * losses of a step's rows, `fresh` and `replayed` ones,
    divided by their number (`normalize` = "rows") or by the sum of the weights ("weights"). `z` *
    logsumexp(logits)^2 is added to each loss. Losses are recorded without weights and additions."""

    fresh: float = 1.0
    replayed: float = 1.0
    normalize: str = "rows"
    z: float = 0.0
    teacher: Teacher = field(default_factory=Teacher)
    der: DER = field(default_factory=DER)


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
    """A checkpoint at phase ends, when `every_minutes` have passed without one, and every
    `every_tokens` trained tokens. The last `keep` are kept, and for good those of every
    `stay_every_tokens`, and of phase ends if `stay_at_phase`."""

    every_minutes: float = 15.0
    every_tokens: int | None = None
    keep: int = 2
    stay_every_tokens: int | None = None
    stay_at_phase: bool = False
    grace: float = 300.0  # seconds from SIGTERM and the like until the process ends, saved or not


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
    surgeries: tuple[Table, ...] = ()
    replay: Replay = field(default_factory=Replay)
    update: Table = field(default_factory=lambda: {"kind": "descent"})
    adapter: Table = field(default_factory=dict)  # none: all weights are trained
    schedule: Table = field(default_factory=lambda: {"kind": "cosine", "peak": 1e-3})
    anneal: Anneal = field(default_factory=Anneal)
    batch: BatchSize = field(default_factory=BatchSize)
    optimizer: Optimizer = field(default_factory=Optimizer)
    objective: Objective = field(default_factory=Objective)
    penalties: tuple[Table, ...] = ()
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
