"""Annealed branches: beside the run the rate falls to an end, and the run goes on from before.

At a phase's end, or within it, the branch trains more of the phase with a falling rate; then it is
scored, exported, and stays in `annealed/PHASE` (`PHASE@STEP` within it), a run folder that tells
the whole history of its weights.
What goes into the next phase is the checkpoint from before it (arXiv 2403.08763, section 7), so the
run's weights, moments, memory and order are those of a run without branches.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from treering import folder, records, schema, shelf
from treering.atomic import replacing
from treering.build import Data, Parts
from treering.config import Recipe, exact
from treering.ledger import Ledger
from treering.position import State
from treering.records import ANNEALED, Record
from treering.report.live import Live
from treering.tables import FREE, Anneal, Track

SPENT = ("tokens", "fresh_tokens", "flops")
SCORED_AS = ("phase", "corpus", "loss", "bits_per_byte", "tokens")


@dataclass(frozen=True)
class Branch:
    """What a run of the branch is made of, as a run is."""

    recipe: Recipe
    data: Data
    parts: Parts
    out: Path

    def begin(self, carried: Path, live: Live) -> bool:
        """Make its folder with the records of the run so far, once; whether it is not finished
        yet. One that was trained otherwise is set aside; a finished one may know fewer corpora."""
        log, now = self.out / "records.jsonl", self.data.identity
        was = _last_header(log).get("identity", {}) if log.exists() else {}
        trained = ("phases", "anneal")
        if folder.finished(self.out) and all(was.get(key) == now[key] for key in trained):
            return False
        other = [key for key in schema.differences(was, now) if not key.startswith(FREE)]
        if log.exists() and other:
            folder.make(self.out, live.say, fresh=True)
        live.say(f"an annealed branch, {self.out.name}, to step {sum(self.data.steps)}:")
        self.out.mkdir(parents=True, exist_ok=True)
        if not log.exists():
            with replacing(log) as beside:
                shutil.copyfile(carried / "records.jsonl", beside)
        return True

    def scores(self, step: int, before: Ledger) -> list[Record]:
        """Its last scores as fields of branch scores at the `step` where it left the run, with what
        was trained and spent beyond that. `before`: the run's ledger there."""
        found = records.read(self.out)
        trained = {r["step"]: r for r in found if r["kind"] == "step"}
        last, left = trained[max(trained)], trained[step]
        place = {"step": step, "branch": ANNEALED}
        beyond = {f"{name}_beyond": last[name] - left[name] for name in SPENT}
        spent = [r["ledger"]["evaluation_flops"] for r in found if "ledger" in r]
        beyond["evaluation_flops_beyond"] = spent[-1] - before.evaluation_flops
        scored = [r for r in found if r["kind"] == "score" and r["step"] == last["step"]]
        return [{name: r[name] for name in SCORED_AS if name in r} | place | beyond for r in scored]


def steps(recipe: Recipe) -> int:
    """Those of all branches of a run."""
    shares = [share for phase in recipe.phases for share in _shares(recipe.anneal, phase.name)]
    return sum(_steps(recipe, share) for share in shares)


def due(recipe: Recipe, steps: tuple[int, ...], state: State) -> float | None:
    """The share of its phase after which a branch leaves at a state of the plan; None where none
    does."""
    at = state.phase
    if not recipe.anneal.tokens or at == len(steps):
        return None
    shares = _shares(recipe.anneal, recipe.phases[at].name)
    return {ceil(exact(share) * steps[at]): share for share in shares}.get(state.phase_step)


def branch(recipe: Recipe, data: Data, parts: Parts, out: Path, state: State) -> Branch | None:
    """The branch that begins at a state of the plan in the run `out`, if any."""
    share, at = due(recipe, data.steps, state), state.phase
    if share is None:
        return None
    phase, ends = recipe.phases[at], state.phase_step == data.steps[at]
    trained = phase.tokens if ends else state.phase_step * recipe.batch.tokens
    tokens = trained + ceil(exact(share) * recipe.anneal.tokens)
    phases = (*recipe.phases[:at], replace(phase, tokens=tokens))
    longer = (*data.steps[:at], state.phase_step + _steps(recipe, share))
    rate = shelf.annealed(recipe, parts.rules.schedule, state.step, sum(longer))
    named = {"phases": [schema.values(each) for each in phases]}
    return Branch(
        replace(recipe, phases=phases, anneal=Anneal(), track=Track()),
        replace(data, steps=longer, identity=data.identity | named),
        replace(
            parts,
            stream=replace(parts.stream, steps=longer),
            rules=replace(parts.rules, schedule=rate),
        ),
        out / ANNEALED / (phase.name if ends else f"{phase.name}@{state.phase_step}"),
    )


def _shares(wanted: Anneal, phase: str) -> list[float]:
    """The shares of a phase after which a branch leaves, rising; 1 is its end."""
    return sorted({*wanted.at.get(phase, ()), *((1.0,) if wanted.after(phase) else ())})


def _steps(recipe: Recipe, share: float) -> int:
    return ceil(exact(share) * recipe.anneal.tokens / recipe.batch.tokens)


def _last_header(log: Path) -> Record:
    headers = [r for r in records.read(log) if r["kind"] == "header"]
    return headers[-1] if headers else {}
