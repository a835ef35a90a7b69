"""Metrics of arms over seeds, with intervals, and their paired differences to baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from treering.analysis.forgetting import Metric, forgetting, learned, retained
from treering.analysis.intervals import difference, estimate
from treering.analysis.matrix import Matrix
from treering.analysis.runs import Arm

METRICS = {"retained": retained, "learned": learned, "forgetting": forgetting}


def judged(
    arms: Sequence[Arm], against: Mapping[str, str], view: Callable[..., Matrix]
) -> dict[str, dict[str, Any]]:
    """Estimates of each arm, and of its differences to its baseline, by metric."""
    metrics: dict[str, dict[str, dict[int, Metric]]] = {}
    for arm in arms:
        found = {seed: view(run, branch=arm.branch) for seed, run in arm.runs.items()}
        metrics[arm.name] = {
            name: {seed: metric(matrix) for seed, matrix in found.items()}
            for name, metric in METRICS.items()
        }
    return {
        "arms": {
            arm: {name: _estimates(by_seed) for name, by_seed in each.items()}
            for arm, each in metrics.items()
        },
        "differences": {
            arm: {
                name: {"baseline": against[arm]} | _difference(by_seed, metrics[against[arm]][name])
                for name, by_seed in each.items()
            }
            for arm, each in metrics.items()
            if against[arm] != arm
        },
    }


def _difference(found: Mapping[int, Metric], base: Mapping[int, Metric]) -> dict[str, Any]:
    """The paired difference of a metric, and of each corpus that both sides have; none of means
    over corpora that are `apart`: that one side alone has."""
    pairs = [(metric, base[seed]) for seed, metric in found.items() if seed in base]
    known = [(a, b) for a, b in pairs if np.isfinite([a.value, b.value]).all()]
    apart = sorted({corpus for a, b in known for corpus in a.per_corpus.keys() ^ b.per_corpus})
    common = dict.fromkeys(c for a, b in pairs for c in a.per_corpus if c in b.per_corpus)
    each = {corpus: difference(_of(found, corpus), _of(base, corpus)) for corpus in common}
    whole = difference({} if apart else _values(found), _values(base))
    verdict = {"verdict": "other corpora"} if apart else {}
    return {**whole, **verdict, "apart": apart, "per_corpus": each}


def _values(by_seed: Mapping[int, Metric]) -> dict[int, float]:
    return {seed: metric.value for seed, metric in by_seed.items()}


def _of(by_seed: Mapping[int, Metric], corpus: str) -> dict[int, float]:
    """A corpus's part of a metric."""
    return {seed: m.per_corpus.get(corpus, float("nan")) for seed, m in by_seed.items()}


def _estimates(by_seed: Mapping[int, Metric]) -> dict[str, Any]:
    """The estimate of a metric's mean over corpora, and of each corpus's own."""
    corpora = dict.fromkeys(c for metric in by_seed.values() for c in metric.per_corpus)
    each = {corpus: asdict(estimate(_of(by_seed, corpus))) for corpus in corpora}
    reasons = [metric.reason for metric in by_seed.values() if metric.reason]
    mean = asdict(estimate(_values(by_seed)))
    return {**mean, "per_corpus": each, "reason": reasons[0] if reasons else None}
