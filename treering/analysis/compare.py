"""Arms against one another: means over seeds with intervals, paired differences to a baseline.

    runs --arms--> Arm(name, {seed: records}) --compare--> a table ready for JSON

Seeds are paired: the difference of two arms is taken seed by seed, for seeds that both have. A
difference is shown where Student's 95% interval of the paired differences leaves out 0; with one
seed nothing can be concluded. Beside it stands the bootstrap over seeds (the percentiles of all
resamples), which with few seeds is too narrow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from treering.analysis.curves import Clock, end, is_before, matrix_at, spent, standing
from treering.analysis.differences import METRICS, judged
from treering.analysis.forgetting import none_for_nan
from treering.analysis.matrix import branches_of, header_of, lent, matrix, scores_of
from treering.analysis.runs import Arm
from treering.config import Invalid
from treering.records import Record

VIEWS = {"end": "at the end", "equal_tokens": "at equal tokens", "equal_flops": "at equal FLOPs"}


def compare(
    arms: Sequence[Arm], *, baseline: str | None = None, metric: str = "loss"
) -> dict[str, Any]:
    """Every arm's metrics and costs at its end, and at equal tokens and equal FLOPs: at the least
    that any arm's run spent, interpolated along each run's records. Ready for JSON.

    baseline: the arm to which all differences are taken; by default each arm's own, of arms without
    one the first's, or else the first arm.
    """
    kept, notes = _finished(arms)
    if not kept:
        raise Invalid("no run is finished, so nothing can be compared; run them to their ends")
    against, more = _against(kept, baseline)
    first = next(iter(against.values()))
    stands = {arm.name: standing(arm, kept).name for arm in kept}
    every = [records for arm in kept for records in arm.runs.values()]
    corpora = dict.fromkeys(c for r in every for c in header_of(r)["recipe"]["corpora"])
    table: dict[str, Any] = {
        "baseline": first,
        "metric": metric,
        "corpora": list(corpora),
        "notes": [
            *notes,
            *more,
            *_missing(kept, metric),
            *_unpaired(kept, against),
            *_aside(stands),
            *_cut_otherwise(kept, metric),
        ],
        "arms": {arm.name: _costs(arm) for arm in kept},
        "end": judged(kept, against, partial(matrix, metric=metric)),
    }
    there = [arm for arm in kept if stands[arm.name] == arm.name]
    to = {name: stands[against[name]] for name in against}
    clocks: tuple[Clock, Clock] = ("tokens", "flops")
    for clock in clocks:
        costs = [end(records, clock, arm.branch) for arm in there for records in arm.runs.values()]
        least = float(np.min(costs))  # NaN if one is NaN
        cut = partial(matrix_at, clock=clock, spent=least, metric=metric)
        table[f"equal_{clock}"] = {"at": least, **judged(there, to, cut)}
        table["notes"] += [
            f"{VIEWS[f'equal_{clock}']} {arm.name} is cut before the branch: not annealed yet"
            for arm in there
            if is_before(arm, clock, least)
        ]
    table["notes"] += [note for view in VIEWS for note in _apart(table, view)]
    plain: dict[str, Any] = none_for_nan(table)
    return plain


def check_baseline(baseline: str | None, names: Sequence[str]) -> None:
    """Raises Invalid for a baseline that is none of the arms."""
    if baseline is not None and baseline not in names:
        raise Invalid(f"--baseline {baseline}: no such finished arm; there are {', '.join(names)}")


def _against(arms: Sequence[Arm], baseline: str | None) -> tuple[dict[str, str], list[str]]:
    """Each arm's baseline, and a note for each that is not there."""
    names = [arm.name for arm in arms]
    check_baseline(baseline, names)
    wanted = {arm.name: baseline or arm.baseline for arm in arms}
    first = next((name for name in wanted.values() if name in names), names[0])
    found = {name: own if own in names else first for name, own in wanted.items()}
    lost = dict.fromkeys(own for own in wanted.values() if own is not None and own not in names)
    who = {own: [name for name in names if wanted[name] == own and name != first] for own in lost}
    return found, [
        f"{own}, the baseline, is not finished: differences of {', '.join(who[own])} are to {first}"
        for own in lost
        if who[own]
    ]


def is_finished(records: Sequence[Record]) -> bool:
    """Whether a run trained all its phases and was scored after the last of them, its branches
    too."""
    header = header_of(records)
    scores = scores_of(records, "loss").get(header["phases"][-1]["end_step"], {})
    ended = any(r.get("kind") == "end" and r.get("reason") == "finished" for r in records)
    every = len(scores) == len(header["recipe"]["corpora"]) and not branches_of(records)
    return bool(scores) and (ended or every)


def _cut_otherwise(arms: Sequence[Arm], metric: str) -> list[str]:
    """A note where a loss per token is of other tokens in other arms."""
    every = [header_of(records) for arm in arms for records in arm.runs.values()]
    marks = {str(header.get("identity", {}).get("tokenizer")) for header in every}
    if metric != "loss" or len(marks) == 1:
        return []
    return ["tokenizers differ, so that losses per token are of other tokens: compare them by "
            "--metric bits_per_byte"]  # fmt: skip


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
    """A note for each run that has no number where it should, which the means leave out, and for
    each branch that has its run's."""
    notes = []
    for arm in arms:
        for seed, records in arm.runs.items():
            scores = matrix(records, metric=metric, branch=arm.branch)
            found = [metric_of(scores) for metric_of in METRICS.values()]
            lost = [m.reason for m in found if np.isnan(list(m.per_corpus.values())).any()]
            if lost:
                notes.append(f"{arm.name}, seed {seed}: {lost[0]}; left out of the means")
        earlier = dict.fromkeys(p for r in arm.runs.values() for p in lent(r, arm.branch).values())
        if earlier:
            notes.append(f"{arm.name}: the scores at the end of {', '.join(earlier)} are those of "
                         "the run, which it left later")  # fmt: skip
    return notes


def _unpaired(arms: Sequence[Arm], against: Mapping[str, str]) -> list[str]:
    """A note for each baseline to which no interval of a difference can be given."""
    seeds, notes = {arm.name: {*arm.runs} for arm in arms}, []
    for baseline in dict.fromkeys(against.values()):
        theirs = [name for name in seeds if against[name] == baseline]
        few = [name for name in theirs if len(seeds[name] & seeds[baseline]) < 2]
        if len(seeds[baseline]) == 1:
            text = f"{baseline} has one seed: nothing can be concluded from its figures"
        else:
            text = f"fewer than two seeds in common with {baseline}, so nothing can be concluded: "
            text += ", ".join(few)
        notes += [text] if few else []
    return notes


def _aside(stands: Mapping[str, str]) -> list[str]:
    """A note for each arm that is not there at equal cost."""
    return [
        f"{name}: at equal tokens and FLOPs {other} stands for it"
        for name, other in stands.items()
        if name != other
    ]


def _apart(table: Mapping[str, Any], view: str) -> list[str]:
    """A note for each difference without a verdict, as the means are not over the same corpora."""
    notes = []
    for arm, metrics in table[view]["differences"].items():
        apart = dict.fromkeys(corpus for found in metrics.values() for corpus in found["apart"])
        if apart:
            both = f"{arm} and {next(iter(metrics.values()))['baseline']}"
            notes.append(f"{VIEWS[view]} only one of {both} is judged by {', '.join(apart)}: their "
                         "means are not compared")  # fmt: skip
    return notes


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
