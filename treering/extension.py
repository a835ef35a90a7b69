"""What of a recipe may change when a run goes on, and what may not.

    free         the mesh, checkpoints, trackers, probes, compute, how often is scored, ...
    later        phases that are to come, and how long the present one is; corpora beside the
                 others; how branches are annealed from here on
    the rate     may not jump, unless one says so
    all else     is another run

What was done is not planned again: positions, memory and Reptile's window go on as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from treering import checkpoint, records, schema, shelf
from treering.build import Data
from treering.config import Invalid, Recipe, Table

FREE = ("compute.", "batch.micro", "probe.", "guard.max_skipped", "evaluate.every_tokens",
        "evaluate.task_batch")  # fmt: skip
JUMP = 0.01  # of the rate


def changes(out: Path | None, recipe: Recipe, data: Data, *, accept_jump: bool) -> list[str]:
    """What changed since the last sitting of the run in `out` (None: a fresh one), as
    "key: old -> new".

    Raises Invalid, naming the first differences and the remedy, where it is another run.
    """
    if out is None or not (out / "records.jsonl").exists():
        return []
    headers = [r for r in records.read(out) if r["kind"] == "header"]
    if not headers:
        return []
    header = headers[-1]
    old, new = header.get("identity", {}), data.identity
    found = schema.differences(old, new)
    if not found:
        return []
    newest = checkpoint.newest(out / "checkpoints")
    at = newest[1]["plan"] if newest else {"step": 0, "phase": 0, "phase_step": 0}
    if at["phase_step"] and at["step"] in [phase["end_step"] for phase in header["phases"]]:  # done
        at = {**at, "phase": at["phase"] + 1, "phase_step": 0}
    _check_phases(old["phases"], new["phases"], data.steps, at)
    refused = [each for each in found if not _may_change(each, old)]
    if refused:
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        raise Invalid(
            f"--out {out}: the recipe changed: {'; '.join(refused[:3])}{more}; "
            "undo it, name another folder, or start anew with --fresh"
        )
    _check_corpora(list(old["corpora"]), list(new["corpora"]))
    if not accept_jump:
        _check_rate(header, recipe, data, at)
    return found


def _may_change(difference: str, old: Table) -> bool:
    key, _, values = difference.partition(": ")
    if key.startswith(("phases", "schedule.", "anneal", *FREE)):
        return True
    if key.endswith(".train") and "''" in values.split(" -> "):
        return True  # a text that no phase could see, before or now
    return key.startswith("corpora.") and key.removeprefix("corpora.") not in _keys(old["corpora"])


def _keys(corpora: Table) -> set[str]:
    """A corpus and its parts, as `schema.differences` names them."""
    return {f"{name}{part}" for name in corpora for part in ("", ".train", ".validation")}


def _check_corpora(old: list[str], new: list[str]) -> None:
    if new[: len(old)] != old:
        added = [name for name in new if name not in old]
        raise Invalid(
            f"corpora = {new}: the run has {old}; keep these in this order, and name "
            f"{added or 'new ones'} after them"
        )


def _check_phases(old: list[Table], new: list[Table], steps: tuple[int, ...], at: Table) -> None:
    begun = at["phase"] + (at["phase_step"] > 0)
    for i, phase in enumerate(old[:begun]):
        now = new[i] if i < len(new) else None
        if now == phase:
            continue
        present = i == at["phase"]
        if not present or now is None or now | {"tokens": 0} != phase | {"tokens": 0}:
            what = "being trained: only its tokens may change" if present else "done"
            raise Invalid(
                f"phases[{i}] = {now!r}: was {phase!r} and is {what}; undo it, and name what is to "
                "come as phases of its own"
            )
        if steps[i] <= at["phase_step"]:
            raise Invalid(
                f"phases[{i}].tokens = {now['tokens']}: are {steps[i]} steps, and "
                f"{at['phase_step']} of it are trained; give more"
            )


def _check_rate(header: Table, recipe: Recipe, data: Data, at: Table) -> None:
    """Raises Invalid where the next step's rate is not what it would have been; after the end of
    the old recipe, what it was last."""
    if recipe.schedule.get("span", "run") == "phase" and at["phase_step"] == 0:
        return  # a phase begins, with a rate of its own
    ends = [phase["end_step"] for phase in header["phases"]]
    lengths = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    before = shelf.schedule(schema.read(Recipe, header["recipe"], ""), lengths)
    was: Any = before(min(at["step"], ends[-1] - 1))
    now = shelf.schedule(recipe, data.steps)(at["step"])
    if at["step"] < sum(data.steps) and abs(now - was) > JUMP * was:
        raise Invalid(
            f"schedule: at step {at['step'] + 1} the rate would go from {was:.4g} to {now:.4g}, as "
            "its span became another; set schedule.span = 'phase', or accept it with --accept-jump"
        )
