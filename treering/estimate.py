"""What a run would do and cost, before anything is written."""

from __future__ import annotations

import dataclasses
import time

from rich.console import Console
from rich.table import Table

from treering import build, cache, config, model
from treering.config import Recipe
from treering.loop import train
from treering.mesh import Mesh

STEPS = 3  # of a trial, the first of them not timed


def show(recipe: Recipe, cache_folder: str | None, console: Console) -> None:
    """Print the resolved recipe, and steps, tokens, FLOPs, memory and time of the run.

    Text that was never prepared is prepared into the cache. The time is that of a few steps
    trained in memory without compilation, which a long compiled run undercuts.
    """
    console.print(config.to_toml(recipe), highlight=False, markup=False)
    data = build.data(recipe, cache.cache_folder(cache_folder))
    plain = dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, compile=False))
    parts = build.parts(plain, data, Mesh())
    tokens = _plan(recipe, data, console)
    learner = parts.learner
    total, _ = model.count(learner.forward.root.model)
    tensors = learner.state() | {"gradients": list(learner.params)}
    tensors |= {f"update.{name}": found for name, found in parts.update.state(learner).items()}
    console.print(f"parameters  {total:,}")
    console.print(f"FLOPs       {tokens * learner.flops_per_token:.3g}, evaluations apart")
    sizes = {name: sum(t.nbytes for t in found) for name, found in tensors.items()}
    parted = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in sizes.items())
    console.print(f"memory      {sum(sizes.values()) / 2**20:,.1f} MiB and activations ({parted})")
    timed = []
    batches = parts.stream.batches(data.planner.start())
    mark = time.monotonic()
    for done in train(learner, parts.update, batches, parts.rules):
        float(done.metrics.loss)  # waits for the device
        timed.append(time.monotonic() - mark)
        if len(timed) == min(STEPS, sum(data.steps)):
            break
        mark = time.monotonic()
    minutes = min(timed) * sum(data.steps) / 60
    console.print(f"time        about {minutes:,.1f} minutes, from {len(timed)} uncompiled steps")


def _plan(recipe: Recipe, data: build.Data, console: Console) -> int:
    """Walk the plan without reading a token; print its phases and return all trained tokens."""
    table = Table("phase", "steps", "fresh tokens", "replayed tokens", "share")
    state, trained = data.planner.start(), 0
    for phase, steps in zip(recipe.phases, data.steps, strict=True):
        rows = replayed = 0
        for _ in range(steps):
            plan = data.planner.plan(state, data.steps)
            rows, replayed = rows + len(plan.refs), replayed + int(plan.replayed.sum())
            state = plan.after
        fresh = (rows - replayed) * recipe.length
        share = f"{replayed / rows:.2%}"
        table.add_row(
            phase.name, f"{steps:,}", f"{fresh:,}", f"{replayed * recipe.length:,}", share
        )
        trained += rows * recipe.length
    console.print(table)
    return trained
