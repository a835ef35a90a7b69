"""Strict tables: a dataclass is the schema, a TOML table is its constructor call."""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Table = dict[str, Any]
T = TypeVar("T")


class Invalid(ValueError):
    """Bad input from a user: one line that names the key, the value and the remedy. Exit code 2."""

    def __init__(self, line: str) -> None:
        super().__init__(line.replace("\n", " "))  # a key or a path may hold a line break


def read(kind: type[T], table: object, where: str) -> T:
    """Call a dataclass with a TOML table; `where` is the table's dotted name."""
    if not isinstance(table, dict):
        raise Invalid(f"{where.rstrip('.')} = {table!r} is not a table; write it as [{where[:-1]}]")
    hints = typing.get_type_hints(kind)
    names = {f.name.rstrip("_"): f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in table:
        if name not in names:
            raise Invalid(f"{where}{name} = {table[name]!r}: unknown key{near(name, list(names))}")
    values = {
        names[name].name: _value(hints[names[name].name], value, where + name)
        for name, value in table.items()
    }
    for name, item in names.items():
        missing = dataclasses.MISSING
        required = item.default is missing and item.default_factory is missing
        if required and name not in table:
            raise Invalid(f"{where}{name} is missing: add it to the recipe")
    return kind(**values)


def construct(kinds: Mapping[str, Any], table: Table, where: str) -> Any:
    """Call the constructor that a table names with the table's other keys."""
    table = dict(table)
    kind = table.pop("kind", None)
    if kind not in kinds:
        raise Invalid(f"{where}.kind = {kind!r}{near(str(kind), list(kinds))}")
    return read(kinds[kind], table, where + ".")


def near(name: str, names: list[str]) -> str:
    """The remedy for a misspelt name: the nearest known one, or all."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(names))}"


def values(recipe: object) -> Table:
    """The recipe as a plain table, without keys that are None; writes back as TOML."""
    table: Table = {}
    for item in dataclasses.fields(recipe):  # type: ignore[arg-type]
        value = _plain(getattr(recipe, item.name))
        if value is not None:
            table[item.name.rstrip("_")] = value
    return table


def differences(old: Table, new: Table, where: str = "") -> list[str]:
    """What two tables of values disagree on, one "key: old -> new" each."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}{name}.")
        elif a != b:
            found.append(f"{where}{name}: {a!r} -> {b!r}")
    return found


def lay_over(table: Table, assignment: str) -> None:
    """Put the value of "key.key=value" into a file's table, as `--set` does."""
    name, equals, text = assignment.partition("=")
    if not equals:
        raise Invalid(f"--set {assignment}: write it as key.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    except (ValueError, RecursionError) as error:  # of an integer of too many digits, of brackets
        raise Invalid(f"--set {assignment:.60}...: is not TOML: {error}") from error
    *path, last = name.strip().split(".")
    at: Any = table
    for part in path:
        if isinstance(at, list) and part.isdigit() and int(part) < len(at):
            at = at[int(part)]
        elif isinstance(at, dict):
            at = at.setdefault(part, {})
        else:
            raise Invalid(f"--set {assignment}: {part!r} is not a table of the recipe")
    if not isinstance(at, dict):
        raise Invalid(f"--set {assignment}: {name.strip()!r} is not a key of the recipe")
    at[last] = value


def _value(hint: Any, value: object, where: str) -> Any:
    """`value` as the annotated type, or Invalid."""
    if callable(value) or getattr(hint, "_is_protocol", False):
        return value  # a method that build.py has constructed
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in inner:
            if option is not types.NoneType and _fits(option, value):
                return _value(option, value, where)
        named = [option for option in inner if option is not types.NoneType]
        wanted = ["a table" if _is_function(option) else option.__name__ for option in named]
        _refuse(value, where, " or ".join(wanted))
    if hint == Table:
        return (
            _finite(value, where) if isinstance(value, dict) else _refuse(value, where, "a table")
        )
    if origin is dict and isinstance(value, dict):
        return {name: _value(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return read(hint, value, where + ".")  # type: ignore[arg-type]
    if origin is None and _fits(hint, value):
        return float(value) if hint is float else value  # type: ignore[arg-type]
    names = {dict: "a table", tuple: "a list", float: "a finite number"}
    _refuse(value, where, names.get(origin or hint) or str(getattr(hint, "__name__", hint)))


def _finite(value: Any, where: str) -> Any:
    """A free table as it is: nan would not even equal itself when a run is resumed."""
    if isinstance(value, dict):
        return {name: _finite(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(value, where, "a finite number")
    return value


def _refuse(value: object, where: str, wanted: str) -> typing.NoReturn:
    raise Invalid(f"{where} = {value!r}: must be {wanted}")


def _is_function(hint: Any) -> bool:
    return typing.get_origin(hint) is Callable


def _fits(kind: type, value: object) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if _is_function(kind):  # which no table holds
        return False
    if kind is float:  # neither nan, nor inf, nor an integer beyond all floats
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return values(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
