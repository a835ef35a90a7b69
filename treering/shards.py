"""A corpus in shards: a folder of stores, each written by one task of a pipeline.

    FOLDER/00000.{bin,idx,json}   the sidecar says `"shard": 0, "shards": 8`
    FOLDER/00001.{bin,idx,json}   and so on

They are read as one store, in the order of their numbers. A shard may be empty. Each knows how many
there are, so that a folder whose tasks have not all ended is not taken for the whole corpus.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from treering import sidecar
from treering.config import Invalid

NAME = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})\.(idx|bin)")
SAME = ("shards", "tokenizer", "vocabulary")  # facts in which shards of one corpus agree


def prefix(folder: str | Path, number: int) -> str:
    """The store that is shard `number`, counted from 0."""
    return f"{folder}/{number:05d}"


def is_folder(path: str | Path) -> bool:
    """Whether the path is a folder in which there is anything of a shard."""
    return Path(path).is_dir() and any(NAME.fullmatch(file.name) for file in Path(path).iterdir())


def find(folder: str | Path) -> list[str]:
    """The prefixes of all shards, in order. Raises Invalid if one is missing, or they are not of
    one preparation."""
    names = [NAME.fullmatch(file.name) for file in Path(folder).iterdir()]
    numbers = sorted(int(name[1]) for name in names if name and name[2] == "idx")
    if not numbers:
        raise Invalid(f"{folder}: holds no shard (00000.idx, ...); name a store or such a folder")
    first = _facts(folder, numbers[0])
    for number in numbers[1:]:
        facts = _facts(folder, number)
        for key in SAME:
            if facts.get(key) != first.get(key):
                raise Invalid(
                    f"{prefix(folder, number)}: {key} {facts.get(key)}, but {first.get(key)} of "
                    f"shard {numbers[0]}; remove the folder and prepare it anew"
                )
    count = int(first["shards"])
    if len(numbers) < count:
        gap = next(at for at, number in enumerate([*numbers, count]) if at != number)
        raise Invalid(
            f"{prefix(folder, gap)}.idx: missing, {count - len(numbers)} of {count} shards are; "
            "run the pipeline again, which does what is not done"
        )
    return [prefix(folder, number) for number in numbers]


def _facts(folder: str | Path, number: int) -> dict[str, Any]:
    """The facts of a shard that knows itself for one."""
    path = f"{prefix(folder, number)}.json"
    facts = sidecar.read(Path(path)) or {}
    count = facts.get("shards")
    if facts.get("shard") != number or not isinstance(count, int) or number >= count:
        raise Invalid(
            f"{path}: does not say that this is shard {number}; name the store itself, "
            "or restore the folder"
        )
    return facts
