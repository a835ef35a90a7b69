"""Whether a value read from JSON looks as whoever wrote it made it.

int, str, dict   of that type         [shape]            a list of these
float            finite, or null      {"name": shape}    a table with these names, and any others
object           what TOML can say    {"name?": shape}   where the name is there
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST = 1e100  # no number that we write is as large, and sums of its squares are finite


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """The first part of a value that is not as its shape says: its place, and what it is."""
    if isinstance(shape, Mapping) and isinstance(value, dict):
        return _of_table(value, shape, where)
    if shape is object and isinstance(value, dict):
        return _of_table(value, dict.fromkeys(value, object), where)
    if isinstance(value, list) and (shape is object or isinstance(shape, list)):
        each = shape[0] if isinstance(shape, list) else shape
        found = (misfit(item, each, f"{where}[{i}]") for i, item in enumerate(value))
        return next((wrong for wrong in found if wrong), None)
    fits = isinstance(shape, type) and _fits(value, shape)
    return None if fits else f"{where} = {str(value)[:40]}"


def _of_table(table: dict[str, Any], shape: Mapping[str, Any], where: str) -> str | None:
    for name, part in shape.items():
        key = name.removesuffix("?")
        place = f"{where}.{key}".lstrip(".")
        if key in table:
            wrong = misfit(table[key], part, place)
        else:
            wrong = None if name.endswith("?") else f"{place} is missing"
        if wrong:
            return wrong
    return None


def _fits(value: Any, kind: type) -> bool:
    if kind is float and value is None:
        return True
    if kind in (int, float):
        number = isinstance(value, int) or (kind is float and isinstance(value, float))
        return number and not isinstance(value, bool) and abs(value) < MOST
    return isinstance(value, kind) and value is not None
