"""What may end a run early: Ctrl-C, a scheduler's signal, a hang."""

from __future__ import annotations

import faulthandler
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

PREEMPTIONS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
STDERR = 2  # also where sys.stderr is something else, as in notebooks


class Preempted(KeyboardInterrupt):
    """A scheduler took the machine away; all is saved."""


class Diverged(RuntimeError):
    """Too many steps in a row were skipped."""


def reason(error: BaseException) -> str:
    """Why a sitting ended, as its last record says."""
    if isinstance(error, Preempted):
        return "preempted"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"


class Interruption:
    """Signals, heard between two steps rather than in the middle of one, and a watchdog.

    The first Ctrl-C, or one of PREEMPTIONS, is asked for in `asked`; a second Ctrl-C interrupts at
    once. From one of PREEMPTIONS on the process has `grace` seconds: then it ends with exit code 1,
    saved or not, and says where it was.
    """

    def __init__(self, *, timeout: float, grace: float) -> None:
        self.asked = self.preempted = False
        self._timeout, self._grace = timeout, grace
        self._armed = 0.0

    def hear(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        elif not self.preempted:
            self.preempted = True
            faulthandler.dump_traceback_later(self._grace, exit=True, file=STDERR)
        self.asked = True

    def alive(self) -> None:
        """Said at each step: a process that says nothing for `timeout` seconds ends with exit code
        1, and with the stack of each thread, so that its fellows are not kept waiting."""
        now = time.monotonic()
        if not self.preempted and now - self._armed > min(1.0, self._timeout / 10):
            self._armed = now
            faulthandler.dump_traceback_later(self._timeout, exit=True, file=STDERR)

    def asleep(self) -> None:
        """Before work of unknown length: the watchdog does not watch until the next `alive`."""
        if not self.preempted:
            faulthandler.cancel_dump_traceback_later()
            self._armed = 0.0


@contextmanager
def interruption(*, timeout: float = 1800.0, grace: float = 300.0) -> Iterator[Interruption]:
    """Signals are heard within. Outside the main thread, which alone may handle them, none is."""
    heard = Interruption(timeout=timeout, grace=grace)
    with _handled((signal.SIGINT, *preemptions()), heard.hear):
        try:
            yield heard
        finally:
            faulthandler.cancel_dump_traceback_later()


@contextmanager
def preempted() -> Iterator[None]:
    """Within, the first of PREEMPTIONS raises Preempted at once, as Ctrl-C KeyboardInterrupt; later
    ones do nothing, so that what it began can end."""
    first = True

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first:
            first = False
            raise Preempted

    with _handled(preemptions(), hear):
        yield


def preemptions() -> tuple[signal.Signals, ...]:
    """Those of PREEMPTIONS that are heard: not a hang-up under `nohup`, which ignores it."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return tuple(n for n in PREEMPTIONS if not (ignored and n == signal.SIGHUP))


@contextmanager
def _handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, handler) for number in (numbers if main else ())}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
