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
from scipy import stats
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
    losses = {name: by_position(out / name / "model", windows) for name in ("short", "long")}
    for name, each in losses.items():
        print(json.dumps({"model": name, "windows": len(windows)} | {
            f"{a}-{b}": round(float(each[:, a:b].mean()), 4) for a, b in pairwise((0, *ENDS))
        }))  # fmt: skip
    for a, b in ((0, short.length), (short.length, longer.length)):
        difference = (losses["long"] - losses["short"])[:, a:b].mean(1)
        half = float(stats.sem(difference) * stats.t.ppf(0.975, len(difference) - 1))
        print(json.dumps({"long - short": f"{a}-{b}", "mean": round(float(difference.mean()), 4),
                          "half of the 95% interval": round(half, 4)}))  # fmt: skip


def within_documents(store: Store, length: int, end: int) -> torch.Tensor:
    """Windows from the beginnings of documents that are long enough, int64[n, length + 1]."""
    tokens = store.read(np.arange(store.samples(1)), 1)[:, 0].astype(np.int64)
    ends = np.flatnonzero(tokens == end)
    whole = [a for a, b in pairwise(ends) if b - a > length]
    return torch.from_numpy(np.stack([tokens[a : a + length + 1] for a in whole[:WINDOWS]]))


@torch.no_grad()
def by_position(folder: Path, windows: torch.Tensor) -> np.ndarray:
    """Loss in nats of the prediction at each position of each window, float32[n, length]."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = []
    for window in windows:
        logits = model(window[None, :-1]).logits[0]
        rows.append(functional.cross_entropy(logits, window[1:], reduction="none"))
    return torch.stack(rows).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, help="keeps the runs")
    parser.add_argument("--set", action="append", default=[], dest="sets", metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        main(given.data, given.out or Path(name), tuple(given.sets))
