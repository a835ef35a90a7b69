"""How tensors of several models become one: sums of differences, means, arcs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from treering.config import Invalid
from treering.report.card import called

Parent = tuple[str, float]  # a folder or hub id, and its weight


class Rule(Protocol):
    """How tensors of one name become one: float64, in the parents' order."""

    def check(self, parents: Sequence[Parent]) -> None: ...

    def formula(self, parents: Sequence[Parent]) -> str: ...

    def __call__(
        self, tensors: Sequence[torch.Tensor], weights: Sequence[float]
    ) -> torch.Tensor: ...


@dataclass(frozen=True)
class Arithmetic:
    """The first parent is the base, whose own weight is 1."""

    def check(self, parents: Sequence[Parent]) -> None:
        """Anything goes."""

    def formula(self, parents: Sequence[Parent]) -> str:
        """The sum in words."""
        base, *others = [(called(source), weight) for source, weight in parents]
        terms = [f"{'-' if w < 0 else '+'} {abs(w):g} ({name} - {base[0]})" for name, w in others]
        return " ".join([base[0], *terms])

    def __call__(self, tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        total = tensors[0].clone()
        for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
            total += weight * (tensor - tensors[0])
        return total


@dataclass(frozen=True)
class Linear:
    """The weighted mean."""

    def check(self, parents: Sequence[Parent]) -> None:
        """Raises Invalid for weights that are no weights."""
        if len(parents) < 2 or any(weight < 0 for _, weight in parents):
            raise Invalid(f"merge: {[w for _, w in parents]}: a mean is of two models or more, "
                          "with weights that are not negative")  # fmt: skip
        if not sum(weight for _, weight in parents) > 0:
            raise Invalid("merge: the weights add up to 0")

    def formula(self, parents: Sequence[Parent]) -> str:
        """The mean in words."""
        return "mean of " + " and ".join(f"{called(name)} ({w:g})" for name, w in parents)

    def __call__(self, tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        total = torch.zeros_like(tensors[0])
        for tensor, weight in zip(tensors, weights, strict=True):
            total += weight / sum(weights) * tensor
        return total


@dataclass(frozen=True)
class Slerp:
    """`at` of the way from the first to the second: (sin((1 - t) a) A + sin(t a) B) / sin(a), a the
    angle between them; of two that are nearly parallel the straight line."""

    at: float

    def check(self, parents: Sequence[Parent]) -> None:
        """Raises Invalid for what is not two models, or has weights beside the way."""
        if len(parents) != 2 or any(weight != 1 for _, weight in parents):
            raise Invalid(f"--slerp {self.at}: takes two models without weights")
        if not 0 <= self.at <= 1:
            raise Invalid(f"--slerp {self.at}: must be in [0, 1]")

    def formula(self, parents: Sequence[Parent]) -> str:
        """The way in words."""
        a, b = (called(source) for source, _ in parents)
        return f"slerp from {a} to {b}, {self.at:g} of the way"

    def __call__(self, tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        a, b = tensors
        t, lengths = self.at, float(a.norm() * b.norm())
        cosine = float((a * b).sum()) / lengths if lengths else 1.0
        if abs(cosine) > 0.9995:
            return torch.lerp(a, b, t)
        angle = math.acos(cosine)
        return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


@dataclass(frozen=True)
class Rows:
    """Of parents with vocabularies of other `sizes`: rows that not all have are those of the
    `own`th, if somebody said whose are right."""

    sources: Sequence[str]
    sizes: Sequence[int | None]
    own: int | None

    def shape(self, name: str, shapes: Sequence[list[int]]) -> list[int]:
        """Of what is made of tensors of these shapes: theirs, or the `own`th's where each has a row
        for each token. Raises Invalid where others differ, or nobody said whose rows are right."""
        other = next((i for i, shape in enumerate(shapes) if shape != shapes[0]), None)
        if other is None:
            return shapes[0]
        words = (f"merge: {name} is {shapes[other]} in {self.sources[other]}, but {shapes[0]} in "
                 f"{self.sources[0]}")  # fmt: skip
        of_tokens = [shape[:1] for shape in shapes] == [[size] for size in self.sizes]
        if not of_tokens or any(shape[1:] != shapes[0][1:] for shape in shapes):
            raise Invalid(words)
        if self.own is None:
            raise Invalid(f"{words}; name by --like the one of them whose rows are right")
        rest = f"rows that not all have are those of {self.sources[self.own]}"
        warnings.warn(f"{words}; {rest}", stacklevel=2)
        return shapes[self.own]

    def combined(
        self, rule: Rule, tensors: Sequence[torch.Tensor], weights: Sequence[float]
    ) -> torch.Tensor:
        """A rule's tensor, of a shape that `shape` allows."""
        if self.own is None or all(tensor.shape == tensors[0].shape for tensor in tensors):
            return rule(tensors, weights)
        common = min(len(tensor) for tensor in tensors)
        made = rule([tensor[:common] for tensor in tensors], weights)
        return torch.cat([made, tensors[self.own][common:]])

    def formula(self) -> str:
        """Whose rows they are, to follow a rule's words; nothing where all have the same number."""
        known = [size for size in self.sizes if size is not None]
        if self.own is None or len({*known}) < 2:
            return ""
        return f"; rows from {min(known)} on: {called(self.sources[self.own])}"
