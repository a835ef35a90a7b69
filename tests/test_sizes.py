"""The table of docs/performance.md is what bench/sizes.py prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parents[1]


def test_the_table_is_that_of_the_script() -> None:
    command = [sys.executable, str(HOUSE / "bench" / "sizes.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed and printed in (HOUSE / "docs" / "performance.md").read_text()
