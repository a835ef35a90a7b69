"""What was learned and what was forgotten: a corpus x time matrix, and metrics over it.

    records --matrix--> Matrix --forgetting, retained, learned, bwt, fwt, ...--> Metric

Signs are those of the field: forgetting > 0 forgot, BWT < 0 forgot, FWT > 0 earlier corpora
helped, intransigence > 0 failed to learn. A metric is the mean over the corpora for which it is
defined, and over those alone: the newest corpora have no forgetting, which is not a forgetting
of 0. What is missing makes a metric NaN with a reason, or raises under `strict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from treering.analysis.costs import ranks, throughput
from treering.analysis.matrix import UNITS, Cells, Matrix, branches_of, header_of, scores_of
from treering.analysis.matrix import matrix as matrix
from treering.records import Record

Past = Literal["stage_ends", "all_stage_ends", "all_evals"]


@dataclass(frozen=True)
class Metric:
    """A mean over `per_corpus`, the corpora for which it is defined; NaN has a reason."""

    value: float
    per_corpus: dict[str, float]
    unit: str
    reason: str | None = None


def forgetting(matrix: Matrix, *, past: Past = "stage_ends", strict: bool = False) -> Metric:
    """How much worse a corpus is now than at its best in the past; > 0 = forgot.

    past: "stage_ends" since the corpus was learned (the default), "all_stage_ends" (before that
    and row 0 too), or "all_evals" (also those within phases, where the matrix holds them). More
    evaluations in the past can only raise it.
    """
    ends, last = matrix.ends, matrix.ends[-1]

    def before(corpus: str) -> list[int]:
        if past == "all_evals":
            return list(range(last))
        since = matrix.learned[corpus] if past == "stage_ends" else 0
        return [row for row in ends if since <= row < last]

    cells = {corpus: [*before(corpus), last] for corpus in _old(matrix)}
    nothing = "no corpus was learned before the last row"
    return _mean(matrix, cells, lambda c, _: float(c[-1] - c[:-1].min()), nothing, strict=strict)


def retained(matrix: Matrix, *, strict: bool = False) -> Metric:
    """Scores after the last phase, over learned corpora; of accuracies the average performance."""
    cells = {corpus: [matrix.ends[-1]] for corpus in _known(matrix)}
    return _mean(matrix, cells, _as_scored(matrix), "no corpus is learned yet", strict=strict)


def learned(matrix: Matrix, *, strict: bool = False) -> Metric:
    """Scores at the end of the phase that learned a corpus, over learned corpora."""
    cells = {corpus: [matrix.learned[corpus]] for corpus in _known(matrix)}
    return _mean(matrix, cells, _as_scored(matrix), "no corpus is learned yet", strict=strict)


def bwt(matrix: Matrix, *, strict: bool = False) -> Metric:
    """Backward transfer: the gain on a corpus since it was learned; < 0 = forgot."""
    cells = {corpus: [matrix.learned[corpus], matrix.ends[-1]] for corpus in _old(matrix)}
    nothing = "no corpus was learned before the last row"
    return _mean(matrix, cells, lambda c, _: float(c[0] - c[1]), nothing, strict=strict)


def fwt(matrix: Matrix, *, strict: bool = False) -> Metric:
    """Forward transfer: the gain on a corpus from the phases before its own; > 0 = they helped."""
    ends = matrix.ends
    stage = {corpus: ends.index(matrix.learned[corpus]) for corpus in _known(matrix)}
    cells = {corpus: [0, ends[at - 1]] for corpus, at in stage.items() if at >= 2}
    nothing = "no corpus was learned after the first phase"
    return _mean(matrix, cells, lambda c, _: float(c[0] - c[1]), nothing, strict=strict)


def intransigence(
    matrix: Matrix, reference: Mapping[str, float], *, strict: bool = False
) -> Metric:
    """How far a corpus, once learned, stays behind a reference run; > 0 = failed to learn.

    reference: each corpus's score in a joint or a single-corpus run.
    """
    cells = {corpus: [matrix.learned[corpus]] for corpus in _known(matrix)}

    def behind(cell: Cells, corpus: str) -> float:
        return float(cell[0] - matrix.sign * reference.get(corpus, np.nan))

    return _mean(matrix, cells, behind, "no corpus is learned yet", strict=strict)


def incremental_mean(matrix: Matrix, *, strict: bool = False) -> Metric:
    """The mean over phase ends of the mean over the corpora learned by then; no corpus has one."""
    means, reasons = [], []
    for row in matrix.ends[1:]:
        known = {corpus: [row] for corpus in _known(matrix) if matrix.learned[corpus] <= row}
        mean = _mean(matrix, known, _as_scored(matrix), "no corpus is learned yet", strict=strict)
        means.append(mean.value)
        reasons += [mean.reason] if mean.reason else []
    if not means:
        reasons = ["no phase is finished"]
    if reasons and strict:
        raise ValueError(reasons[0])
    value = float("nan") if reasons else float(np.mean(means))
    return Metric(value, {}, matrix.unit, reasons[0] if reasons else None)


def summary(records: Sequence[Record], branch: str | None = None) -> dict[str, Any]:
    """A run's matrix, metrics and costs, ready for JSON: what is missing is None with a reason.
    `branch`: of weights scored beside the trained ones."""
    loss = matrix(records, branch=branch)
    recipe = header_of(records)["recipe"]
    step = next((r for r in reversed(records) if r.get("kind") == "step"), {})
    sittings = [r for r in records if r.get("kind") in ("header", "step", "end")]
    tokens, fresh = step.get("tokens"), step.get("fresh_tokens")
    return {
        "end": sittings[-1].get("reason") if sittings[-1]["kind"] == "end" else None,
        "corpora": list(loss.corpora),
        "rows": [{"label": r.label, "step": r.step, "tokens": r.tokens} for r in loss.rows],
        "learned": dict(loss.learned),
        "loss": _judged(loss),
        "bits_per_byte": _judged(matrix(records, metric="bits_per_byte", branch=branch)),
        "branches": {} if branch else _beside(records, loss.rows[loss.ends[-1]].step),
        "tasks": _tasks(records, [row.step for row in loss.rows]),
        "step": step.get("step", 0),
        "tokens": tokens,
        "fresh_tokens": fresh,
        "asked_share": recipe.get("replay", {}).get("share", 0.0),
        "replayed_share": 1 - fresh / tokens if tokens and fresh is not None else None,
        "flops": step.get("flops"),
        "throughput": throughput(records),
        "ranks": ranks(records),
        "seconds": step.get("seconds"),
    }


def _beside(records: Sequence[Record], step: int) -> dict[str, Any]:
    """Of each branch that was scored at the step that is judged the metrics, by their units."""
    return {
        name: {
            unit: _judged(matrix(records, metric=unit, branch=name))["metrics"] for unit in UNITS
        }
        for name in branches_of(records)
        if step and step in scores_of(records, "loss", name)
    }


def _tasks(records: Sequence[Record], steps: Sequence[int]) -> dict[str, Any]:
    """The downstream tasks at row 0 and at phase ends, a column for each metric of each task."""
    found = {
        (r["step"], f"{r['task']}/{r['metric']}"): r for r in records if r.get("kind") == "task"
    }
    columns = list(dict.fromkeys(column for _, column in found))

    def cells(key: str) -> list[list[float | None]]:
        return [[found.get((step, name), {}).get(key) for name in columns] for step in steps]

    return {
        "columns": columns,
        "values": cells("value"),
        "stderr": cells("stderr"),
        "n": cells("n"),
    }


def _judged(matrix: Matrix) -> dict[str, Any]:
    metrics = {
        "retained": retained(matrix),
        "learned": learned(matrix),
        "forgetting": forgetting(matrix),
        "bwt": bwt(matrix),
        "fwt": fwt(matrix),
    }
    table = {
        "unit": matrix.unit,
        "direction": matrix.direction,
        "values": matrix.values.tolist(),
        "metrics": {name: asdict(metric) for name, metric in metrics.items()},
    }
    plain: dict[str, Any] = none_for_nan(table)
    return plain


def _known(matrix: Matrix) -> list[str]:
    """Corpora that count as learned, in the matrix's order."""
    return [corpus for corpus in matrix.corpora if corpus in matrix.learned]


def _old(matrix: Matrix) -> list[str]:
    """Learned corpora but for the newest."""
    return [corpus for corpus in _known(matrix) if matrix.learned[corpus] < matrix.ends[-1]]


def _as_scored(matrix: Matrix) -> Callable[[Cells, str], float]:
    return lambda cells, _: float(matrix.sign * cells[0])


def _mean(
    matrix: Matrix,
    cells: Mapping[str, list[int]],
    term: Callable[[Cells, str], float],
    nothing: str,
    *,
    strict: bool,
) -> Metric:
    """The mean of `term(costs at a corpus's rows, corpus)`; NaN with a reason if one is missing."""
    per_corpus: dict[str, float] = {}
    reason = None if cells else nothing
    for corpus, rows in cells.items():
        found = matrix.sign * matrix.values[rows, matrix.corpora.index(corpus)]
        per_corpus[corpus] = term(found, corpus)
        if np.isnan(per_corpus[corpus]) and reason is None:
            at = [matrix.rows[row] for row, cost in zip(rows, found, strict=True) if np.isnan(cost)]
            where = f"at {at[0].label!r} (step {at[0].step})" if at else "in the reference"
            reason = f"{matrix.unit} of {corpus!r} is missing {where}"
    if reason is not None and strict:
        raise ValueError(reason)
    value = float("nan") if reason is not None else float(np.mean(list(per_corpus.values())))
    return Metric(value, per_corpus, matrix.unit, reason)


def none_for_nan(value: Any) -> Any:
    """The same tables and lists with None in the place of NaN: ready for JSON."""
    if isinstance(value, dict):
        return {name: none_for_nan(item) for name, item in value.items()}
    if isinstance(value, list):
        return [none_for_nan(item) for item in value]
    return None if isinstance(value, float) and np.isnan(value) else value
