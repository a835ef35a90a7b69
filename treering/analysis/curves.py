"""A run along its way: held-out losses against what was spent, and the matrix at any point."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treering.analysis.matrix import (
    UNITS,
    Matrix,
    Row,
    header_of,
    learned_at,
    matrix,
    scores_of,
)
from treering.analysis.runs import Arm
from treering.records import ANNEALED, Record

Clock = Literal["tokens", "flops"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curves:
    """Held-out scores along a run: float64[n] for each corpus, at n moments.

    `step`, `tokens` and `flops` are float64[n], what was trained and spent on learning by then;
    NaN where it was not recorded.
    """

    step: Floats
    tokens: Floats
    flops: Floats
    scores: dict[str, Floats]


def curves(records: Sequence[Record], *, metric: str = "loss", branch: str | None = None) -> Curves:
    """The curves of a run; a branch has those points at which it was scored."""
    scores = scores_of(records, metric, branch)
    trained = {r["step"]: r for r in records if r.get("kind") == "step"}
    beyond = {r["step"]: r for r in records if _of(r, branch)}
    steps = sorted(scores)

    def clock(name: str) -> Floats:
        known = (trained.get(step, {}).get(name) for step in steps)
        more = [beyond.get(step, {}).get(f"{name}_beyond", 0) for step in steps]
        values = [np.nan if v is None else v + m for v, m in zip(known, more, strict=True)]
        return np.array([0.0 if s == 0 else v for s, v in zip(steps, values, strict=True)], float)

    corpora = header_of(records)["recipe"]["corpora"]
    columns = {c: np.array([scores[s].get(c, np.nan) for s in steps], float) for c in corpora}
    return Curves(np.array(steps, float), clock("tokens"), clock("flops"), columns)


def spent(records: Sequence[Record], branch: str | None = None) -> Record:
    """The last step's record, whose tokens and FLOPs are cumulative; of an annealed branch that of
    the step at which it left, with those that it took beyond."""
    own: Record = next((r for r in reversed(records) if _of(r, branch)), {})
    steps = (r for r in reversed(records) if r.get("kind") == "step")
    last: Record = next((r for r in steps if r["step"] == own.get("step", r["step"])), {})
    more = {name: own.get(f"{name}_beyond", 0) for name in ("tokens", "fresh_tokens", "flops")}
    return last | {n: last[n] + m for n, m in more.items() if last.get(n) is not None}


def _of(record: Record, branch: str | None) -> bool:
    return record.get("kind") == "branch_score" and record.get("branch") == branch


def end(records: Sequence[Record], clock: Clock, branch: str | None = None) -> float:
    """What a run, or a branch of it, has spent in all; NaN where it was not recorded."""
    found = spent(records, branch).get(clock, 0.0)
    return float("nan") if found is None else float(found)


def standing(arm: Arm, arms: Sequence[Arm]) -> Arm:
    """The arm that stands for an arm at equal cost. Runs that were annealed at their ends are there
    by that branch alone, which spent the most; branches that left earlier, by their runs."""
    kin = [other for other in arms if other.shares([*arm.runs.values()])]
    annealed = [other for other in kin if other.branch == ANNEALED and _is_last(other)]
    whole = [other for other in kin if other.branch is None and arm.branch == ANNEALED]
    return next(iter([*annealed, *whole]), arm)


def _is_last(arm: Arm) -> bool:
    """Whether its branches left at their runs' ends."""
    return all(
        _left(run, arm.branch) == header_of(run)["phases"][-1]["end_step"]
        for run in arm.runs.values()
    )


def is_before(arm: Arm, clock: Clock, spent: float) -> bool:
    """Whether a cut lies before annealed branches, one of them at least, had begun."""
    left = [_spent_by(run, clock, _left(run, arm.branch)) for run in arm.runs.values()]
    return arm.branch == ANNEALED and any(spent <= begun for begun in left)


def _left(records: Sequence[Record], branch: str | None) -> int:
    """The last step at which a branch was scored; where it was annealed, that at which it left."""
    return max(scores_of(records, "loss", branch), default=0)


def matrix_at(
    records: Sequence[Record],
    clock: Clock,
    spent: float,
    *,
    metric: str = "loss",
    branch: str | None = None,
) -> Matrix:
    """The matrix of a run cut short where it had spent so much.

    Its last row is interpolated linearly between the two scores around that point. The corpora of
    the phase that is cut count as learned there. Where the run never spent so much, the last row
    is NaN. An annealed branch is, before it began, the run.
    """
    if branch == ANNEALED:
        left = _spent_by(records, clock, _left(records, branch))
        if not spent <= left:  # nor is NaN
            return _in_branch(records, clock, (left, spent), metric)
        branch = None
    found, phases = curves(records, metric=metric, branch=branch), header_of(records)["phases"]
    at = getattr(found, clock)
    known = {float(step): place for place, step in enumerate(found.step)}

    def scored(step: float) -> list[float]:
        return [c[known[step]] if step in known else np.nan for c in found.scores.values()]

    rows, values = [Row("base", 0, 0)], [scored(0.0)]
    for phase in phases[:-1]:
        place = known.get(float(phase["end_step"]))
        if place is None or not at[place] < spent:
            break
        tokens = found.tokens[place]
        trained = int(tokens) if np.isfinite(tokens) else None
        rows.append(Row(phase["name"], phase["end_step"], trained))
        values.append(scored(phase["end_step"]))
    seen = np.isfinite(at)
    reached = bool(seen.any()) and at[seen][0] <= spent <= at[seen][-1]
    step = (
        found.step[seen][bisect_right(at[seen].tolist(), spent) - 1] if reached else rows[-1].step
    )
    rows.append(Row(f"{phases[len(rows) - 1]['name']}, cut", int(step)))
    columns = (c[seen] for c in found.scores.values())
    values.append([np.interp(spent, at[seen], c) if reached else np.nan for c in columns])
    learned = learned_at(header_of(records)["recipe"], range(len(rows)))
    return Matrix(np.array(values), tuple(rows), tuple(found.scores), learned, unit=UNITS[metric])


def _in_branch(
    records: Sequence[Record], clock: Clock, span: tuple[float, float], metric: str
) -> Matrix:
    """The matrix of an annealed branch that is cut short: span = what was spent where it left its
    run, and where it is cut."""
    whole, (left, spent) = matrix(records, metric=metric, branch=ANNEALED), span
    before = scores_of(records, metric)[whole.rows[-1].step]
    ends = left, end(records, clock, ANNEALED)
    known = bool(np.isfinite([*ends, spent]).all()) and spent <= ends[1]
    values = [
        np.interp(spent, ends, (before.get(corpus, np.nan), after)) if known else np.nan
        for corpus, after in zip(whole.corpora, whole.values[-1], strict=True)
    ]
    last = replace(whole.rows[-1], label=f"{whole.rows[-1].label}, cut")
    return replace(
        whole, values=np.vstack([whole.values[:-1], values]), rows=(*whole.rows[:-1], last)
    )


def _spent_by(records: Sequence[Record], clock: Clock, step: int) -> float:
    """What a run had spent by a step; NaN where it was not recorded."""
    found = (r.get(clock) for r in records if r.get("kind") == "step" and r["step"] == step)
    spent = next(found, None) if step else 0.0
    return float("nan") if spent is None else float(spent)
