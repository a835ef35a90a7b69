"""What is to be kept: a corpus's loss before the last phase, by the size of the model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from treering.analysis.laws.form import Array
from treering.analysis.laws.pilots import Run, last_phase
from treering.analysis.matrix import header_of
from treering.records import ANNEALED


@dataclass(frozen=True)
class Before:
    """The mean loss at each of some sizes, these ascending; of one size alone it is that of all."""

    sizes: Array
    losses: Array

    def at(self, sizes: ArrayLike) -> Array:
        """Interpolated in the logarithms; beyond the sizes by the power law through all of them,
        begun at the nearest."""
        known, x = np.log(self.sizes), np.log(np.asarray(sizes, np.float64))
        y = np.log(self.losses)
        slope = np.polyfit(known, y, 1)[0] if len(known) > 1 else 0.0
        beyond = x - np.clip(x, known[0], known[-1])
        return np.asarray(np.exp(np.interp(x, known, y) + slope * beyond))

    def is_beyond(self, size: float) -> bool:
        """Whether it is extrapolated at a size."""
        near = 1 + 1e-9
        return len(self.sizes) > 1 and not self.sizes[0] / near <= size <= self.sizes[-1] * near


def given(nats: float) -> Before:
    """One loss for every size."""
    return Before(np.ones(1), np.array([nats]))


def known(runs: Sequence[tuple[int, Run]], corpus: str) -> Before | None:
    """A corpus's loss before the runs' last phase. None where not at two sizes. Where points are of
    annealed weights it is, too: of the branch at the end of the phase before, or of the weights
    that a run of one phase began with."""
    found: defaultdict[float, list[float]] = defaultdict(list)
    for _, run in runs:
        size = header_of(run).get("multiplying_parameters") or header_of(run).get("parameters")
        if size is not None:
            found[float(size)] += of_run(run, corpus)
    means = {size: float(np.mean(found[size])) for size in sorted(found) if found[size]}
    if len(means) < 2:
        return None
    return Before(np.array([*means]), np.array([*means.values()]))


def of_run(run: Run, corpus: str) -> Iterator[float]:
    """A corpus's loss before a run's last phase, where it was scored; see `known`."""
    at, _ = last_phase(run)
    branched = at > 0 and any(record.get("branch") == ANNEALED for record in run)
    kind, branch = ("branch_score", ANNEALED) if branched else ("score", None)
    for r in run:
        ours = r.get("kind") == kind and r.get("branch") == branch and r["corpus"] == corpus
        if ours and r["step"] == at and r.get("loss") is not None:
            yield float(r["loss"])
