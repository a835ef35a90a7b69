"""One reader in a process of its own, as `readers.py` starts it: one epoch of samples in random
order, each batch an int64 tensor [rows, length + 1]. It prints one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import sys
import time
import types
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from loaders import READERS, WRITERS, Work
from numpy.typing import NDArray

PLACES = (0.5, 0.99)  # of the epoch, where reading is taken up again
SECONDS = 2.0  # of reading, at most


def digest(rows: Iterable[NDArray[np.int64]]) -> str:
    """A name for samples, whatever their order."""
    each = sorted(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return hashlib.sha256(b"".join(each)).hexdigest()


def check(name: str, work: Work) -> dict[str, object]:
    """Reads the whole epoch, and keeps the state at each of the places."""
    batches, state = READERS[name](work, None)
    marks = {int(place * work.samples) // work.rows: place for place in PLACES}
    seen, following = [], {}
    for number, batch in enumerate(batches):
        assert batch.dtype == torch.int64
        seen += list(batch.numpy())
        if number in marks:
            following[str(marks[number])] = digest(batch.numpy())
        if number + 1 in marks and not work.workers:
            path = work.folder / f"{name}-{marks[number + 1]}.state"
            path.write_bytes(pickle.dumps(state()))
    return {"samples": len(seen), "all": digest(seen), "following": following}


def read(name: str, work: Work, place: str, began: float) -> dict[str, object]:
    """The time to the first batch from a place on; the rate after it, from the start on."""
    state = pickle.loads((work.folder / f"{name}-{place}.state").read_bytes()) if place else None
    made = time.monotonic()
    batches, _ = READERS[name](work, state)
    first = next(batches, None)
    here = time.monotonic()
    took = {"from process start": here - began, "from construction": here - made}
    if place or first is None:  # a shuffle buffer that is lost may hold all that was left
        return {"first": "" if first is None else digest(first.numpy()), **took}
    tokens = 0
    for batch in batches:
        tokens += work.length * len(batch)
        if time.monotonic() - here > SECONDS:
            break
    return {"tokens/s": tokens / (time.monotonic() - here)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["write", "check", "read"])
    parser.add_argument("reader", choices=list(READERS))
    parser.add_argument("--folder", type=Path, required=True)
    for number in ("length", "rows", "samples", "workers"):
        parser.add_argument(f"--{number}", type=int, required=True)
    parser.add_argument("--place", default="")
    parser.add_argument("--began", type=float, default=0.0)
    asked = parser.parse_args()
    if asked.reader == "mosaicml":  # its images need torchvision built for this very torch
        sys.modules["streaming.vision"] = types.ModuleType("streaming.vision")
    work = Work(asked.folder, asked.length, asked.rows, asked.samples, asked.workers)
    result: object = None
    if asked.what == "write":
        WRITERS[asked.reader](work)
    elif asked.what == "check":
        result = check(asked.reader, work)
    else:
        result = read(asked.reader, work, asked.place, asked.began)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
