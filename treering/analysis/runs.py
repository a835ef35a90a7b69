"""From the folders that somebody names to arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from treering import records
from treering.analysis.compare import Arm, arms
from treering.config import Invalid
from treering.records import Record


def gather(given: Sequence[str]) -> list[Arm]:
    """The arms of run folders, given as RUN or ARM=RUN, and of studies' folders.

    Raises Invalid for a folder that is neither, or that has no header yet. Of a study those cells
    are taken that have begun.
    """
    runs = [run for text in given for run in _runs(text)]
    if not runs:
        raise Invalid(f"{' '.join(given)}: no run has begun")
    return arms(runs)


def files(given: Sequence[str]) -> list[Path]:
    """The records that `gather` would read, to see whether there is something new."""
    found = []
    for text in given:
        _, folder = _named(text)
        found += [folder / "records.jsonl", *sorted((folder / "runs").glob("*/records.jsonl"))]
    return [path for path in found if path.exists()]


def _runs(text: str) -> Iterator[tuple[str, Sequence[Record]]]:
    name, folder = _named(text)
    if (folder / "records.jsonl").exists():
        yield name, records.read(folder)
    elif (folder / "runs").is_dir():
        for run in sorted((folder / "runs").iterdir()):
            found = records.read(run) if (run / "records.jsonl").exists() else []
            if any(record.get("kind") == "header" for record in found):
                yield run.name, found
    else:
        raise Invalid(f"{text}: is no run folder (it has no records.jsonl) and no study")


def _named(text: str) -> tuple[str, Path]:
    """The name and the folder of RUN or ARM=RUN; a folder's own name may hold a "=" too."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    return Path(text).absolute().name, Path(text)
