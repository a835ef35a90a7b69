"""Loss by position before and after a context is extended: `python bench/context.py DATA`.

DATA holds five-languages. `recipes/surgeries/short.toml` is trained at 512 tokens, `long.toml`
extends it to 2,048; then both read the same held-out windows of 2,048 tokens, each of one document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from treering import build, config, training
from treering.cache import cache_folder
from treering.store import Store

RECIPES = Path(__file__).parents[1] / "recipes/surgeries"
ENDS = (64, 256, 512, 1024, 1536, 2048)
WINDOWS = 32


def main(data: Path, out: Path, sets: tuple[str, ...]) -> None:
    short = config.load(RECIPES / "short.toml", data=data, sets=sets)
    training.run(short, out / "short")
    begun = f"model.from={out / 'short/model'}"
    longer = config.load(RECIPES / "long.toml", data=data, sets=(*sets, begun))
    training.run(longer, out / "long")
    found = build.data(longer, cache_folder())
    end = int(found.tokenizer.eos_token_id)
    windows = within_documents(found.validation["long"], longer.length, end)
    for name in ("short", "long"):
        losses = by_position(out / name / "model", windows)
        print(json.dumps({"model": name, "windows": len(windows)} | {
            f"{a}-{b}": round(float(losses[a:b].mean()), 4)
            for a, b in pairwise((0, *ENDS))
        }))  # fmt: skip


def within_documents(store: Store, length: int, end: int) -> torch.Tensor:
    """Windows from the beginnings of documents that are long enough, int64[n, length + 1]."""
    tokens = store.read(np.arange(store.samples(1)), 1)[:, 0].astype(np.int64)
    ends = np.flatnonzero(tokens == end)
    whole = [a for a, b in pairwise(ends) if b - a > length]
    return torch.from_numpy(np.stack([tokens[a : a + length + 1] for a in whole[:WINDOWS]]))


@torch.no_grad()
def by_position(folder: Path, windows: torch.Tensor) -> np.ndarray:
    """Mean loss in nats of the prediction at each position, float32[length]."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = []
    for window in windows:
        logits = model(window[None, :-1]).logits[0]
        rows.append(functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(rows).mean(0).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="keeps the runs")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        main(given.data, given.out or Path(name), tuple(given.sets))
