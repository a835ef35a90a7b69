"""The seams: everything a method may be, on one page.

    needs only tokens                -> Objective
    decides what is seen again       -> Memory
    must see, repeat or undo a step  -> Update
    sets the rate                    -> Schedule
    changes the model itself         -> Surgery

Mixtures that observe and penalties get their protocols with the first method that needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from treering.batch import Batch, Refs

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Schedule = Callable[[int], float]
"""The rate at a step of the run, counted from 0. Pure; never saved."""

MemoryState = Mapping[str, NDArray[np.int64]]
"""A memory's contents as a value: arrays whose shapes never change, so that they checkpoint."""


class Memory(Protocol):
    """What a run may see again. A pure rule: its contents are `seen` and the value `MemoryState`.

    `seen` int64[k] counts the distinct samples of each corpus offered so far. Samples are named
    by Refs whose index is the sample's place in its corpus's first epoch, so a corpus's seen
    samples are the places [0, seen); the stream turns places into samples. `at` is a random key.
    """

    def held(self, seen: int) -> int:
        """How many distinct samples can be drawn after `seen` were offered."""

    def empty(self, seen: NDArray[np.int64], at: int) -> MemoryState:
        """The state before training: `seen` are the corpora that count as seen from the start."""

    def offer(
        self, state: MemoryState, seen: NDArray[np.int64], fresh: Refs, at: int
    ) -> MemoryState:
        """The state after samples that were never offered before; `seen` is without them."""

    def draw(self, state: MemoryState, seen: NDArray[np.int64], count: int, at: int) -> Refs:
        """min(count, held) distinct samples in random order; any prefix is as fair a draw."""


class Objective(Protocol):
    """Per-sample losses, computed inside the forward of the one root module."""

    def __call__(
        self, model: PreTrainedModel, tokens: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """tokens int64[n, length + 1], counts float32[n] -> (the sum of counts * losses, of which
        the gradient is taken; the mean loss of each row in nats/token, float32[n], without one).
        """


@dataclass(frozen=True)
class Metrics:
    """What a step did: tensors until somebody prints them, so that no step waits for its device.

    Losses are means over rows in nats/token; NaN where there was no such row. `skipped` is the
    share of its optimizer steps that changed nothing. FLOPs by purpose.
    """

    loss: torch.Tensor
    fresh_loss: torch.Tensor
    replayed_loss: torch.Tensor
    grad_norm: torch.Tensor
    skipped: torch.Tensor
    training_flops: float
    meta_flops: float = 0.0


@dataclass(frozen=True)
class Applied:
    """What a step of the optimizer was: the gradient's norm before clipping, float32[], and whether
    the step was skipped, 0.0 or 1.0."""

    norm: torch.Tensor
    skipped: torch.Tensor


class Learner(Protocol):
    """A model and its two verbs. `params` are the fp32 weights that the optimizer owns."""

    @property
    def params(self) -> Sequence[torch.Tensor]: ...

    def backward(self, batch: Batch) -> Metrics:
        """Add the gradient of the batch's mean loss; nothing is known of the step yet."""

    def apply(self) -> Applied:
        """Clip, let the optimizer step unless the guard refuses, clear the gradients."""


class Update(Protocol):
    """How a batch is learned from; an update wraps an update.

    `state` names its tensors for the checkpoint, one for each parameter; they are loaded in
    place. `counters` are its numbers; they are given back to `restore`. `branches` are weights to
    be scored beside the trained ones, by name, one tensor for each parameter.
    """

    def __call__(self, learner: Learner, batch: Batch) -> Metrics: ...

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]: ...

    def counters(self) -> dict[str, Any]: ...

    def restore(self, counters: Mapping[str, Any]) -> None: ...

    def branches(self) -> dict[str, list[torch.Tensor]]: ...


@dataclass(frozen=True)
class Origin:
    """What a surgery may know beside the model: the run's tokenizer and seed, and the folder or hub
    id that the model was read from (None: it is fresh)."""

    tokenizer: PreTrainedTokenizerBase
    source: str | None
    seed: int


class Surgery(Protocol):
    """What a model becomes before its first step: a pure function, done again when a run resumes.

    The model may share what is unchanged with the given one, which is not used any more; both may
    have parameters without memory. `by_rows`: its weights are the given ones under the same names,
    so that each rank may read its own rows of them.
    """

    by_rows: ClassVar[bool]

    def __call__(self, model: PreTrainedModel, origin: Origin) -> PreTrainedModel: ...
