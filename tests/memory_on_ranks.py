"""What test_footprint.py has done on ranks, as a program of its own: `memory_on_ranks.py RECIPE
SET...` trains a few steps, and prints as JSON what each rank held and took at its height."""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

import torch

from treering import build, config
from treering.loop import train
from treering.mesh import Mesh, joined
from treering.spread import local

STEPS = 3


def kibibytes(name: str) -> int:
    """Of this process: VmRSS, what it holds in memory, or VmHWM, the most it held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def measure(recipe: config.Recipe, data: build.Data, mesh: Mesh) -> dict[str, int]:
    """Bytes of what is held by kind, and at the height of a few steps above the start."""
    before = kibibytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the height so far is forgotten
    parts = build.parts(recipe, data, mesh)
    learner, update = parts.learner, parts.update
    batches = parts.stream.batches(data.planner.start())
    for _ in islice(train(learner, update, batches, parts.rules), STEPS):
        pass
    peak = kibibytes("VmHWM") - before
    batch, _ = next(batches)
    held = learner.state() | update.state(learner) | {"gradients": learner.gradient(batch)}
    found = {name: sum(local(t).nbytes for t in each) for name, each in held.items()}
    return found | {"peak": peak * 2**10}


def main(path: Path, sets: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    recipe, small = config.load(path, sets=sets), config.load(path)
    with joined(recipe.mesh) as mesh:
        cache = path.parent / "cache"
        data = mesh.first(lambda: build.data(recipe, cache))
        measure(small, mesh.first(lambda: build.data(small, cache)), mesh)  # all code is loaded
        found = mesh.gather(measure(recipe, data, mesh))
        if mesh.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), tuple(sys.argv[2:]))
