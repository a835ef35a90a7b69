"""A whole run: assemble the parts, walk the phases, keep the records. Start reading here."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from treering import build, cache, folder, outcome, records
from treering.batch import Batch
from treering.branch import branch, due
from treering.config import Recipe, Table
from treering.consolidation import learned
from treering.extension import changes
from treering.header import header, speed
from treering.interruption import Interruption, Preempted, interruption, reason
from treering.journal import Journal
from treering.ledger import Ledger
from treering.mesh import joined
from treering.position import State
from treering.predictions import predictions
from treering.probe import probe, probing
from treering.report.live import Live
from treering.saving import Saver
from treering.scoring import Unscored, forward_flops, late, score, scored
from treering.trackers import mirrors


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    fresh: bool = False,
    accept_jump: bool = False,
    cache_folder: str | None = None,
    console: Console | None = None,
) -> Table:
    """Train a recipe in the folder `out`, or go on where its last sound checkpoint is; returns
    the summary. `fresh` sets an older folder aside and begins anew. See extension.py for what of
    the recipe may have changed; `accept_jump`: so may the rate.

    Raises Invalid for bad input before anything is written, KeyboardInterrupt after Ctrl-C, when
    all is saved, and OSError where the disk is full.
    """
    out = Path(out)
    build.check_extras(recipe)
    with joined(recipe.mesh) as mesh:
        live = Live(console or Console(stderr=True, quiet=mesh.rank > 0))
        with folder.locked(out, mesh) as existed:
            mesh.told(lambda: folder.check(out))
            kept, to = None if fresh else out, cache.cache_folder(cache_folder)
            data = mesh.first(lambda: build.data(recipe, to, kept))
            changed = mesh.told(lambda: changes(kept, recipe, data, accept_jump=accept_jump))
            if not fresh and mesh.told(lambda: folder.finished(out, sum(data.steps))):
                live.say(f"{out} is finished: its summary is in {out / 'summary.json'}")
                return folder.summary(out)
            parts = build.parts(recipe, data, mesh)
            mesh.told(lambda: folder.make(out, live.say, fresh=fresh))
            own = nullcontext() if existed and not fresh else folder.locked(out, mesh)
            times = {"timeout": recipe.mesh.timeout, "grace": recipe.checkpoint.grace}
            with own, live, interruption(**times) as heard:
                return Run(recipe, data, parts, out, live).walk(heard, changed)


class Run:
    """One sitting of a run: what it holds is resumed from the newest sound checkpoint."""

    def __init__(
        self, recipe: Recipe, data: build.Data, parts: build.Parts, out: Path, live: Live,
        begin: tuple[Path, Table] | None = None,
    ) -> None:  # fmt: skip
        """`begin`: another run's checkpoint, to begin with where there is none."""
        self.recipe, self.data, self.parts, self.out, self.live = recipe, data, parts, out, live
        self.mesh = parts.learner.forward.mesh
        self.ledger, self.state = Ledger(), data.planner.start()
        self.earlier, self.began = 0.0, time.monotonic()  # seconds of earlier sittings; of this one
        kept = predictions(recipe, data.planner.sizes, parts.stream.vocabulary, out)
        self.saver = Saver(out, parts.learner, parts.update, recipe.checkpoint, kept)
        self.unscored: Table | None = None  # where an interruption came before all was scored
        self.late: list[tuple[str, Table]] = []  # row 0 of corpora that came later
        found = self.saver.newest() or begin
        if found:
            self.late = late(parts, self.mesh.told(lambda: scored(records.read(out))))
            path, numbers = found
            self.state = self.saver.restore(path, numbers, self.state)
            self.ledger, self.earlier = Ledger(**numbers["ledger"]), numbers["seconds"]
            self.unscored = numbers.get("unscored")
            live.say(f"resuming after step {self.state.step} from {path}")
        log, reached = out / "records.jsonl", self.state.step if found else -1
        self.mesh.told(lambda: records.cut(log, reached, scored=self.unscored is None))
        to = log if self.mesh.rank == 0 else None
        self.journal = Journal(to, recipe, speed(recipe, parts.learner))

    def walk(self, heard: Interruption, changed: list[str]) -> Table:
        """Train to the end, and sum up. An interruption is heard between two steps."""
        try:
            if self.mesh.rank == 0:
                folder.describe(self.out, self.recipe, self.data.tokenizer)
                self.journal.mirrors = mirrors(self.recipe, self.out, self.state.step)
            start = header(self.recipe, self.data, self.parts.learner)
            self.journal.write("header", start | {"changes": changed})
            for kind, found in self.late:
                self.journal.write(kind, found)
                spent = found["tokens"] * forward_flops(self.parts.learner)
                self.ledger = self.ledger.evaluation(spent)
            steps, compiles = sum(self.data.steps), self.recipe.compute.compile
            self.live.starts(start["parameters"], steps, compiles=compiles)
            ended = self._train(heard)
            self.saver.wait()
            if not ended:
                raise KeyboardInterrupt if heard.asked and not heard.preempted else Preempted
            self.journal.end("finished", self._seconds(), self.ledger)
            return outcome.finish(self.recipe, self.data, self.parts.learner, self.out)
        except BaseException as error:
            self.journal.end(reason(error), self._seconds(), self.ledger)
            raise
        finally:
            self.saver.close()
            self.journal.close()

    def _train(self, heard: Interruption) -> bool:
        """Whether it came to the end of the run, rather than to an interruption."""
        parts = self.parts
        if self.state.step == 0 and not self._score("base", heard):
            return False
        if self.unscored and not self._score(**self.unscored, heard=heard):
            return False
        self._anneal(heard)
        batches = parts.ranks.waiting(parts.stream.batches(self.state))
        batches = probing(batches, self.state, self.recipe.probe.every, self._probe)
        mark = time.monotonic()
        for done in learned(parts, batches, self.state, self.saver.predictions):
            before, self.state = self.ledger, done.after
            self.ledger = self.ledger.step(done.batch, done.metrics)
            self.journal.step(done, self.ledger, time.monotonic() - mark, self._seconds())
            heard.alive()
            ends, scored = done.batch.ends_phase, True
            place: Table = {"phase": self.recipe.phases[done.batch.phase].name, "ends": ends}
            if ends or self.ledger.passed(self.recipe.evaluate.every_tokens, before):
                scored = self._score(**place, heard=heard)
            stop = not scored or self.mesh.any("stop", heard.asked)
            timely = self.saver.due(self.ledger, before)
            stays = self.saver.stays(self.ledger, before, ends=ends)
            leaves = due(self.recipe, self.data.steps, self.state) is not None
            if ends or leaves or stop or stays or timely:
                self._save(stays=stays, unscored=None if scored else place)
            if leaves and not stop:
                self._anneal(heard)
            self.saver.check()
            if self.live.wants():
                self.live.show(self.journal.progress(sum(self.data.steps)))
            if stop:
                return False
            mark = time.monotonic()
        return True

    def _anneal(self, heard: Interruption) -> None:
        """Where a branch leaves the run, train it, and go on from before it."""
        found = branch(self.recipe, self.data, self.parts, self.out, self.state)
        if found is None:
            return
        self.saver.wait()
        if self.mesh.told(lambda: found.begin(self.out, self.live)):
            parts, carried = (found.recipe, found.data, found.parts), self.saver.newest()
            Run(*parts, found.out, self.live, carried).walk(heard, [])
            self.saver.back(self.data.planner.start(), self.state.step)
        scores = self.mesh.told(lambda: found.scores(self.state.step, self.ledger))
        for fields in scores:
            self.journal.write("branch_score", fields)
        self.ledger = self.ledger.annealed(scores[0])

    def _probe(self, batch: Batch, before: State) -> None:
        learner = self.parts.learner
        found = probe(learner, self.parts.stream, self.parts.earlier, batch, before)
        if found is not None:
            place = {"step": batch.step + 1, "phase": self.recipe.phases[batch.phase].name}
            self.journal.write("probe", place | asdict(found))
            self.ledger = self.ledger.probe(found.tokens * learner.flops_per_token)

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def _score(self, phase: str, heard: Interruption, *, ends: bool = False) -> bool:
        """Whether all is scored; where an interruption came first, the resumed run scores anew."""
        place = {"step": self.state.step, "phase": phase}
        try:
            flops = score(self.parts, self.journal, self.live, place, ends=ends, interruption=heard)
        except Unscored:
            return False
        self.ledger = self.ledger.evaluation(flops)
        return True

    def _save(self, *, stays: bool, unscored: Table | None) -> None:
        self.journal.sync()
        numbers = {"ledger": asdict(self.ledger), "seconds": self._seconds(), "unscored": unscored}
        found = self.saver.save(self.state, numbers, stays=stays)
        self.journal.write("checkpoint", found | {"ledger": self.ledger.purposes()})
