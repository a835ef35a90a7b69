"""What a run would do and cost, before anything is written."""

from __future__ import annotations

import dataclasses
import os
import time

import torch
from rich.console import Console
from rich.table import Table

from treering import branch, build, cache, config
from treering.config import Recipe
from treering.footprint import Footprint, footprint
from treering.loop import train
from treering.mesh import Mesh, device

APART = "evaluations, meta-updates, penalties and teachers"
STEPS = 3  # of a trial; the fastest counts


def show(recipe: Recipe, cache_folder: str | None, devices: int | None, console: Console) -> None:
    """Print the resolved recipe, and steps, tokens, FLOPs, memory and time of the run, as that of
    so many `devices` (None: those that its mesh names).

    Text that was never prepared is prepared into the cache. The model has no memory until then; it
    is made for the time alone, which is that of a few steps trained without compilation: a long
    compiled run undercuts it.
    """
    data = build.data(recipe, cache.cache_folder(cache_folder))
    console.print(config.to_toml(recipe), highlight=False, markup=False)
    tokens, fresh = _plan(recipe, data, console)
    world = recipe.mesh.replicate * (recipe.mesh.shard or 1) if devices is None else devices
    found = footprint(recipe, data, world)
    console.print(f"parameters  {found.parameters:,}")
    beside = branch.steps(recipe)
    if beside:
        tokens += beside * recipe.batch.tokens
        console.print(f"branches    {beside:,} steps more, annealed")
    console.print(f"FLOPs       {tokens * found.flops_per_token:.3g}, {APART} apart")
    for line in _memory(found, world):
        console.print(line, highlight=False, soft_wrap=True)
    if der := found.recorded * fresh:
        console.print(f"disk        {_size(der)} at most of recorded predictions")
    there = device()
    if world > 1:
        console.print(f"time        not tried: {world} processes are asked for, this is one")
    elif found.on(there) > (room := _room(there)):
        console.print(f"time        not tried: {there.type} has {_size(room)}")
    else:
        minutes, steps = _trial(recipe, data, Mesh(device=there))
        console.print(f"time        about {minutes:,.1f} minutes, from {steps} uncompiled steps")


def _memory(found: Footprint, world: int) -> list[str]:
    parts = found.held | {"gathered weights": found.gathered, "activations": found.activations}
    each = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    hosts = [f"{_size(size)} of {name}" for name, size in found.host.items()]
    hosts.append(f"{_size(found.staged)} while a checkpoint is written")
    return [
        f"memory      {_size(found.peak)} on each of {world} in {found.precision}: {each}",
        f"            and {', '.join(hosts)} on its host",
    ]


def _size(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / 2**20:,.2f} MiB"


def _room(there: torch.device) -> int:
    """Bytes of the memory of a device."""
    if there.type == "cuda":
        return torch.cuda.mem_get_info(there)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _trial(recipe: Recipe, data: build.Data, mesh: Mesh) -> tuple[float, int]:
    """(minutes of the run, steps that were tried)."""
    plain = dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, compile=False))
    parts = build.parts(plain, data, mesh)
    timed = []
    batches = parts.stream.batches(data.planner.start())
    mark = time.monotonic()
    for done in train(parts.learner, parts.update, batches, parts.rules):
        float(done.metrics.loss)  # waits for the device
        timed.append(time.monotonic() - mark)
        if len(timed) == min(STEPS, sum(data.steps)):
            break
        mark = time.monotonic()
    return min(timed) * (sum(data.steps) + branch.steps(recipe)) / 60, len(timed)


def _plan(recipe: Recipe, data: build.Data, console: Console) -> tuple[int, int]:
    """Walk the plan without reading a token; print its phases and return all trained tokens, and
    how many rows were fresh."""
    table = Table("phase", "steps", "fresh tokens", "replayed tokens", "share")
    state, trained, first = data.planner.start(), 0, 0
    for phase, steps in zip(recipe.phases, data.steps, strict=True):
        rows = replayed = 0
        for _ in range(steps):
            plan = data.planner.plan(state, data.steps)
            rows, replayed = rows + len(plan.refs), replayed + int(plan.replayed.sum())
            state = plan.after
        fresh, share = (rows - replayed) * recipe.length, f"{replayed / rows:.2%}"
        table.add_row(
            phase.name, f"{steps:,}", f"{fresh:,}", f"{replayed * recipe.length:,}", share
        )
        trained, first = trained + rows * recipe.length, first + rows - replayed
    console.print(table)
    each = zip(data.planner.names, state.positions, data.planner.sizes, strict=True)
    epochs = ", ".join(f"{name} {taken / size:.2f}" for name, taken, size in each if taken)
    said = f"epochs      {epochs}; replay apart"
    console.print(said, highlight=False, markup=False, soft_wrap=True)
    return trained, first
