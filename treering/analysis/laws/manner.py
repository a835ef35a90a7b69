"""How the rate went in pilots: a law predicts a run whose rate goes as theirs did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from treering.analysis.laws.pilots import Run, last_phase, of_run
from treering.analysis.matrix import header_of
from treering.config import Invalid, Table
from treering.records import ANNEALED

OF_A_FALL = ("shape", "floor")  # of what the recipe says of branches


@dataclass(frozen=True)
class Manner:
    """What the recipes of pilots have in common of their `schedule`; of annealed branches, where
    these are the points, also of `anneal`, and their tokens as a `part` of those before them in the
    phase: 0 where points are of the runs themselves."""

    schedule: Table
    anneal: Table
    part: float


def manner(runs: Sequence[tuple[int, Run]]) -> Manner | None:
    """Of a CSV, whose runs are not known, None. Raises Invalid where some points are of annealed
    branches and others not, and where schedules differ in more than their peak."""
    if not runs:
        return None
    begun = [run for _, run in runs if of_run(run, 0, 0)]
    parts = [list(_parts(run)) for run in begun]
    recipes = [header_of(run)["recipe"] for run in begun]
    schedule, differ = _common([recipe.get("schedule", {}) for recipe in recipes])
    if any(parts) and not all(parts):
        raise Invalid(f"of {len(begun)} pilots {sum(map(bool, parts))} have annealed branches; "
                      "name those of one kind, as a law is of one")  # fmt: skip
    falls = [r.get("anneal", {}) if any(parts) else {} for r in recipes]
    anneal, more = _common([{k: v for k, v in f.items() if k in OF_A_FALL} for f in falls])
    wrong = [f"schedule.{k}" for k in differ if k != "peak"] + [f"anneal.{k}" for k in more]
    if wrong:
        raise Invalid(f"pilots differ in {', '.join(wrong)}; name those of one manner, as a law is "
                      "of one")  # fmt: skip
    return Manner(
        schedule, anneal, float(np.mean([own[-1] for own in parts])) if any(parts) else 0.0
    )


def _parts(run: Run) -> Iterator[float]:
    """Of each branch that left the last phase, in order."""
    begin, _ = last_phase(run)
    tokens = {0: 0} | {r["step"]: r["tokens"] for r in run if r.get("kind") == "step"}
    beyond = {
        r["step"]: r["tokens_beyond"]
        for r in run
        if r.get("kind") == "branch_score" and r.get("branch") == ANNEALED and r["step"] > begin
    }
    for step in sorted(beyond.keys() & tokens.keys()):
        yield beyond[step] / (tokens[step] - tokens.get(begin, 0))


def _common(tables: Sequence[Table]) -> tuple[Table, list[str]]:
    """What all have, and the keys of what they do not."""
    keys: dict[str, Any] = {key: None for table in tables for key in table}
    differ = [key for key in keys if any(t.get(key) != tables[0].get(key) for t in tables)]
    first = tables[0] if tables else {}
    return {key: value for key, value in first.items() if key not in differ}, differ
