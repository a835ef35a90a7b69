"""The corpus x time matrix of a run, read from its records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from treering.config import Invalid
from treering.records import Record

Cells = NDArray[np.float64]

UNITS = {"loss": "nats/token", "bits_per_byte": "bits/byte"}


@dataclass(frozen=True)
class Row:
    """A moment at which corpora were scored; `end` = row 0, or at the end of a phase."""

    label: str
    step: int
    tokens: int | None = None  # trained until then; None = not recorded
    end: bool = True


@dataclass(frozen=True)
class Matrix:
    """Scores by row (time) and corpus, `values` float64[rows, corpora], NaN where missing.

    Row 0 is the model before training. `learned` gives the row at whose end a corpus counts as
    learned; a corpus without one (no phase names it, or none yet) is shown but not judged.
    """

    values: Cells
    rows: tuple[Row, ...]
    corpora: tuple[str, ...]
    learned: Mapping[str, int]
    direction: Literal["lower", "higher"] = "lower"
    unit: str = UNITS["loss"]

    def __post_init__(self) -> None:
        assert self.values.shape == (len(self.rows), len(self.corpora)), "a row for each moment"
        assert self.rows[0].end, "row 0 is the model before training"
        for corpus, row in self.learned.items():
            assert corpus in self.corpora and self.rows[row].end, f"{corpus!r} is learned at an end"

    @property
    def ends(self) -> list[int]:
        """Row 0 and the rows that end a phase; the last of them is the one that is judged."""
        return [at for at, row in enumerate(self.rows) if row.end]

    @property
    def sign(self) -> float:
        """What turns a score into a cost, of which less is better, and back."""
        return 1.0 if self.direction == "lower" else -1.0


def matrix(
    records: Sequence[Record],
    *,
    metric: str = "loss",
    branch: str | None = None,
    ends_only: bool = True,
) -> Matrix:
    """The matrix of a run's scores; `ends_only=False` keeps those from within phases too.

    metric: "loss" or "bits_per_byte"; branch: of weights scored beside the trained ones, which
    share their row 0 and the rows of phase ends that were before the branch. An unfinished run
    has the rows of its finished phases. Raises Invalid where there is no header.
    """
    assert metric in UNITS, f"{metric!r} is not a score's key"
    header = header_of(records)
    recipe = header["recipe"]
    corpora = tuple(recipe["corpora"])
    trained = {r["step"]: r.get("tokens") for r in records if r.get("kind") == "step"}
    scores = scores_of(records, metric, branch)
    reached = max(scores, default=0)
    run = scores_of(records, metric)
    scores |= {step: run[step] for step in lent(records, branch)}
    rows, finished = [Row("base", 0, 0)], [0]
    for phase in header["phases"]:
        begin, end = rows[-1].step, phase["end_step"]
        within = [] if ends_only else sorted(step for step in scores if begin < step < end)
        rows += [Row(phase["name"], step, trained.get(step), end=False) for step in within]
        if reached < end:
            break
        finished.append(len(rows))
        rows.append(Row(phase["name"], end, trained.get(end)))
    values = np.array([[scores[row.step].get(name, np.nan) for name in corpora] for row in rows])
    return Matrix(values, tuple(rows), corpora, learned_at(recipe, finished), unit=UNITS[metric])


def header_of(records: Sequence[Record]) -> Record:
    """The last header: a recipe may grow from one sitting to the next. Raises Invalid where there
    is none."""
    headers = [record for record in records if record.get("kind") == "header"]
    header = headers[-1] if headers else None
    if header is None:
        raise Invalid("records hold no header: name the folder of a run that was started")
    return header


def branches_of(records: Sequence[Record]) -> list[str]:
    """Names of the weights that were scored beside the trained ones."""
    found = (record["branch"] for record in records if record.get("kind") == "branch_score")
    return list(dict.fromkeys(found))


def scores_of(
    records: Sequence[Record], metric: str, branch: str | None = None
) -> defaultdict[int, dict[str, float]]:
    """Scores by step and corpus; one that is null was not finite, or not known, and is NaN."""
    scores: defaultdict[int, dict[str, float]] = defaultdict(dict)
    kinds = ("score",) if branch is None else ("score", "branch_score")
    for record in records:
        if record.get("kind") in kinds and (record["step"] == 0 or record.get("branch") == branch):
            value = record.get(metric)
            scores[record["step"]][record["corpus"]] = np.nan if value is None else float(value)
    return scores


def lent(records: Sequence[Record], branch: str | None) -> dict[int, str]:
    """The phases, by their last steps, at whose ends a branch was not scored, but later: it left
    the run later, whose scores stand there."""
    own = scores_of(records, "loss", branch)
    ends = {phase["end_step"]: phase["name"] for phase in header_of(records)["phases"]}
    missing = {step: name for step, name in ends.items() if step < max(own, default=0)}
    return {} if branch is None else {s: name for s, name in missing.items() if s not in own}


def learned_at(recipe: Mapping[str, Any], finished: Sequence[int]) -> dict[str, int]:
    """The row at which each corpus counts as learned; finished = row 0 and those of phase ends."""
    rows: dict[str, int] = dict.fromkeys(recipe.get("replay", {}).get("past", ()), 0)
    for row, phase in zip(finished[1:], recipe["phases"], strict=False):
        for corpus in phase["mixture"]:
            rows.setdefault(corpus, row)
    return rows
