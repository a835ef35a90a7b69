"""Points of pilots: from the records of runs, or from a CSV.

A CSV has the columns N, D (tokens trained, replayed ones too), replay (their share), a column of
losses for each corpus, and may have run and seed; without run, points of one N, replay and seed are
one run's. Of a run, D counts from where its last phase began; N is the header's count of parameters
that multiply: the head's too, look-up tables not. Annealed branches are its points, D with what
each trained more. Of a run without any, checkpoints count where the rate is the phase's highest,
neither warm-up nor decay: those of a schedule that falls all along are no samples of D, but for the
last.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from treering.analysis.laws.form import Array
from treering.analysis.laws.points import columns
from treering.analysis.matrix import header_of
from treering.analysis.runs import gather, named
from treering.atomic import replacing
from treering.config import Invalid
from treering.records import ANNEALED, Record

OWN = ("N", "D", "replay", "run", "seed")
CELLS = ("arm", "branch", "seed")  # what a study's own CSV begins with

Run = Sequence[Record]


def runs(given: Sequence[str]) -> list[tuple[int, Run]]:
    """The seeds and the records of run folders and studies' folders; none of a CSV."""
    if _is_csv(given):
        return []
    for name in given:
        if not named(name)[1].exists():
            raise Invalid(f"{name}: no such file or folder; name runs, a study, or a CSV of pilots")
    return [run for arm in gather(given) if arm.branch is None for run in arm.runs.items()]


def table(given: Sequence[str], trained: Sequence[tuple[int, Run]]) -> dict[str, Array]:
    """The points of run folders, studies' folders or one CSV; `trained`: their `runs`. Raises
    Invalid where there are none."""
    if _is_csv(given):
        return _of_csv(Path(given[0]))
    rows = [row for i, (seed, run) in enumerate(trained) for row in of_run(run, i, seed)]
    if not rows:
        raise Invalid(f"{' '.join(given)}: no checkpoint was scored at a constant rate; score "
                      "within phases by evaluate.every_tokens")  # fmt: skip
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return columns({name: [row[name] for row in rows] for name in names})


def write(points: Mapping[str, Array], path: Path) -> None:
    """A table as the CSV that it can be read from again."""
    with replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(points)
        writer.writerows(zip(*(column.tolist() for column in points.values()), strict=True))


def losses(points: dict[str, Array], corpus: str, *, new: bool) -> dict[str, Array]:
    """The columns that a law of a corpus's loss is fitted to: its share is the replay share, or 1
    minus it where it is new; and run, which intervals are drawn from. Raises Invalid where the
    corpus has no column."""
    known = [name for name in points if name not in OWN]
    if corpus not in known:
        raise Invalid(f"{corpus}: no such corpus; there are {', '.join(known)}")
    replay = points["replay"]
    found: dict[str, Array] = {n: points[n] for n in ("N", "D", "run", "seed") if n in points}
    found |= {"share": 1 - replay if new else replay, "loss": points[corpus]}
    if min(found["N"].min(), found["D"].min(), found["loss"].min()) <= 0:
        raise Invalid(f"N, D and the loss of {corpus} must be positive; leave out points at D = 0")
    if not 0 <= replay.min() <= replay.max() < 1:
        raise Invalid(f"replay = {replay.max():g}: a share of training, from 0 to below 1")
    if "run" not in found:
        keys = np.stack([points[name] for name in ("N", "replay", "seed") if name in points], 1)
        found["run"] = np.unique(keys, axis=0, return_inverse=True)[1].ravel().astype(np.float64)
    return found


def _is_csv(given: Sequence[str]) -> bool:
    return len(given) == 1 and Path(given[0]).is_file()


def _of_csv(path: Path) -> dict[str, Array]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise Invalid(f"{path}: not a CSV in UTF-8 ({error})") from None
    if not rows:
        raise Invalid(f"{path}: no points; give a line for each")
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():  # how the reader says: too many, too few
            raise Invalid(f"{path}: line {line} has not as many fields as the first; mend it (the "
                          "separator is a comma)")  # fmt: skip
    missing = [name for name in ("N", "D", "replay") if name not in rows[0]]
    if missing and all(name in rows[0] for name in CELLS):
        raise Invalid(f"{path}: is a study's table of its cells, without {', '.join(missing)}; "
                      f"name the study's folder, {path.parent}")  # fmt: skip
    if missing:
        raise Invalid(f"{path}: no column {', '.join(missing)}; it has {', '.join(rows[0])}")
    found = {}
    for name in rows[0]:
        try:
            found[name] = [float(row[name]) for row in rows]
        except ValueError:
            if name not in ("run", "seed"):
                line = next(i for i, row in enumerate(rows, 2) if not _is_number(row[name]))
                raise Invalid(f"{path}: {name} is not a number in line {line} "
                              f"({rows[line - 2][name]!r}); leave it out") from None  # fmt: skip
            words = sorted({row[name] for row in rows})
            found[name] = [float(words.index(row[name])) for row in rows]
    return columns(found)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def last_phase(run: Run) -> tuple[int, int]:
    """The steps between which a run's last phase lies."""
    ends = [0, *(phase["end_step"] for phase in header_of(run)["phases"])]
    return ends[-2], ends[-1]


def of_run(run: Run, number: int, seed: int) -> list[dict[str, float]]:
    """A run's rows, of its last phase; none of one that has not come so far."""
    header, (begin, end) = header_of(run), last_phase(run)
    steps = {r["step"]: r for r in run if r.get("kind") == "step" and r["step"] >= begin}
    size = header.get("multiplying_parameters") or header.get("parameters")
    if size is None or not steps:
        return []
    before = steps.pop(begin)["tokens"] if begin in steps else 0
    found = _annealed(run, steps) or _constant(run, steps, end)
    replay = header["recipe"].get("replay", {}).get("share", 0.0)
    return [
        {"N": float(size), "D": float(tokens - before), "replay": float(replay),
         "run": float(number), "seed": float(seed), **losses} for tokens, losses in found
    ]  # fmt: skip


def _annealed(
    run: Sequence[Record], steps: Mapping[int, Record]
) -> list[tuple[float, dict[str, float]]]:
    """Tokens and losses of the annealed branches that left the run after one of the steps."""
    found: dict[int, tuple[float, dict[str, float]]] = {}
    for record in run:
        ours = record.get("kind") == "branch_score" and record.get("branch") == ANNEALED
        if ours and record["step"] in steps:
            tokens = steps[record["step"]]["tokens"] + record["tokens_beyond"]
            losses = found.setdefault(record["step"], (tokens, {}))[1]
            losses[record["corpus"]] = _loss(record)
    return list(found.values())


def _constant(
    run: Sequence[Record], steps: Mapping[int, Record], end: int
) -> list[tuple[float, dict[str, float]]]:
    """Tokens and losses where a scored step has the highest rate; of a rate that falls all along,
    those of the end."""
    highest = max((r.get("rate") or 0.0 for r in steps.values()), default=0.0)
    scored: dict[int, dict[str, float]] = {}
    for record in run:
        if record.get("kind") == "score" and record["step"] in steps:
            scored.setdefault(record["step"], {})[record["corpus"]] = _loss(record)
    constant = [s for s in scored if (steps[s].get("rate") or 0.0) >= highest * (1 - 1e-9)]
    kept = constant if len(constant) > 1 else [s for s in scored if s == end]
    return [(steps[s]["tokens"], scored[s]) for s in kept]


def _loss(record: Record) -> float:
    loss = record.get("loss")
    return float("nan") if loss is None else float(loss)
