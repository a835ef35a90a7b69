"""Arms against one another: means over seeds with intervals, paired differences to a baseline.

    runs --arms--> Arm(name, {seed: records}) --compare--> a table ready for JSON

Seeds are paired: the difference of two arms is taken seed by seed, for seeds that both have. A
difference is shown where Student's 95% interval of the paired differences leaves out 0; with one
seed nothing can be concluded. Beside it stands the bootstrap over seeds (the percentiles of all
resamples), which with few seeds is too narrow.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from treering.analysis.curves import Clock, arms_of, end, matrix_at
from treering.analysis.forgetting import Metric, forgetting, learned, none_for_nan, retained
from treering.analysis.matrix import Matrix, header_of, matrix
from treering.config import Invalid
from treering.records import Record

METRICS = {"retained": retained, "learned": learned, "forgetting": forgetting}
ALL_RESAMPLES = 7  # up to so many seeds every resample is taken, beyond them 20,000 at random


@dataclass(frozen=True)
class Arm:
    """Equal runs but for their seeds; `branch`: judged by weights beside the trained ones."""

    name: str
    runs: Mapping[int, Sequence[Record]]
    branch: str | None = None


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; `t` and `bootstrap` are 95% intervals, None for fewer than two seeds."""

    mean: float
    n: int
    t: tuple[float, float] | None
    bootstrap: tuple[float, float] | None
    values: dict[int, float]


def estimate(values: Mapping[int, float]) -> Estimate:
    """The mean of values by seed; those that are NaN are left out."""
    known = {seed: value for seed, value in sorted(values.items()) if np.isfinite(value)}
    sample, n = np.array(list(known.values())), len(known)
    mean = float(sample.mean()) if n else float("nan")
    if n < 2:
        return Estimate(mean, n, None, None, known)
    half = float(stdtrit(n - 1, 0.975) * sample.std(ddof=1) / np.sqrt(n))
    low, high = np.percentile(_resamples(n) @ sample / n, [2.5, 97.5])
    return Estimate(mean, n, (mean - half, mean + half), (float(low), float(high)), known)


def _resamples(n: int) -> NDArray[np.int64]:
    """How often each of n values is in a resample of n: int64[resamples, n]."""
    if n <= ALL_RESAMPLES:
        drawn = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        drawn = np.random.default_rng(0).integers(0, n, (20_000, n))
    counts: NDArray[np.int64] = (drawn[:, :, None] == np.arange(n)).sum(1)
    return counts


def arms(runs: Sequence[tuple[str, Sequence[Record]]]) -> list[Arm]:
    """Runs grouped into arms by their recipes' identity but for the seed, in the order given.

    A run comes with its arm's name or its folder's; an arm is named after its first run, without
    the seed at the end. Raises Invalid where two runs of an arm have the same seed.
    """
    groups: dict[str, dict[int, Sequence[Record]]] = {}
    names: dict[str, str] = {}
    for name, records in runs:
        header = header_of(records)
        seed = int(header["recipe"]["seed"])
        identity: Record = header.get("identity") or header["recipe"]
        key = repr(sorted((k, v) for k, v in identity.items() if k != "seed"))
        names.setdefault(key, re.sub(rf"[-_.]?(seed|s)?[-_=]?{seed}$", "", name) or name)
        group = groups.setdefault(key, {})
        if seed in group:
            raise Invalid(f"{name}: a second run of {names[key]!r} with seed {seed}; name one")
        group[seed] = records
    _distinct(names)
    return [arm for key, group in groups.items() for arm in branched(names[key], group)]


def branched(name: str, runs: Mapping[int, Sequence[Record]]) -> list[Arm]:
    """The arm of some runs, and one for each of their branches."""
    found = dict.fromkeys(branch for records in runs.values() for branch in arms_of(records))
    return [Arm(f"{name}, {branch}" if branch else name, runs, branch) for branch in found]


def compare(
    arms: Sequence[Arm], *, baseline: str | None = None, metric: str = "loss"
) -> dict[str, Any]:
    """Every arm's metrics and costs at its end, and at equal tokens and equal FLOPs: at the least
    that any run spent, interpolated along each run's records. Ready for JSON.

    baseline: the arm to which differences are taken; the first by default.
    """
    kept, notes = _finished(arms)
    names = [arm.name for arm in kept]
    baseline = (names[0] if names else "") if baseline is None else baseline
    if baseline not in names:
        raise Invalid(f"--baseline {baseline}: no such finished arm; there are {', '.join(names)}")
    every = [records for arm in kept for records in arm.runs.values()]
    corpora = dict.fromkeys(c for r in every for c in header_of(r)["recipe"]["corpora"])
    if any(len(arm.runs) == 1 for arm in kept):
        notes.append("an arm with one seed: nothing can be concluded from its differences")
    table: dict[str, Any] = {
        "baseline": baseline,
        "metric": metric,
        "corpora": list(corpora),
        "notes": notes,
        "arms": {arm.name: _costs(arm) for arm in kept},
        "end": _judged(kept, baseline, partial(matrix, metric=metric)),
    }
    clocks: tuple[Clock, Clock] = ("tokens", "flops")
    for clock in clocks:
        least = min(end(records, clock) for records in every)
        cut = partial(matrix_at, clock=clock, spent=least, metric=metric)
        table[f"equal_{clock}"] = {"at": least, **_judged(kept, baseline, cut)}
    plain: dict[str, Any] = none_for_nan(table)
    return plain


def _finished(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """The arms with those of their runs that trained all phases, and a note for each other one."""
    kept, notes = [], []
    for arm in arms:
        runs = {}
        for seed, records in arm.runs.items():
            if len(matrix(records).rows) == 1 + len(header_of(records)["phases"]):
                runs[seed] = records
            elif arm.branch is None:
                notes.append(f"{arm.name}, seed {seed}: not finished, left out")
        kept += [replace(arm, runs=runs)] if runs else []
    return kept, notes


def _costs(arm: Arm) -> dict[str, Any]:
    """What the runs of an arm spent, on average; seconds only where every run has them."""
    last = [next(r for r in reversed(run) if r["kind"] == "step") for run in arm.runs.values()]
    keys = ("tokens", "fresh_tokens", "flops", "seconds")
    means = {key: float(np.mean([step.get(key, np.nan) for step in last])) for key in keys}
    probes = [r["cosine"] for run in arm.runs.values() for r in run if r["kind"] == "probe"]
    cosine = float(np.mean([p for p in probes if p is not None])) if probes else float("nan")
    return {"seeds": sorted(arm.runs), **means, "cosine": cosine}


def _judged(
    arms: Sequence[Arm], baseline: str, view: Callable[..., Matrix]
) -> dict[str, dict[str, Any]]:
    """Estimates of each arm, and of its differences to the baseline, by metric."""
    found = {
        arm.name: {seed: view(run, branch=arm.branch) for seed, run in arm.runs.items()}
        for arm in arms
    }
    metrics = {
        arm: {
            name: {seed: metric(matrix) for seed, matrix in matrices.items()}
            for name, metric in METRICS.items()
        }
        for arm, matrices in found.items()
    }
    return {
        "arms": {
            arm: {name: _estimates(by_seed) for name, by_seed in each.items()}
            for arm, each in metrics.items()
        },
        "differences": {
            arm: {
                name: difference(_values(by_seed), _values(metrics[baseline][name]))
                for name, by_seed in each.items()
            }
            for arm, each in metrics.items()
            if arm != baseline
        },
    }


def difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """The paired difference to a baseline over the seeds of both, and what it shows: "lower",
    "higher", "not shown", or "one seed" (or none), from which nothing can be concluded."""
    paired = estimate({s: v - baseline[s] for s, v in values.items() if s in baseline})
    if paired.t is None:
        verdict = "one seed" if paired.n else "none"
    else:
        low, high = paired.t
        verdict = "lower" if high < 0 else "higher" if low > 0 else "not shown"
    lower = sum(value < 0 for value in paired.values.values())
    return {**asdict(paired), "lower": lower, "verdict": verdict}


def _values(by_seed: Mapping[int, Metric]) -> dict[int, float]:
    return {seed: metric.value for seed, metric in by_seed.items()}


def _estimates(by_seed: Mapping[int, Metric]) -> dict[str, Any]:
    """The estimate of a metric's mean over corpora, and of each corpus's own."""
    corpora = dict.fromkeys(c for metric in by_seed.values() for c in metric.per_corpus)
    each = {
        corpus: asdict(
            estimate({s: m.per_corpus.get(corpus, float("nan")) for s, m in by_seed.items()})
        )
        for corpus in corpora
    }
    reasons = [metric.reason for metric in by_seed.values() if metric.reason]
    mean = asdict(estimate(_values(by_seed)))
    return {**mean, "per_corpus": each, "reason": reasons[0] if reasons else None}


def _distinct(names: dict[str, str]) -> None:
    """Number the names that several groups share."""
    taken: dict[str, int] = {}
    for key, name in names.items():
        taken[name] = taken.get(name, 0) + 1
        if taken[name] > 1:
            names[key] = f"{name} ({taken[name]})"
