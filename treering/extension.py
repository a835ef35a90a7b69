"""What of a recipe may change when a run goes on, and what may not.

    free         the mesh, checkpoints, trackers, probes, compute, how often is scored, ...
    later        phases that are to come, and how long the present one is; corpora beside the
                 others; how branches are annealed from here on
    the rates    may not jump, unless one says so
    all else     is another run

What was done is not planned again: positions, memory and Reptile's window go on as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from treering import adapter, checkpoint, folder, records, schema, shelf
from treering.build import Data
from treering.config import Invalid, Recipe, Table
from treering.tables import FREE
from treering.together import nested

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
    others = [each for each in found if not each.startswith(FREE)]
    if others and folder.finished(out, sum(data.steps)):
        raise Invalid(
            f"--out {out}: is finished, and the recipe changed: {others[0]}; add a phase, name "
            "another folder, or start anew with --fresh"
        )
    if not accept_jump:
        _check_rates(header, recipe, data, at)
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


def _check_rates(header: Table, recipe: Recipe, data: Data, at: Table) -> None:
    """Raises Invalid where a rate of the next step is not what it would have been; after the end of
    the old recipe, what it was last."""
    ends = [phase["end_step"] for phase in header["phases"]]
    lengths = tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))
    older = schema.read(Recipe, header["recipe"], "")
    for (where, old), (_, new) in zip(_scheduled(older), _scheduled(recipe), strict=True):
        if new.get("span", "run") == "phase" and at["phase_step"] == 0:
            continue  # a phase begins, with a rate of its own
        before = shelf.schedule(replace(older, schedule=old), lengths)
        was = before(min(at["step"], ends[-1] - 1))
        now = shelf.schedule(replace(recipe, schedule=new), data.steps)(at["step"])
        if at["step"] < sum(data.steps) and abs(now - was) > JUMP * was:
            raise Invalid(
                f"{where}: at step {at['step'] + 1} the rate would go from {was:.4g} to "
                f"{now:.4g}, as its span became another; set {where}.span = 'phase', or accept it "
                "with --accept-jump"
            )
    i = at["phase"]
    if adapter.thins(recipe) and at["phase_step"] and data.steps[i] != lengths[i]:
        raise Invalid(
            f"phases[{i}].tokens = {recipe.phases[i].tokens}: adapter.threshold thins gates by how "
            "far a phase is, and was of another length; add a phase of its own, or accept it with "
            "--accept-jump"
        )


def _scheduled(recipe: Recipe) -> Iterator[tuple[str, Table]]:
    """Tables of schedules and what they are called: of the rate, and of outer rates."""
    yield "schedule", recipe.schedule
    for depth, table in enumerate(nested(recipe)):
        if isinstance(table.get("rate"), dict):
            yield "update" + ".inner" * depth + ".rate", table["rate"]
