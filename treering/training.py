"""A whole run: assemble the parts, walk the phases, keep the records. Start reading here."""

from __future__ import annotations

import dataclasses
import threading
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from treering import build, cache, config, folder, model, outcome, records
from treering.batch import Batch
from treering.config import Recipe, Table
from treering.evaluate import scores
from treering.header import header
from treering.interruption import interruption
from treering.journal import Journal
from treering.ledger import Ledger
from treering.loop import train
from treering.mesh import joined
from treering.position import State
from treering.probe import probe, probing
from treering.report.live import Live, Progress
from treering.saving import Saver
from treering.trackers import mirrors


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    fresh: bool = False,
    cache_folder: str | None = None,
    console: Console | None = None,
) -> Table:
    """Train a recipe in the folder `out`, or go on where its last sound checkpoint is; returns
    the summary. `fresh` sets an older folder aside and begins anew.

    Raises Invalid for bad input before anything is written, KeyboardInterrupt after Ctrl-C, when
    all is saved, and OSError where the disk is full.
    """
    out = Path(out)
    build.check_extras(recipe)
    with joined(recipe.mesh) as mesh:
        live = Live(console or Console(stderr=True, quiet=mesh.rank > 0))
        with folder.locked(out, mesh) as existed:
            data = mesh.first(lambda: _data(recipe, out, cache_folder, fresh=fresh))
            if not fresh and mesh.told(lambda: folder.finished(out)):
                live.say(f"{out} is finished: its summary is in {out / 'summary.json'}")
                return folder.summary(out)
            parts = build.parts(recipe, data, mesh)
            aside = mesh.told(lambda: folder.make(out, fresh=fresh))
            if aside:
                live.say(f"the old folder is kept as {aside}")
            with nullcontext() if existed and not fresh else folder.locked(out, mesh), live:
                return Run(recipe, data, parts, out, live).walk()


def _data(recipe: Recipe, out: Path, cache_folder: str | None, *, fresh: bool) -> build.Data:
    """What the run reads, if the folder is one for it."""
    folder.check(out)
    data = build.data(recipe, cache.cache_folder(cache_folder))
    if not fresh:
        folder.compare(out, data.identity)
    return data


class Run:
    """One sitting of a run: what it holds is resumed from the newest sound checkpoint."""

    def __init__(
        self, recipe: Recipe, data: build.Data, parts: build.Parts, out: Path, live: Live
    ) -> None:
        self.recipe, self.data, self.parts, self.out, self.live = recipe, data, parts, out, live
        self.mesh = parts.learner.forward.mesh
        self.ledger = Ledger()
        self.state = data.planner.start()
        self.earlier, self.began = 0.0, time.monotonic()  # seconds of earlier sittings; of this one
        to = out / "checkpoints"
        self.saver = Saver(to, parts.learner, parts.update, recipe.checkpoint)
        found = self.saver.restore(self.state)
        if found:
            self.state, numbers, path = found
            self.ledger, self.earlier = Ledger(**numbers["ledger"]), numbers["seconds"]
            live.say(f"resuming after step {self.state.step} from {path}")
        writes = out / "records.jsonl" if self.mesh.rank == 0 else None
        if writes:
            records.cut(writes, self.state.step if found else -1)
        self.journal = Journal(writes, [phase.name for phase in recipe.phases])

    def walk(self) -> Table:
        """Train to the end, and sum up. An interruption is heard between two steps."""
        if self.mesh.rank == 0:
            (self.out / "recipe.toml").write_text(config.to_toml(self.recipe), encoding="utf-8")
        with interruption() as interrupted:
            try:
                if self.mesh.rank == 0:
                    self.journal.mirrors = mirrors(self.recipe, self.out, self.state.step)
                self.journal.write("header", header(self.recipe, self.data, self.parts.learner))
                total, _ = model.count(self.parts.learner.forward.root.model)
                compiles = "; the first step compiles" if self.recipe.compute.compile else ""
                self.live.say(f"{total:,} parameters, {sum(self.data.steps):,} steps{compiles}")
                if self.state.step == 0:
                    self._score("base")
                ended = self._train(interrupted)
                self.saver.wait()
                if not ended:
                    raise KeyboardInterrupt
                return self._finish()
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt)
                self._end("interrupted" if stopped else "failed")
                raise
            finally:
                self.saver.close()
                self.journal.close()

    def _train(self, interrupted: threading.Event) -> bool:
        """Whether it came to the end of the run, rather than to an interruption."""
        parts, mark = self.parts, time.monotonic()
        batches = parts.stream.batches(self.state)
        batches = probing(batches, self.state, self.recipe.probe.every, self._probe)
        for done in train(parts.learner, parts.update, batches, parts.rules):
            before, self.state = self.ledger.tokens, done.after
            self.ledger = self.ledger.step(done.batch, done.metrics)
            self.journal.step(done, self.ledger, time.monotonic() - mark, self._seconds())
            phase = self.recipe.phases[done.batch.phase].name
            ends = done.batch.ends_phase
            if ends or self._due(before, self.recipe.evaluate.every_tokens):
                self._score(phase, ends=ends)
            policy, stop = self.recipe.checkpoint, self.mesh.any(interrupted.is_set())
            stays = self._due(before, policy.stay_every_tokens) or (ends and policy.stay_at_phase)
            if ends or stop or stays or self._due(before, policy.every_tokens):
                self._save(stays=stays)
            self.saver.check()
            if self.live.wants():
                self._show(phase)
            if stop:
                return False
            mark = time.monotonic()
        return True

    def _probe(self, batch: Batch, before: State) -> None:
        learner = self.parts.learner
        found = probe(learner, self.parts.stream, self.parts.earlier, batch, before)
        if found is not None:
            place = {"step": batch.step + 1, "phase": self.recipe.phases[batch.phase].name}
            self.journal.write("probe", place | dataclasses.asdict(found))
            self.ledger = self.ledger.probe(found.tokens * learner.flops_per_token)

    def _due(self, before: int, every: int | None) -> bool:
        return every is not None and self.ledger.tokens // every > before // every

    def _seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    def _show(self, phase: str) -> None:
        self.journal.flush()
        step, steps, speed = self.state.step, sum(self.data.steps), self.journal.tokens_per_second
        left = (steps - step) * self.recipe.rows * self.recipe.length / max(speed, 1e-9)
        self.live.show(Progress(phase, step, steps, self.journal.loss, speed, left))

    def _score(self, phase: str, *, ends: bool = False) -> None:
        losses: dict[str, float] = {}
        learner = self.parts.learner
        branches = self.parts.update.branches() if ends else {}
        place = {"step": self.state.step, "phase": phase}
        for text in self.parts.held_out:
            self.live.doing(f"step {self.state.step}: scoring {text.corpus}")
            for kind, found in scores(learner, branches, text):
                self.journal.write(kind, place | found)
                losses.setdefault(text.corpus, found["loss"])  # the weights as they stand first
                self.ledger = self.ledger.evaluation(found["tokens"] * learner.flops_per_token / 3)
        self.live.scored(self.state.step, phase, losses)
        if ends or self.state.step == 0:
            self.live.doing(f"step {self.state.step}: scoring tasks")
            tasks = self.parts.tasks.scores(learner.forward.root.model)
            for task in tasks.scores:
                self.journal.write("task", place | dataclasses.asdict(task))
            self.ledger = self.ledger.evaluation(tasks.tokens * learner.flops_per_token / 3)

    def _save(self, *, stays: bool) -> None:
        self.journal.sync()
        numbers = {"ledger": dataclasses.asdict(self.ledger), "seconds": self._seconds()}
        path = self.saver.save(self.state, numbers, stays=stays)
        place = {"step": self.state.step, "path": str(path.relative_to(self.out))}
        self.journal.write("checkpoint", place)

    def _finish(self) -> Table:
        self._end("finished")
        return outcome.finish(self.recipe, self.data, self.parts.learner, self.out)

    def _end(self, reason: str) -> None:
        """The last record of a sitting; left out on a full disk, of which the user hears anyway."""
        try:
            self.journal.write("end", {"reason": reason, "seconds": self._seconds()})
        except OSError:
            if reason == "finished":
                raise
