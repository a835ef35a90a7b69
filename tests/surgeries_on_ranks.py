"""What test_surgeries.py has done on two ranks, as a program of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import tiny
import torch

KIND = "qwen3"
SURGERIES = {
    "weights": "surgeries=[{kind='depth', window=[0, 2]}, {kind='vocabulary', rows='noise'}]",
    "pieces": "surgeries=[{kind='vocabulary', rows='pieces', multiple=64}]",
    "rows": "surgeries=[{kind='context', length=4096, theta=500_000.0}]",
    "yarn": "surgeries=[{kind='context', length=4096, scaling='yarn', original=32}]",
}
PHASE = "phases=[{name='one', tokens=640, mixture={fr=1.0}}]"


def begin_with(place: Path, kind: str) -> str:
    return f"model={{from='{place / kind}'}}"


def sets(place: Path, name: str) -> tuple[str, ...]:
    words = "extended" if "vocabulary" in SURGERIES[name] else KIND
    return begin_with(place, KIND), f"tokenizer={{from='{place / words}'}}", SURGERIES[name], PHASE


def main(place: Path) -> None:
    torch.set_num_threads(1)
    for name in SURGERIES:
        tiny.run(place / "without-tokenizer.toml", place / f"two-{name}", *sets(place, name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
