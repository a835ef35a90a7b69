"""Records of runs that never were: with the scores that a test wants, 10 steps a phase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Record = dict[str, Any]
Rows = Sequence[Sequence[float | None]]

THREE = (("t1",), ("t2",), ("t3",))


def run(
    values: Rows,
    *,
    mixtures: Sequence[Sequence[str]] = THREE,
    seed: int = 0,
    method: str = "descent",
    past: Sequence[str] = (),
    within: Mapping[int, Sequence[float | None]] | None = None,
    branches: Mapping[str, Rows] | None = None,
    spent: tuple[float | None, float | None] = (100, 1e9),
) -> list[Record]:
    """A run that is scored as in `values`: row 0, then one for each phase.

    within: more rows by their step; branches: rows for the phase ends alone; spent: tokens and
    FLOPs of a step.
    """
    corpora = [f"t{j + 1}" for j in range(len(values[0]))]
    scored = {10 * i: row for i, row in enumerate(values)} | dict(within or {})
    records = [header(corpora, mixtures, seed=seed, method=method, past=past)]
    for step in range(10 * (len(values) - 1) + 1):
        records += [_step(step, spent)] if step else []
        if step in scored:
            records += _scores(step, corpora, scored[step], {"kind": "score"})
            for branch, rows in (branches or {}).items() if step and step % 10 == 0 else ():
                more = {"kind": "branch_score", "branch": branch}
                records += _scores(step, corpora, rows[step // 10 - 1], more)
    return [*records, {"kind": "end", "reason": "finished", "seconds": 60.0}]


def header(
    corpora: Sequence[str],
    mixtures: Sequence[Sequence[str]],
    *,
    seed: int = 0,
    method: str = "descent",
    past: Sequence[str] = (),
) -> Record:
    phases = [
        {"name": f"p{i + 1}", "tokens": 1000, "mixture": dict.fromkeys(names, 1.0)}
        for i, names in enumerate(mixtures)
    ]
    recipe = {
        "seed": seed,
        "corpora": {name: {"train": f"{name}.txt", "validation": 0.1} for name in corpora},
        "phases": phases,
        "replay": {"share": 0.25, "past": list(past)},
        "update": {"kind": method},
    }
    ends = [{"name": phase["name"], "end_step": 10 * (i + 1)} for i, phase in enumerate(phases)]
    digests = {name: {"train": f"digest of {name}"} for name in corpora}
    identity = recipe | {"corpora": digests}
    return {"kind": "header", "recipe": recipe, "identity": identity, "phases": ends}


def cut(records: Sequence[Record], step: int) -> list[Record]:
    """What a run had written when it was killed after a step."""
    return [r for r in records if r.get("step", 0) <= step and r["kind"] != "end"]


def _step(step: int, spent: tuple[float | None, float | None]) -> Record:
    tokens, flops = spent
    return {
        "kind": "step",
        "step": step,
        "tokens": None if tokens is None else int(step * tokens),
        "fresh_tokens": None if tokens is None else int(step * tokens * 0.75),
        "flops": None if flops is None else step * flops,
        "seconds": 2.0 * step,
    }


def _scores(
    step: int, corpora: Sequence[str], row: Sequence[float | None], more: Record
) -> list[Record]:
    return [
        {
            **more,
            "step": step,
            "corpus": corpus,
            "loss": loss,
            "bits_per_byte": None if loss is None else loss / 2,
            "tokens": 512,
        }
        for corpus, loss in zip(corpora, row, strict=True)
    ]
