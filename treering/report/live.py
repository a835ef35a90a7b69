"""The live line of a run: phase, step, loss, speed, time left, each corpus against its best."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live as RichLive
from rich.text import Text


@dataclass(frozen=True)
class Progress:
    """What the line shows of a step."""

    phase: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass
class Live:
    """On a terminal a line that renews itself; elsewhere one line for each evaluation."""

    console: Console
    now: dict[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._line = RichLive(console=self.console, auto_refresh=False, transient=True)
        self._shown = 0.0

    def __enter__(self) -> Live:
        if self.console.is_terminal:
            self._line.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._line.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def starts(self, parameters: int, steps: int, *, compiles: bool) -> None:
        """What is about to be trained."""
        wait = "; the first step compiles" if compiles else ""
        self.say(f"{parameters:,} parameters, {steps:,} steps{wait}")

    def wants(self) -> bool:
        """Whether the line is due to be drawn again."""
        return self.console.is_terminal and time.monotonic() - self._shown > 0.25

    def show(self, at: Progress) -> None:
        """Draw the line."""
        self._shown = time.monotonic()
        minutes, seconds = divmod(int(at.seconds_left), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02d}:{seconds:02d}"
        words = f"{at.phase}  step {at.step}/{at.steps}  loss {at.loss:.3f}  "
        words += f"{at.tokens_per_second:,.0f} tokens/s  {left} left  {self._corpora()}"
        self._line.update(Text(words, no_wrap=True, overflow="ellipsis"), refresh=True)

    def doing(self, text: str) -> None:
        """What is done between two steps, on the line."""
        if self.console.is_terminal:
            self._line.update(Text(text), refresh=True)

    def scored(
        self, step: int, phase: str, losses: dict[str, float], best: Mapping[str, float]
    ) -> None:
        """Held-out losses after `step`, and the best that the run has had."""
        self.now, self.best = losses, best
        if not self.console.is_terminal:
            self.say(f"step {step:>7}  {phase:<10}  held-out  {self._corpora()}")

    def _corpora(self) -> str:
        return "  ".join(
            f"{corpus} {loss:.3f} ({loss - self.best.get(corpus, loss):+.3f})"
            for corpus, loss in self.now.items()
        )
