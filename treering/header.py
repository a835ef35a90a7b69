"""What made a run: its recipe, its phases, its model's size, versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from treering import model, schema
from treering.build import Data
from treering.config import Recipe
from treering.forward import Forward, name
from treering.learner import Learner
from treering.speed import Speed, peak


def header(recipe: Recipe, data: Data, learner: Learner) -> dict[str, Any]:
    """The first record of each sitting."""
    names = [phase.name for phase in recipe.phases]
    total, multiplying = model.count(learner.forward.root.model)
    return {
        "recipe": schema.values(recipe),
        "identity": data.identity,
        "phases": [
            {"name": name, "end_step": sum(data.steps[: i + 1])} for i, name in enumerate(names)
        ],
        "parameters": total,
        "multiplying_parameters": multiplying,
        "flops_per_token": learner.flops_per_token,
        "speed": speed(recipe, learner).described(),
        **_machine(recipe, learner.forward),
    }


def speed(recipe: Recipe, learner: Learner) -> Speed:
    """What the run's speed is measured in."""
    forward = learner.forward
    layers, width = model.shape(forward.root.model)
    hardware = _hardware(recipe, forward)
    return Speed(
        learner.flops_per_token,
        learner.flops_per_token - 6.0 * layers * width * recipe.length,
        forward.mesh.world,
        peak(hardware["device"], hardware["precision"]),
    )


def _machine(recipe: Recipe, forward: Forward) -> dict[str, Any]:
    versions = {name: _version(name) for name in ("treering", "torch", "transformers", "numpy")}
    return {
        "versions": versions | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": _hardware(recipe, forward),
    }


def _hardware(recipe: Recipe, forward: Forward) -> dict[str, Any]:
    on_gpu = forward.mesh.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": forward.mesh.world,
        "precision": name(recipe.compute.precision, forward.dtype),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source that runs, where it is a checkout."""
    here = Path(__file__).parent
    if not (here.parent / ".git").exists():
        return None
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return asked.stdout.strip() or None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
