"""What bench/ calls is there: the script for one accelerator goes its ways on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]


@pytest.mark.timeout(400)
def test_the_accelerators_bench_goes_its_ways_on_a_cpu() -> None:
    command = [sys.executable, str(HOUSE / "bench/gpu.py"), "--smoke"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, timeout=390)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "meta-update, anchor on cpu" in done.stdout
