"""Arms against one another: means over seeds with intervals, paired differences to a baseline.

    runs --arms--> Arm(name, {seed: records}) --compare--> a table ready for JSON

Seeds are paired: the difference of two arms is taken seed by seed, for seeds that both have. A
difference is shown where Student's 95% interval of the paired differences leaves out 0; with one
seed nothing can be concluded. Beside it stands the bootstrap over seeds (the percentiles of all
resamples), which with few seeds is too narrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from treering.analysis.curves import Clock, end, matrix_at, spent
from treering.analysis.forgetting import Metric, forgetting, learned, none_for_nan, retained
from treering.analysis.intervals import difference, estimate
from treering.analysis.matrix import Matrix, branches_of, header_of, matrix, scores_of
from treering.config import Invalid
from treering.records import Record

METRICS = {"retained": retained, "learned": learned, "forgetting": forgetting}


@dataclass(frozen=True)
class Arm:
    """Equal runs but for their seeds; `branch`: judged by weights beside the trained ones."""

    name: str
    runs: Mapping[int, Sequence[Record]]
    branch: str | None = None


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


def branched(name: str, runs: Mapping[int, Sequence[Record]]) -> list[Arm]:
    """The arm of some runs, and one for each of their branches."""
    by_branch: dict[str | None, dict[int, Sequence[Record]]] = {None: dict(runs)}
    for seed, records in runs.items():
        for branch in branches_of(records):
            by_branch.setdefault(branch, {})[seed] = records
    return [
        Arm(f"{name}, {branch}" if branch else name, found, branch)
        for branch, found in by_branch.items()
    ]


def compare(
    arms: Sequence[Arm], *, baseline: str | None = None, metric: str = "loss"
) -> dict[str, Any]:
    """Every arm's metrics and costs at its end, and at equal tokens and equal FLOPs: at the least
    that any run spent, interpolated along each run's records. Ready for JSON.

    baseline: the arm to which differences are taken; the first by default.
    """
    kept, notes = _finished(arms)
    if not kept:
        raise Invalid("no run is finished, so nothing can be compared; run them to their ends")
    names = [arm.name for arm in kept]
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise Invalid(f"--baseline {baseline}: no such finished arm; there are {', '.join(names)}")
    every = [records for arm in kept for records in arm.runs.values()]
    corpora = dict.fromkeys(c for r in every for c in header_of(r)["recipe"]["corpora"])
    table: dict[str, Any] = {
        "baseline": baseline,
        "metric": metric,
        "corpora": list(corpora),
        "notes": notes + _missing(kept, metric) + _unpaired(kept, baseline),
        "arms": {arm.name: _costs(arm) for arm in kept},
        "end": _judged(kept, baseline, partial(matrix, metric=metric)),
    }
    clocks: tuple[Clock, Clock] = ("tokens", "flops")
    for clock in clocks:
        least = float(np.min([end(records, clock) for records in every]))  # NaN if one is NaN
        cut = partial(matrix_at, clock=clock, spent=least, metric=metric)
        table[f"equal_{clock}"] = {"at": least, **_judged(kept, baseline, cut)}
    plain: dict[str, Any] = none_for_nan(table)
    return plain


def is_finished(records: Sequence[Record]) -> bool:
    """Whether a run trained all its phases and was scored after the last of them."""
    header = header_of(records)
    scores = scores_of(records, "loss").get(header["phases"][-1]["end_step"], {})
    ended = any(r.get("kind") == "end" and r.get("reason") == "finished" for r in records)
    return bool(scores) and (ended or len(scores) == len(header["recipe"]["corpora"]))


def _finished(arms: Sequence[Arm]) -> tuple[list[Arm], list[str]]:
    """The arms with those of their runs that are finished, and a note for each other one."""
    kept, notes = [], []
    for arm in arms:
        runs = {}
        for seed, records in arm.runs.items():
            if is_finished(records):
                runs[seed] = records
            elif arm.branch is None:
                notes.append(f"{arm.name}, seed {seed}: not finished, left out")
        kept += [replace(arm, runs=runs)] if runs else []
    return kept, notes


def _missing(arms: Sequence[Arm], metric: str) -> list[str]:
    """A note for each run that has no number where it should: the means leave it out."""
    notes = []
    for arm in arms:
        for seed, records in arm.runs.items():
            scores = matrix(records, metric=metric, branch=arm.branch)
            judged = [judge(scores) for judge in METRICS.values()]
            lost = [m.reason for m in judged if np.isnan(list(m.per_corpus.values())).any()]
            if lost:
                notes.append(f"{arm.name}, seed {seed}: {lost[0]}; left out of the means")
    return notes


def _unpaired(arms: Sequence[Arm], baseline: str) -> list[str]:
    """A note where no interval can be given for a difference."""
    seeds = next(set(arm.runs) for arm in arms if arm.name == baseline)
    if len(seeds) == 1:
        return [f"{baseline} has one seed: nothing can be concluded from its figures"]
    few = [arm.name for arm in arms if len(seeds & set(arm.runs)) < 2]
    text = f"fewer than two seeds in common with {baseline}, so nothing can be concluded: "
    return [text + ", ".join(few)] if few else []


def _costs(arm: Arm) -> dict[str, Any]:
    """What the runs of an arm spent, on average; known only where it is known of every run."""
    last = [spent(run, arm.branch) for run in arm.runs.values()]
    costs = {
        key: [step.get(key) for step in last]
        for key in ("tokens", "fresh_tokens", "flops", "seconds")
    }
    means = {
        key: _mean([np.nan if v is None else v for v in found]) for key, found in costs.items()
    }
    probes = [r["cosine"] for run in arm.runs.values() for r in run if r.get("kind") == "probe"]
    cosine = _mean([p for p in probes if p is not None])
    return {"seeds": sorted(arm.runs), **means, "cosine": cosine}


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


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
