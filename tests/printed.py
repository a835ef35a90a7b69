"""The numbers of publications, from tests/published/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def printed(name: str) -> dict[str, Any]:
    """A table's numbers with their source."""
    path = Path(__file__).parent / "published" / f"{name}.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
