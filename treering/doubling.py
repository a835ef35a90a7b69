"""Which layers a deeper model had best double: those that change what passes through them least.

    s_l = mean over tokens of cos(h_l, h_(l + 1))

h_l goes into layer l, h_(l + 1) comes out of it. The layers that Yi-9B doubles, 16 in the middle of
Yi-6B's 32, are of that kind (arXiv 2403.04652, section 7.3): the deeper model begins near the old.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from treering import text as texts
from treering.config import Invalid
from treering.mesh import device
from treering.model import blocks
from treering.tokenizer import end_of_text, plain_backend

TOKENS = 100_000  # that are read


def windows(
    words: PreTrainedTokenizerBase, corpus: Sequence[str], field: str, length: int
) -> NDArray[np.int64]:
    """The first tokens of each part of the corpus, one document after the other, int64[n, length].
    Raises Invalid for a corpus without one window."""
    if length < 1:
        raise Invalid(f"--length {length}: must be at least 1 token")
    ids, end, backend = list[int](), end_of_text(words), plain_backend(words)
    for part, path in enumerate(corpus, 1):
        for document in texts.documents(path, field=field):
            ids += [*backend.encode(document, add_special_tokens=False).ids, end]
            if len(ids) >= TOKENS * part // len(corpus):
                break
    count = min(len(ids), TOKENS) // length
    if not count:
        raise Invalid(f"--corpus {' '.join(corpus)}: has {len(ids)} tokens, fewer than --length "
                      f"{length}; give more text, or a smaller length")  # fmt: skip
    return np.array(ids[: count * length]).reshape(count, length)


@torch.no_grad()
def similarities(model: PreTrainedModel, rows: NDArray[np.int64]) -> list[float]:
    """s of each layer, over windows int64[n, length]. Raises Invalid where the model has fewer
    positions."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most and rows.shape[1] > most:
        raise Invalid(f"--length {rows.shape[1]}: the model has {most} positions")
    layers, there = blocks(model), device()
    sums = torch.zeros(len(layers), dtype=torch.float64, device=there)

    def passed(layer: int, given: tuple[Any, ...], named: dict[str, Any], made: Any) -> None:
        before = given[0] if given else named["hidden_states"]
        after = made[0] if isinstance(made, tuple) else made
        cosines = functional.cosine_similarity(before.float(), after.float(), dim=-1)
        sums[layer] += cosines.sum()

    model.to(there).eval()  # type: ignore[arg-type]
    hooks = [
        layer.register_forward_hook(
            lambda _, given, named, made, place=place: passed(place, given, named, made),
            with_kwargs=True,
        )
        for place, layer in enumerate(layers)
    ]
    for row in track(rows, "reading", console=Console(stderr=True), transient=True):
        model(torch.from_numpy(row)[None].to(there), use_cache=False)
    for hook in hooks:
        hook.remove()
    found: list[float] = (sums / rows.size).tolist()
    return found


def window(similar: Sequence[float], count: int) -> tuple[int, int]:
    """[a, b) of the `count` neighbours that are the most similar in the mean, the first of equals.
    Raises Invalid where there are not as many."""
    if not 1 <= count <= len(similar):
        raise Invalid(f"--double {count}: the model has {len(similar)} layers")
    means = [sum(similar[a : a + count]) for a in range(len(similar) - count + 1)]
    a = means.index(max(means))
    return a, a + count
