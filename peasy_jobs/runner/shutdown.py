"""How a runner ends: the signals that stop it, and the phases it goes through."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import socket
from enum import IntEnum
from types import TracebackType

from peasy_jobs.workers.startup import SIGNALS

ABANDON_AFTER = 5.0  # seconds that outcomes may still be written after running jobs were stopped


class Phase(IntEnum):
    """What a runner does for its jobs. It goes through these in order and never back.

    RUNNING: Claim jobs and run them.
    DRAINING: Claim no more. Jobs that have started may finish.
    STOPPING: Ask the jobs that still run to stop; kill each that has not stopped a moment later.
    KILLING: Kill the jobs that still run without waiting any longer.
    ABANDONED: End the process after this iteration, although there may be outcomes that it could
        not write. Another runner rescues their jobs.
    """

    RUNNING = 0
    DRAINING = 1
    STOPPING = 2
    KILLING = 3
    ABANDONED = 4


class Shutdown:
    """The phase that this runner is in. Only this class changes it."""

    def __init__(self, timeout: float, selector: selectors.BaseSelector) -> None:
        """Start in `RUNNING`. `timeout`: seconds that jobs may run on after the first signal."""
        self.timeout = timeout
        self.signals = StopSignals(selector)
        self.phase = Phase.RUNNING
        self.stop_at = float("inf")  # `time.monotonic()` when `STOPPING` begins

    def advance(self, now: float) -> list[Phase]:
        """Enter every phase that is due by now (`time.monotonic()`) and return them in order.

        The first signal starts `DRAINING`. Its timeout, or a second signal, starts `STOPPING`. Only
        a second signal starts `KILLING`.
        """
        if self.signals.count and self.phase is Phase.RUNNING:
            self.stop_at = now + min(self.timeout, self.signals.grace)
        if self.signals.count > 1:
            self.stop_at = min(self.stop_at, now)
        return self._enter(self._due(now))

    def finish(self) -> None:
        """Start `DRAINING` because there is no job left to run."""
        self._enter(Phase.DRAINING)

    def next_due(self) -> float:
        """Return when `advance` enters the next phase without a further signal."""
        if self.phase < Phase.STOPPING:
            return self.stop_at
        return self.stop_at + ABANDON_AFTER

    def _due(self, now: float) -> Phase:
        if now >= self.stop_at + ABANDON_AFTER:
            return Phase.ABANDONED
        if self.signals.count > 1:
            return Phase.KILLING
        if now >= self.stop_at:
            return Phase.STOPPING
        return Phase.DRAINING if self.signals.count else Phase.RUNNING

    def _enter(self, last: Phase) -> list[Phase]:
        entered = [phase for phase in Phase if self.phase < phase <= last]
        self.phase = max(self.phase, last)
        return entered


class StopSignals:
    """Count SIGINT and SIGTERM while the `with` block runs.

    The handler only counts, because it may interrupt any statement. Python also writes a byte to a
    socket for each signal (`signal.set_wakeup_fd`), which ends the wait of the selector.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.received = 0
        self.requested = False
        self.grace = float("inf")
        self.selector = selector

    @property
    def count(self) -> int:
        return self.received + self.requested

    def request(self, grace: float) -> None:
        """Act as if one signal had arrived. May be called from any thread.

        grace: seconds that running jobs have to finish, if `PEASY_SHUTDOWN_TIMEOUT` is longer.
        """
        self.requested, self.grace = True, grace
        with contextlib.suppress(AttributeError, OSError):  # before or after the `with` block
            self.wake_w.send(b".")

    def __enter__(self) -> None:
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.wake_w.setblocking(False)
        self.selector.register(self.wake_r, selectors.EVENT_READ, lambda: self.wake_r.recv(4096))
        self.previous_fd = signal.set_wakeup_fd(self.wake_w.fileno(), warn_on_full_buffer=False)
        self.previous = {signum: signal.signal(signum, self._count_signal) for signum in SIGNALS}
        # zsh starts background processes with SIGINT blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.received and error is None:
            # The runner has ended as it was told to: one more signal must not turn that into a
            # failure while the process exits.
            atexit.register(_ignore_signals)
            self.previous = dict.fromkeys(SIGNALS, _exit)
        for signum, handler in self.previous.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self.previous_fd)
        self.selector.unregister(self.wake_r)
        self.wake_r.close()
        self.wake_w.close()

    def _count_signal(self, signum: int, frame: object) -> None:
        self.received += 1


def _exit(signum: int, frame: object) -> None:
    os._exit(0)


def _ignore_signals() -> None:
    # Python removes its own handlers before it has finished with its modules, but keeps SIG_IGN.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
