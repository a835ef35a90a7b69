"""Tables laid over one another, and the combinations of a grid's values."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from treering.schema import Invalid, Table

Axes = dict[str, list[Any]]


def merged(table: Mapping[str, Any], over: Mapping[str, Any]) -> Table:
    """One table laid over another. Tables within are merged, unless the upper one names a kind."""
    result = dict(table)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, dict) and isinstance(below, dict) and "kind" not in value
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def axes(grid: object, where: str) -> Axes:
    """A grid's axes: its leaves by their dotted keys, each a list of values."""
    if not isinstance(grid, dict):
        raise Invalid(f"{where} = {grid!r}: must be a table, with a list of values for each key")
    found: Axes = {}
    for key, value in grid.items():
        if isinstance(value, dict):
            within = axes(value, f"{where}.{key}")
            found |= {f"{key}.{inner}": values for inner, values in within.items()}
        elif isinstance(value, list) and value:
            found[key] = value
        else:
            raise Invalid(f"{where}.{key} = {value!r}: must be a list of values, and not empty")
    return found


def combinations(found: Axes) -> Iterator[dict[str, Any]]:
    """Every combination of the axes' values; the last axis turns fastest."""
    for values in itertools.product(*found.values()):
        yield dict(zip(found, values, strict=True))


def laid(table: Mapping[str, Any], key: str, value: Any) -> Table:
    """A table with a dotted key at another value; its neighbours stay, whatever their kind. The
    tables of a list are counted from 0: "penalties.0.weight"."""
    first, _, rest = key.partition(".")
    below = table.get(first)
    if rest and isinstance(below, list):
        number = rest.partition(".")[0]
        if not number.isdecimal() or int(number) >= len(below):
            raise Invalid(f"{key}: {first} is a list of {len(below)}; give a number below that")
        by_number = {str(i): each for i, each in enumerate(below)}
        return {**table, first: list(laid(by_number, rest, value).values())}
    if rest:
        value = laid(below if isinstance(below, dict) else {}, rest, value)
        return {**table, first: value}
    return merged(table, {first: value})


def mark(key: str, value: Any) -> str:
    """What a cell's name has of a value: "-rate0.3"; other signs than letters are dashes."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    letters = (letter if letter.isalnum() or letter in "._" else "-" for letter in text)
    return f"-{key.split('.')[-1]}{''.join(letters)}"
