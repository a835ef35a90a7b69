"""A run along its way: held-out losses against what was spent, and the matrix at any point."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from treering.analysis.matrix import (
    UNITS,
    Matrix,
    Row,
    header_of,
    learned_at,
    scores_of,
)
from treering.records import Record

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
    """The last step's record, whose tokens and FLOPs are cumulative; of an annealed branch with
    those that it took beyond."""
    last: Record = next((r for r in reversed(records) if r.get("kind") == "step"), {})
    own: Record = next((r for r in reversed(records) if _of(r, branch)), {})
    more = {name: own.get(f"{name}_beyond", 0) for name in ("tokens", "fresh_tokens", "flops")}
    return last | {n: last[n] + m for n, m in more.items() if last.get(n) is not None}


def _of(record: Record, branch: str | None) -> bool:
    return record.get("kind") == "branch_score" and record.get("branch") == branch


def end(records: Sequence[Record], clock: Clock) -> float:
    """What a run has spent in all; NaN where it was not recorded."""
    found = spent(records).get(clock, 0.0)
    return float("nan") if found is None else float(found)


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
    is NaN.
    """
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
