"""Arms: equal runs but for their seeds, from records or from the folders that somebody names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from treering.analysis.matrix import branches_of, header_of
from treering.config import Invalid
from treering.records import Record, read
from treering.shape import misfit

STUDY = [{"name": str, "group": str, "baseline?": str}]  # study.json: see conduct.py


@dataclass(frozen=True)
class Arm:
    """Equal runs but for their seeds; `branch`: judged by weights beside the trained ones;
    `baseline`: the arm that its study compares it to, None = the comparison's own."""

    name: str
    runs: Mapping[int, Sequence[Record]]
    branch: str | None = None
    baseline: str | None = None

    def shares(self, runs: Sequence[Sequence[Record]]) -> bool:
        """Whether one of the runs is among its own."""
        return any(own is run for own in self.runs.values() for run in runs)


def arms(runs: Sequence[tuple[str, Sequence[Record]]]) -> list[Arm]:
    """Runs grouped into arms by their recipes' identity but for the seed, in the order given.

    A run comes with its arm's name or its folder's; an arm is named after its first run, without
    the seed at the end. Raises Invalid where two runs of an arm have the same seed.
    """
    groups: dict[str, dict[int, tuple[str, Sequence[Record]]]] = {}
    for name, records in runs:
        header = header_of(records)
        seed = int(header["recipe"]["seed"])
        identity: Record = header.get("identity") or header["recipe"]
        key = json.dumps({k: v for k, v in identity.items() if k != "seed"}, sort_keys=True)
        group = groups.setdefault(key, {})
        if seed in group:
            raise Invalid(f"{name}: the recipe and the seed {seed} are those of {group[seed][0]}; "
                          "name one of them")  # fmt: skip
        group[seed] = name, records
    found = []
    for group in groups.values():
        shown = _without_seed({seed: name for seed, (name, _) in group.items()})
        found += branched(shown, {seed: records for seed, (_, records) in group.items()})
    return _distinct(found)


def _without_seed(names: Mapping[int, str]) -> str:
    """What an arm's runs are called but for the seed: "mer-seed0" is "mer"; "mer-0" is so only
    where another seed confirms it, since the number may be the method's."""
    stems = {re.sub(rf"[-_.]({seed}|s{seed})$", "", name) for seed, name in names.items()}
    if len(names) > 1 and len(stems) == 1:
        return stems.pop()
    seed, name = next(iter(names.items()))
    return re.sub(rf"([-_.]?seed[-_=]?|[-_.]s){seed}$", "", name) or name


def _distinct(arms: Sequence[Arm]) -> list[Arm]:
    """The arms with names that several have numbered."""
    taken: list[str] = []
    for arm in arms:
        name, k = arm.name, 1
        while name in taken:
            k += 1
            name = f"{arm.name} ({k})"
        taken.append(name)
    return [replace(arm, name=name) for arm, name in zip(arms, taken, strict=True)]


def branched(
    name: str, runs: Mapping[int, Sequence[Record]], baseline: str | None = None
) -> list[Arm]:
    """The arm of some runs, and one for each of their branches."""
    by_branch: dict[str | None, dict[int, Sequence[Record]]] = {None: dict(runs)}
    for seed, records in runs.items():
        for branch in branches_of(records):
            by_branch.setdefault(branch, {})[seed] = records
    return [
        Arm(f"{name}, {branch}" if branch else name, found, branch, baseline)
        for branch, found in by_branch.items()
    ]


@dataclass(frozen=True)
class _Run:
    """A run that is named, or one of a study; of the latter as `study.json` says."""

    name: str
    records: Sequence[Record]
    study: Path | None = None
    group: str | None = None
    baseline: str | None = None


def gather(given: Sequence[str]) -> list[Arm]:
    """The arms of run folders, given as RUN or ARM=RUN, and of studies' folders, which know their
    baselines.

    Raises Invalid for a folder that is neither, or that has no header yet. Of a study those cells
    are taken that have begun.
    """
    runs = [run for text in given for run in _runs(text)]
    if not runs:
        raise Invalid(f"{' '.join(given)}: no run has begun")
    found = arms([(run.name, run.records) for run in runs])
    return [replace(arm, baseline=_baseline(arm, found, runs)) for arm in found]


def files(given: Sequence[str]) -> list[Path]:
    """What `gather` would read, to see whether there is something new."""
    found = []
    for text in given:
        _, folder = named(text)
        found += [folder / "records.jsonl", folder / "study.json"]
        found += sorted((folder / "runs").glob("*/records.jsonl"))
    return [path for path in found if path.exists()]


def _baseline(arm: Arm, arms: Sequence[Arm], runs: Sequence[_Run]) -> str | None:
    """The arm to which an arm's study compares it, by the name that it has here."""
    own = next(run for run in runs if arm.shares([run.records]))
    there = [r.records for r in runs if r.study == own.study and r.group == own.baseline]
    found = (other.name for other in arms if other.branch is None and other.shares(there))
    return None if own.baseline is None else next(found, own.baseline)


def _runs(text: str) -> Iterator[_Run]:
    name, folder = named(text)
    if (folder / "records.jsonl").exists():
        yield _Run(name, read(folder))
    elif (folder / "runs").is_dir():
        cells = _cells(folder / "study.json")
        for run in sorted((folder / "runs").iterdir()):
            found = read(run) if (run / "records.jsonl").exists() else []
            if any(record.get("kind") == "header" for record in found):
                said = cells.get(run.name, {})
                yield _Run(run.name, found, folder, said.get("group"), said.get("baseline"))
    else:
        raise Invalid(f"{text}: is no run folder (it has no records.jsonl) and no study")


def _cells(path: Path) -> dict[str, dict[str, str]]:
    """What a study says of its cells, by their names; nothing of one that has no file of it."""
    if not path.exists():
        return {}
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))
        wrong = misfit(cells, STUDY)
    except (ValueError, RecursionError) as error:
        wrong = str(error)
    if wrong:
        raise Invalid(f"{path}: is damaged ({wrong}); run the study again")
    return {cell["name"]: cell for cell in cells}


def named(text: str) -> tuple[str, Path]:
    """The name and the folder of RUN or ARM=RUN; a folder's own name may hold a "=" too."""
    name, equals, path = text.partition("=")
    if equals and not Path(text).exists():
        return name, Path(path)
    return Path(text).absolute().name, Path(text)
