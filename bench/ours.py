"""Treering's side of a comparison: a whole run that takes turns, its records written.

`python bench/ours.py RECIPE [STEPS]`: the recipe's folder has its corpora prepared in `cache`. So
many steps are made before the first turn.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from turns import Turns

from treering import build, config
from treering.batch import Batch
from treering.interruption import interruption
from treering.mesh import joined
from treering.protocols import Learner, Metrics, Update
from treering.report.live import Live
from treering.training import Run
from treering.wrapping import Wrapping


@dataclass
class Taking(Wrapping):
    """An update that takes turns."""

    inner: Update
    turns: Turns
    after: int  # steps before the first turn

    def __call__(self, learner: Learner, batch: Batch) -> Metrics:
        if batch.step == self.after:
            self.turns.begin()
        metrics = self.inner(learner, batch)
        if batch.step >= self.after:
            self.turns.loss(metrics.loss)
            self.turns.charge(metrics.training_flops + metrics.meta_flops)
            self.turns.stepped()
        return metrics


def main(path: Path, after: int) -> None:
    turns = Turns()
    recipe = config.load(path)
    data = build.data(recipe, path.parent / "cache")
    out = path.with_suffix(".run")
    shutil.rmtree(out, ignore_errors=True)
    with joined(recipe.mesh) as mesh, interruption() as heard:
        parts = build.parts(recipe, data, mesh)
        parts = replace(parts, update=Taking(parts.update, turns, after))
        out.mkdir()
        Run(recipe, data, parts, out, Live(Console(quiet=True))).walk(heard, [])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
