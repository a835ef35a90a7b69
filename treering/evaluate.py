"""Held-out loss of every corpus."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from treering.config import Invalid
from treering.forward import Forward
from treering.learner import Learner
from treering.store import Store


@dataclass(frozen=True)
class HeldOut:
    """The windows on which a corpus is scored, always the same.

    tokens int64[n, length + 1]; bytes: that the n * length scored tokens decode to, or None where
    the store does not say which tokenizer made it.
    """

    corpus: str
    tokens: NDArray[np.int64]
    bytes: int | None


@dataclass(frozen=True)
class Score:
    """loss in nats/token over `tokens` predicted tokens; bits_per_byte over the bytes that these
    decode to, comparable between tokenizers."""

    loss: float
    bits_per_byte: float | None
    tokens: int


def held_out(
    corpus: str, store: Store, lengths: NDArray[np.int64], *, length: int, tokens: int
) -> HeldOut:
    """Windows spread evenly over a validation store, `tokens` predictions in all (0 = every one).

    lengths int64[vocabulary]: bytes of each token. Raises Invalid for a store without one window.
    """
    samples = store.samples(length)
    if samples == 0:
        raise Invalid(
            f"corpora.{corpus}.validation: {store.tokens} tokens are less than one window of "
            f"length {length} + 1; give more held-out text or a smaller length"
        )
    n = min(samples, math.ceil(tokens / length)) if tokens else samples
    windows = store.read(np.arange(n) * samples // n, length).astype(np.int64)
    if int(windows.max()) >= len(lengths):
        raise Invalid(
            f"store {store.path}: token id {int(windows.max())} is beyond the vocabulary of "
            f"{len(lengths)}; prepare the text with the model's tokenizer"
        )
    known = store.tokenizer is not None
    return HeldOut(corpus, windows, int(lengths[windows[:, 1:]].sum()) if known else None)


def scores(
    learner: Learner, branches: Mapping[str, Sequence[torch.Tensor]], text: HeldOut
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record (kind, fields) of the weights as they stand, then that of each branch."""
    corpus = {"corpus": text.corpus}
    yield "score", corpus | dataclasses.asdict(score(learner.forward, text))
    for name, weights in branches.items():
        with learner.standing_in(weights):
            found = score(learner.forward, text)
        yield "branch_score", corpus | dataclasses.asdict(found) | {"branch": name}


@torch.no_grad()
def score(forward: Forward, text: HeldOut) -> Score:
    """Mean loss over all predictions of the windows, summed in float64; each rank has its rows."""
    forward.root.eval()
    losses = [
        forward(tokens, rows)[1].double() for tokens, rows in forward.micro_batches(text.tokens)
    ]
    forward.settle()
    loss = float(forward.mesh.sum(torch.cat(losses).sum()) / len(text.tokens))
    predicted = len(text.tokens) * (text.tokens.shape[1] - 1)
    bits = loss * predicted / math.log(2)
    return Score(loss, bits / text.bytes if text.bytes else None, predicted)
