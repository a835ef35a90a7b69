"""More rows for a tokenizer that has grown: see `treering extend-tokenizer`.

A new token's row, in the table and in a head of its own, is the mean of the rows of its pieces: the
tokens that it was spelled with before (arXiv 2402.14714), or those of a description of it. `noise`
is a draw from the table's rows taken as one normal distribution, coordinate by coordinate (Hewitt
2021). Rows that fill up to a multiple are the mean of all.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import bpe, tokenizer
from treering.config import Invalid
from treering.methods.surgeries.rebuilt import rebuilt, tensors
from treering.protocols import Origin
from treering.rng import generator
from treering.schema import near


@dataclass(frozen=True)
class Vocabulary:
    """`rows` = "pieces" or "noise". `descriptions` of new tokens, by token, come before either. The
    rows' number becomes one of `multiple`, and is never less than it was."""

    rows: str = "pieces"
    descriptions: dict[str, str] = field(default_factory=dict)
    multiple: int = 1
    by_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.rows not in ("pieces", "noise"):
            raise Invalid(f"surgeries.rows = {self.rows!r}: must be 'pieces' or 'noise'")
        if self.multiple < 1:
            raise Invalid(f"surgeries.multiple = {self.multiple}: must be at least 1 row")

    def __call__(self, model: PreTrainedModel, origin: Origin) -> PreTrainedModel:
        """Raises Invalid where the run's tokenizer is not the model's own with tokens added."""
        if origin.source is None:
            raise Invalid("surgeries: a fresh model has the tokenizer's vocabulary; "
                          "leave kind = 'vocabulary' out, or give model.from")  # fmt: skip
        pieces = self._pieces(origin.tokenizer, tokenizer.load(origin.source))
        old, grown = tensors(model), _tables(model)
        count = max(len(old[grown[0]]), tokenizer.size(origin.tokenizer))
        count = -(-count // self.multiple) * self.multiple
        settings = copy.deepcopy(model.config)
        settings.get_text_config().vocab_size = count

        def weight(name: str) -> torch.Tensor:
            if name not in grown:
                return old[name]
            made = self._rows(old[name].view(len(old[name]), -1), count, pieces, origin.seed, name)
            return made.view(count, *old[name].shape[1:])

        return rebuilt(model, settings, weight)

    def _rows(
        self, old: torch.Tensor, count: int, pieces: dict[int, list[int]], seed: int, name: str
    ) -> torch.Tensor:
        """float32[count, width] of float32[rows, width]."""
        mean = old.mean(dim=0, keepdim=True)
        made = torch.cat([old, mean.expand(count - len(old), -1)])
        if not pieces:
            return made
        new = torch.tensor(list(pieces), device=old.device)
        if self.rows == "noise":
            random = generator(seed, "vocabulary", name)
            noise = random.standard_normal((len(new), old.shape[1]), "float32")
            drawn = torch.from_numpy(noise).to(old.device)
            made[new] = mean + old.std(dim=0, keepdim=True, correction=0) * drawn
        bags = {i: bag for i, bag in pieces.items() if bag}
        if bags:
            flat = torch.tensor([piece for bag in bags.values() for piece in bag])
            starts = torch.tensor([0, *accumulate(len(bag) for bag in bags.values())][:-1])
            means = functional.embedding_bag(
                flat.to(old.device), old, starts.to(old.device), mode="mean"
            )
            made[torch.tensor(list(bags), device=old.device)] = means
        return made

    def _pieces(
        self, words: PreTrainedTokenizerBase, base: PreTrainedTokenizerBase
    ) -> dict[int, list[int]]:
        """The old ids that each new one is made of; none where noise takes their place."""
        new = bpe.added(words, base)
        for token in self.descriptions:
            if token not in new:
                raise Invalid(f"surgeries.descriptions: {token!r} is not new{near(token, [*new])}")
        plain = [t for t in new if t not in self.descriptions and self.rows == "pieces"]
        pieces: dict[str, list[int]] = {token: [] for token in new}
        pieces |= bpe.spelled(plain, words, base)
        backend = tokenizer.plain_backend(base)
        for token, text in self.descriptions.items():
            pieces[token] = backend.encode(text, add_special_tokens=False).ids
        for token, found in pieces.items():
            if not found and (self.rows == "pieces" or token in self.descriptions):
                raise Invalid(f"surgeries: {token!r} has no pieces in the model's own tokenizer; "
                              "describe it in `descriptions`, or use rows = 'noise'")  # fmt: skip
        return {i: pieces[token] for token, i in new.items()}


def _tables(model: PreTrainedModel) -> list[str]:
    """The names of what has a row for each token: the table first, and a head that is not tied."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = [model.get_input_embeddings().weight, *([] if head is None else head.parameters())]
    names = {id(param): name for name, param in model.named_parameters()}
    return [names[id(param)] for param in found]
