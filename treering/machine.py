"""What a run ran on: versions, commit, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from treering.learner import Forward


def facts(forward: Forward) -> dict[str, Any]:
    """The header's account of software and hardware."""
    versions = {name: _version(name) for name in ("treering", "torch", "transformers", "numpy")}
    on_gpu = forward.device.type == "cuda"
    return {
        "versions": versions | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": {
            "device": torch.cuda.get_device_name() if on_gpu else _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "precision": "bf16" if forward.dtype is not None else "fp32",
        },
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
    asked = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
