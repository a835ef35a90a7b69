"""What charts and figures draw: each arm's lines, averaged over its seeds, from its records.

Arm(name, {seed: records}) -> View: matrix, held-out losses, training loss, rate, share, speed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from treering.analysis.curves import curves
from treering.analysis.matrix import Matrix, Row, header_of, matrix
from treering.analysis.runs import Arm
from treering.records import Record

Floats = NDArray[np.float64]
POINTS = 240  # of a line; more of them no screen shows


@dataclass(frozen=True)
class Line:
    """Over `x` tokens: means over seeds, the least and the greatest of them, float64[n] each."""

    x: Floats
    y: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True)
class View:
    """What is shown of an arm. `values` float64[rows, corpora] are the means over seeds of its
    matrices; `steps` has a line for each number of step records, by their keys. Those lines and
    `cosine` have no points in a `branch`: they are its run's."""

    name: str
    seeds: tuple[int, ...]
    header: Record
    rows: tuple[Row, ...]
    corpora: tuple[str, ...]
    values: Floats
    matrices: tuple[Matrix, ...]
    held_out: dict[str, Line]
    steps: dict[str, Line]
    cosine: Line
    end: str | None
    branch: str | None

    @property
    def boundaries(self) -> list[tuple[float, str]]:
        """Where each phase ended: tokens and name."""
        return [(float(row.tokens or 0), row.label) for row in self.rows[1:]]

    @property
    def switches(self) -> list[tuple[float, str]]:
        """Where one phase ended and another began."""
        over = len(self.boundaries) == len(self.header["phases"])
        return self.boundaries[:-1] if over else self.boundaries

    @property
    def asked(self) -> float:
        """The share of replay that the recipe asks for."""
        return float(self.header["recipe"].get("replay", {}).get("share", 0.0))


def view(arm: Arm) -> View:
    """An arm as it is shown; unfinished runs as far as they came."""
    runs = list(arm.runs.values())
    steps = [] if arm.branch else runs
    matrices = [matrix(run, branch=arm.branch) for run in runs]
    longest = max(matrices, key=lambda found: len(found.rows))
    shape = longest.values.shape
    stacked = np.full((len(runs), *shape), np.nan)
    for i, found in enumerate(matrices):
        if found.corpora == longest.corpora:
            stacked[i, : len(found.rows)] = found.values
    return View(
        name=arm.name,
        seeds=tuple(sorted(arm.runs)),
        header=header_of(runs[0]),
        rows=longest.rows,
        corpora=longest.corpora,
        values=_nanmean(stacked),
        matrices=tuple(matrices),
        held_out=_held_out(runs, longest.corpora, arm.branch),
        steps={key: _steps(steps, key) for key in ("loss", "rate", "tokens_per_second", "share")},
        cosine=_joined(_binned([_probes(run) for run in steps])),
        end=_end(runs),
        branch=arm.branch,
    )


def _held_out(
    runs: Sequence[Sequence[Record]], corpora: Sequence[str], branch: str | None
) -> dict[str, Line]:
    found = [curves(run, branch=branch) for run in runs]
    return {
        corpus: _joined([(c.tokens, c.scores[corpus]) for c in found if corpus in c.scores])
        for corpus in corpora
    }


def _steps(runs: Sequence[Sequence[Record]], key: str) -> Line:
    """A number of the step records; "share" is that of replayed tokens in all so far."""
    found: list[tuple[Floats, Floats]] = []
    for run in runs:
        steps = [r for r in run if r.get("kind") == "step"]
        tokens = np.array([_float(r.get("tokens")) for r in steps])
        if key == "share":
            values = 1 - np.array([_float(r.get("fresh_tokens")) for r in steps]) / tokens
        else:
            values = np.array([_float(r.get(key)) for r in steps])
        found.append((tokens, values))
    return _joined(_binned(found))


def _probes(run: Sequence[Record]) -> tuple[Floats, Floats]:
    """Cosines of gradients over tokens; a probe is made before its step."""
    tokens = {r["step"]: r.get("tokens") for r in run if r.get("kind") == "step"}
    found = [r for r in run if r.get("kind") == "probe"]
    x = np.array([_float(tokens.get(r["step"])) for r in found])
    return x, np.array([_float(r.get("cosine")) for r in found])


def _joined(found: Sequence[tuple[Floats, Floats]]) -> Line:
    """One line out of several seeds': they share the points of the longest, cut where they end."""
    longest = max((x for x, _ in found), key=len, default=np.zeros(0))
    values = np.full((max(1, len(found)), len(longest)), np.nan)
    for i, (x, y) in enumerate(found):
        values[i, : len(x)] = y[: len(longest)]
    low, high = (np.where(np.isfinite(values), values, far) for far in (np.inf, -np.inf))
    return Line(longest, _nanmean(values), low.min(0), high.max(0))


def _binned(found: Sequence[tuple[Floats, Floats]]) -> list[tuple[Floats, Floats]]:
    """At most POINTS means of neighbours; of how many is the same for all seeds, so that the
    points of one that is behind lie where those of the others do."""
    width = max(1, -(-max((len(x) for x, _ in found), default=0) // POINTS))
    return [(_means(x, width), _means(y, width)) for x, y in found]


def thinned(line: Line, points: int) -> Line:
    """At most so many means of neighbours."""
    width = max(1, -(-len(line.x) // points))
    return Line(*(_means(each, width) for each in (line.x, line.y, line.low, line.high)))


def picked(line: Line, points: int, ends: Sequence[float]) -> Line:
    """At most so many of a line's own points, spread evenly, and those where a phase ends."""
    if len(line.x) <= points:
        return line
    spread = np.linspace(0, len(line.x) - 1, points).round().astype(np.int64)
    at = np.union1d(spread, np.flatnonzero(np.isin(line.x, ends)))
    return Line(line.x[at], line.y[at], line.low[at], line.high[at])


def _means(values: Floats, width: int) -> Floats:
    groups = np.full((-(-len(values) // width), width), np.nan)
    groups.flat[: len(values)] = values
    return _nanmean(groups.T)


def _nanmean(values: Floats) -> Floats:
    """Over the first axis, NaN where all are; without numpy's warning about it."""
    known = np.isfinite(values)
    counts = known.sum(0)
    sums = np.where(known, values, 0.0).sum(0)
    means: Floats = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return means


def _end(runs: Sequence[Sequence[Record]]) -> str | None:
    """How the runs ended: the reason that all have, "running" where one has none yet."""
    reasons = []
    for run in runs:
        sittings = [r for r in run if r.get("kind") in ("header", "step", "end")]
        ended = sittings[-1]["kind"] == "end"
        reasons.append(str(sittings[-1].get("reason")) if ended else "running")
    return reasons[0] if len(set(reasons)) == 1 else "running"


def _float(value: Any) -> float:
    return float("nan") if value is None else float(value)
