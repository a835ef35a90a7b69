"""The seams: everything a method may be, on one page.

    needs only tokens                -> Objective
    decides what is seen again       -> Memory
    must see, repeat or undo a step  -> Update
    holds the weights to something   -> Penalty
    sets the rate                    -> Schedule
    trains small weights beside all  -> Adapter
    changes the model itself         -> Surgery

Mixtures that observe get their protocol with the first method that needs one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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


Teacher = Callable[[dict[str, Any], bool], "tuple[torch.Tensor, torch.Tensor]"]
"""A frozen model. (what it is called with, whole) -> logits, or hidden states; and the head."""


Known = Teacher | tuple["torch.Tensor", "torch.Tensor"]  # ids and log-chances that are recorded


class Objective(Protocol):
    """Per-sample losses, computed inside the forward of the one root module."""

    def __call__(
        self,
        model: PreTrainedModel,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        known: Known | None = None,
        taught: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """tokens int64[n, length + 1], counts float32[n] -> (the sum of counts * losses, of which
        the gradient is taken; the mean loss of each row in nats/token, float32[n], without one).
        To the sum comes that of `taught` float32[n] * divergences from what is known, if anything.
        If that is recorded, ids and log-chances of now come third and fourth."""

    def logits(self, model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        """The logits of all predictions, float32[n, length, vocabulary]: for a few rows."""


@dataclass(frozen=True)
class Metrics:
    """What a step did: tensors until somebody prints them, so that no step waits for its device.

    Losses are means over rows in nats/token; NaN where there was no such row. `skipped` is the
    share of its optimizer steps that changed nothing. `penalty` is None where there is none. FLOPs
    by purpose. `predictions`: ids and log-chances, where the batch came with `recorded` ones.
    """

    loss: torch.Tensor
    fresh_loss: torch.Tensor
    replayed_loss: torch.Tensor
    grad_norm: torch.Tensor
    skipped: torch.Tensor
    training_flops: float
    meta_flops: float = 0.0
    penalty: torch.Tensor | None = None
    predictions: Sequence[torch.Tensor] | None = None

    def stepped(self, by: Applied) -> Metrics:
        """With what the optimizer's step was."""
        return replace(self, grad_norm=by.norm, skipped=by.skipped, penalty=by.penalty)


@dataclass(frozen=True)
class Applied:
    """What a step of the optimizer was: the gradient's norm before clipping, float32[], whether the
    step was skipped, 0.0 or 1.0, and the sum of the penalties, in nats/token, where there are any.
    """

    norm: torch.Tensor
    skipped: torch.Tensor
    penalty: torch.Tensor | None = None


PerRow = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""What of a row's predictions a gradient is wanted of: logits float32[n, length, vocabulary] and
targets int64[n, length] -> float32[n]."""


class Learner(Protocol):
    """A model and its two verbs. `params` are the fp32 weights that the optimizer owns, `weights`
    the same by name. `matrices` names those of linear layers but the head, and says what their rows
    are: "out", or "in" where a layer multiplies from the left. `rate` is that of the next step.
    """

    @property
    def params(self) -> Sequence[torch.Tensor]: ...

    @property
    def flops_per_token(self) -> float: ...

    @property
    def weights(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def matrices(self) -> Mapping[str, str]: ...

    @property
    def rate(self) -> float: ...

    def backward(self, batch: Batch) -> Metrics:
        """Add the gradient of the batch's mean loss; nothing is known of the step yet."""

    def apply(self) -> Applied:
        """Clip, let the optimizer step unless the guard refuses, clear the gradients."""

    def waiting_gradient(self) -> list[torch.Tensor]:
        """What waits for `apply`, one tensor for each parameter; may be changed in place."""

    def take_gradient(self) -> list[torch.Tensor]:
        """The same, held aside: nothing waits any more."""

    def gradients(self, batch: Batch, of: PerRow, at: int) -> Iterator[list[torch.Tensor]]:
        """Of each row of a batch by itself the gradient of `of`, one tensor for each parameter,
        valid until the next. Random numbers that `of` draws are those of the key `at`."""

    def dot(self, one: Iterable[torch.Tensor], other: Iterable[torch.Tensor]) -> torch.Tensor:
        """The inner product of two lists of tensors shaped like the parameters, float64[]."""

    def state(self) -> dict[str, list[torch.Tensor]]:
        """Weights and the optimizer's tensors ("optimizer.exp_avg"), one for each parameter."""

    def reset_optimizer(self, *, momentum_alone: bool = False) -> None:
        """Forget the optimizer's moments, or the first alone."""


class Adapter(Protocol):
    """Small weights beside frozen ones, which alone are trained. `merge` = "phase" or "end": after
    what they are added to the frozen ones."""

    @property
    def merge(self) -> str: ...

    def insert(self, model: PreTrainedModel, names: Sequence[str], seed: int) -> None:
        """Into a model, the weights of whose linear layers are `names`; before it is spread."""

    def around(
        self, inner: Update, layers: Sequence[Any], seed: int, steps: Sequence[int]
    ) -> Update:
        """The update of a run whose phases have so many steps; `layers` are the inserted ones."""


class Update(Protocol):
    """How a batch is learned from; an update wraps an update.

    `state` names its tensors for the checkpoint, one for each parameter, of any shape and empty
    where a parameter has none; they are loaded in place. `counters` are its numbers; they are given
    back to `restore`. `branches` are weights to be scored beside the trained ones, by name, one
    tensor for each parameter.
    """

    def __call__(self, learner: Learner, batch: Batch) -> Metrics: ...

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]: ...

    def counters(self) -> dict[str, Any]: ...

    def restore(self, counters: Mapping[str, Any]) -> None: ...

    def branches(self) -> dict[str, list[torch.Tensor]]: ...


class Penalty(Protocol):
    """What holds the weights near what they were: it adds to the gradient, before this is clipped.

    `state` and `counters` are saved and restored as those of an update.
    """

    def __call__(self, learner: Learner) -> torch.Tensor:
        """Add the penalty's gradient to that of the parameters which have one; its value, float64[]
        in nats/token."""

    def consolidate(self, learner: Learner, drawn: Callable[[int], Batch], at: int) -> float:
        """Where a phase begins: what is known now is to be held. `drawn` are so many samples of
        what was learned since, or as many as there are; `at` is a random key. FLOPs."""

    def state(self, learner: Learner) -> dict[str, list[torch.Tensor]]: ...

    def counters(self) -> dict[str, Any]: ...

    def restore(self, counters: Mapping[str, Any]) -> None: ...


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
