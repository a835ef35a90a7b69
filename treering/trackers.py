"""Trackers: the records of a run, mirrored while they are written.

    Journal -> Mirror.write(kind, fields) -> numbers -> TensorBoard | Wandb | Trackio

A tracker that fails is dropped with one warning, and the run goes on. A resumed run writes the
steps after its checkpoint again, and its trackers show them once all the same:

    tensorboard  hides what it has of these steps: its readers honour `purge_step`
    wandb        goes on with the same run, and ignores the steps that its server has; offline it
                 cannot know them, and each sitting is a folder of its own with the same id
    trackio      goes on with the same run; what its local store has of a step is not sent again
"""

from __future__ import annotations

import math
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from treering import schema
from treering.config import Invalid, Recipe
from treering.schema import Table, near
from treering.tables import Track


class Tracker(Protocol):
    """A place that shows numbers over steps."""

    def log(self, numbers: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Tracked:
    """A run as its trackers know it: `mark` is its own for as long as its folder is."""

    folder: Path
    project: str
    name: str
    mark: str
    step: int  # records up to this one stand; 0 = none do
    recipe: Table


class TensorBoard:
    """Event files in the run's folder, where `tensorboard --logdir` finds them."""

    def __init__(self, run: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = run.step + 1 if run.step else 0
        make: Any = SummaryWriter  # itself untyped
        self._writer = make(run.folder / "tensorboard", purge_step=first, flush_secs=10)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        for name, number in numbers.items():
            self._writer.add_scalar(name, number, step)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, in the mode that its own settings say (WANDB_MODE)."""

    def __init__(self, run: Tracked) -> None:
        import wandb

        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.mark,
            resume="allow",
            dir=run.folder,
            config=run.recipe,
            settings=wandb.Settings(console="off"),  # it would put itself around the live line
        )

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, in the folder that its own settings say (TRACKIO_DIR)."""

    def __init__(self, run: Tracked) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.mark}",  # by which it knows the run again
            resume="allow",
            config=run.recipe,
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        known = SQLiteStorage.get_logs(run.project, self._run.name, run_id=self._run.id)
        self._known = {(row["step"], name) for row in known for name in row}
        self._finish = trackio.finish  # of the run that was begun last, which is this one

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        new = {name: n for name, n in numbers.items() if (step, name) not in self._known}
        if new:
            self._run.log(new, step=step)

    def close(self) -> None:
        self._finish()


KINDS: dict[str, Callable[[Tracked], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Mirror:
    """A tracker that may fail: then it is dropped, and the user told once."""

    def __init__(self, name: str, run: Tracked) -> None:
        self._name = name
        self._tracker: Tracker | None = None
        try:
            self._tracker = KINDS[name](run)
        except Exception as error:
            self._drop(error)

    def write(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Pass on what a record says in numbers."""
        found = numbers(kind, fields)
        if self._tracker is None or not found:
            return
        try:
            self._tracker.log(found, fields["step"])
        except Exception as error:
            self._drop(error)

    def close(self) -> None:
        """Return when the tracker has everything."""
        if self._tracker is None:
            return
        try:
            self._tracker.close()
        except Exception as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        self._tracker = None
        why = (str(error).splitlines() or [""])[0]
        warnings.warn(
            f"tracker {self._name} failed ({type(error).__name__}: {why}); the run goes on without",
            stacklevel=2,
        )


def check(wanted: Track) -> None:
    """Raises Invalid for a tracker that is unknown or not installed."""
    for name in wanted.to:
        if name not in KINDS:
            raise Invalid(f"track.to = {name!r}: no such tracker{near(name, list(KINDS))}")
        if find_spec(name) is None:
            remedy = f"pip install 'treering[{name}]', or leave it out"
            raise Invalid(f"track.to = {name!r}: is not installed; {remedy}")


def mirrors(recipe: Recipe, folder: Path, step: int) -> list[Mirror]:
    """The trackers that the recipe names, open; records up to `step` stand (0 = none do)."""
    wanted = recipe.track
    if not wanted.to:
        return []
    own = folder / "track-id"
    mark = (own.read_text() if own.exists() else "") or secrets.token_hex(4)
    own.write_text(mark)
    name = wanted.name or folder.absolute().name
    run = Tracked(folder, wanted.project, name, mark, step, schema.values(recipe))
    return [Mirror(tracker, run) for tracker in dict.fromkeys(wanted.to)]


def numbers(kind: str, fields: Mapping[str, Any]) -> dict[str, float]:
    """What a record says in numbers, by the name that a tracker shows; none of most kinds."""
    found: dict[str, Any] = {}
    if kind in ("score", "branch_score"):
        end = fields["corpus"] + (f"/{fields['branch']}" if "branch" in fields else "")
        found = {f"held_out/{end}": fields["loss"]}
        found[f"bits_per_byte/{end}"] = fields["bits_per_byte"]
    elif kind == "task":
        found = {f"task/{fields['task']}/{fields['metric']}": fields["value"]}
    elif kind in ("step", "probe"):
        group = "train" if kind == "step" else "probe"
        found = {f"{group}/{name}": value for name, value in fields.items() if name != "step"}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, float | int) and math.isfinite(value)
    }
