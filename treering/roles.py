"""What the rows of a step count, by their roles: fresh, replayed, taught."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from treering import tables
from treering.batch import Batch


def weighted(objective: tables.Objective, batch: Batch) -> NDArray[np.float32]:
    """What each row of a batch counts in the total, by its role; float32[n]."""
    weights = np.where(batch.replayed, objective.replayed, objective.fresh)
    over = weights.sum() if objective.normalize == "weights" else len(batch)
    return (weights / max(over, np.finfo(np.float64).tiny)).astype(np.float32)


def taught_rows(objective: tables.Objective, batch: Batch) -> NDArray[np.float32]:
    """What each row's divergence from the teacher, or from what is recorded of it, counts in the
    total; float32[n]. Nothing where there is no teacher at this step."""
    if batch.recorded is not None:
        return (batch.recorded.there * (objective.der.weight / len(batch))).astype(np.float32)
    wanted = objective.teacher
    rows = {"all": batch.replayed | True, "fresh": ~batch.replayed, "replayed": batch.replayed}
    silent = batch.step % wanted.every or (wanted.from_ == "phase" and batch.phase == 0)
    weight = 0.0 if silent else wanted.weight
    return (rows[wanted.on] * (weight / len(batch))).astype(np.float32)
