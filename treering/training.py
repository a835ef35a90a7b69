"""A whole run: assemble the parts, walk the phases, keep the records. Start reading here."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from treering import build, cache, checkpoint, config, folder, model, outcome, position, records
from treering.batch import Batch
from treering.config import Recipe, Table
from treering.evaluate import scores
from treering.header import header
from treering.interruption import interruption
from treering.journal import Journal
from treering.learner import tensors
from treering.ledger import Ledger
from treering.loop import train
from treering.position import State
from treering.probe import probe, probing
from treering.report.live import Live, Progress
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
    out, live = Path(out), Live(console or Console(stderr=True))
    build.check_extras(recipe)
    with folder.locked(out) as existed:
        folder.check(out)
        data = build.data(recipe, cache.cache_folder(cache_folder))
        if not fresh:
            folder.compare(out, data.identity)
            if folder.finished(out):
                live.say(f"{out} is finished: its summary is in {out / 'summary.json'}")
                return folder.summary(out)
        parts = build.parts(recipe, data)
        if fresh and out.exists():
            live.say(f"the old folder is kept as {folder.set_aside(out)}")
        out.mkdir(parents=True, exist_ok=True)
        with nullcontext() if existed and not fresh else folder.locked(out), live:
            return Run(recipe, data, parts, out, live).walk()


class Run:
    """One sitting of a run: what it holds is resumed from the newest sound checkpoint."""

    def __init__(
        self, recipe: Recipe, data: build.Data, parts: build.Parts, out: Path, live: Live
    ) -> None:
        self.recipe, self.data, self.parts, self.out, self.live = recipe, data, parts, out, live
        self.ledger = Ledger()
        self.state = data.planner.start()
        self.earlier, self.began = 0.0, time.monotonic()  # seconds of earlier sittings; of this one
        found = checkpoint.newest(out / "checkpoints")
        if found:
            self._restore(*found)
        records.cut(out / "records.jsonl", self.state.step if found else -1)
        self.journal = Journal(out / "records.jsonl", [phase.name for phase in recipe.phases])

    def walk(self) -> Table:
        """Train to the end, and sum up. An interruption is heard between two steps."""
        (self.out / "recipe.toml").write_text(config.to_toml(self.recipe), encoding="utf-8")
        with interruption() as interrupted:
            try:
                self.journal.mirrors = mirrors(self.recipe, self.out, self.state.step)
                self.journal.write("header", header(self.recipe, self.data, self.parts.learner))
                total, _ = model.count(self.parts.learner.forward.root.model)
                compiles = "; the first step compiles" if self.recipe.compute.compile else ""
                self.live.say(f"{total:,} parameters, {sum(self.data.steps):,} steps{compiles}")
                if self.state.step == 0:
                    self._score("base")
                self._train(interrupted)
                if interrupted.is_set():
                    raise KeyboardInterrupt
                return self._finish()
            except BaseException as error:
                stopped = isinstance(error, KeyboardInterrupt)
                self._end("interrupted" if stopped else "failed")
                raise
            finally:
                self.journal.close()

    def _train(self, interrupted: threading.Event) -> None:
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
            every = self.recipe.checkpoint.every_tokens
            if ends or interrupted.is_set() or self._due(before, every):
                self._save()
            if self.live.wants():
                self._show(phase)
            if interrupted.is_set():
                return
            mark = time.monotonic()

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

    def _save(self) -> None:
        self.journal.sync()
        numbers, arrays = position.save(self.state)
        content = {
            "plan": numbers,
            "ledger": dataclasses.asdict(self.ledger),
            "update": self.parts.update.counters(),
            "seconds": self._seconds(),
        }
        to, keep = self.out / "checkpoints", self.recipe.checkpoint.keep
        path = checkpoint.save(to, self.state.step, self._named(arrays), content, keep=keep)
        name = str(path.relative_to(self.out))
        self.journal.write("checkpoint", {"step": self.state.step, "path": name})

    def _restore(self, path: Path, numbers: Table) -> None:
        arrays = {name: array.copy() for name, array in position.save(self.state)[1].items()}
        checkpoint.load(path, self._named(arrays))  # fills the arrays in place
        self.state = position.restore(numbers["plan"], arrays)
        self.parts.update.restore(numbers["update"])
        self.ledger, self.earlier = Ledger(**numbers["ledger"]), numbers["seconds"]
        self.live.say(f"resuming after step {self.state.step} from {path}")

    def _named(self, arrays: Mapping[str, NDArray[np.int64]]) -> dict[str, torch.Tensor]:
        plans = {f"plan/{name}": torch.from_numpy(array) for name, array in arrays.items()}
        return tensors(self.parts.learner, self.parts.update) | plans

    def _finish(self) -> Table:
        self._end("finished")
        found = self.parts.learner.forward.root.model
        return outcome.finish(self.recipe, self.data, found, self.out)

    def _end(self, reason: str) -> None:
        """The last record of a sitting; left out on a full disk, of which the user hears anyway."""
        try:
            self.journal.write("end", {"reason": reason, "seconds": self._seconds()})
        except OSError:
            if reason == "finished":
                raise
