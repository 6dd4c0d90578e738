"""The signals that stop a runner."""

from __future__ import annotations

import atexit
import contextlib
import os
import selectors
import signal
import socket
from types import TracebackType

from peasy_jobs.workers.forkserver import SIGNALS


class StopSignals:
    """Counts SIGINT and SIGTERM. A handler only counts; a byte in a socket ends the wait of whoever selects."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.received = 0
        self.asked = False
        self.grace = float("inf")
        self.selector = selector

    @property
    def count(self) -> int:
        return self.received + self.asked

    def ask(self, grace: float) -> None:
        """From another thread: as if one signal had come, but what runs has at most so many seconds to finish."""
        self.asked, self.grace = True, grace
        with contextlib.suppress(AttributeError, OSError):  # nobody waits yet, or any more
            self.wake_w.send(b".")

    def __enter__(self) -> None:
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_r.setblocking(False)
        self.wake_w.setblocking(False)
        self.selector.register(self.wake_r, selectors.EVENT_READ, lambda: self.wake_r.recv(4096))
        self.fd = signal.set_wakeup_fd(self.wake_w.fileno(), warn_on_full_buffer=False)
        self.before = {signum: signal.signal(signum, self._handle) for signum in SIGNALS}
        signal.pthread_sigmask(
            signal.SIG_UNBLOCK, SIGNALS
        )  # zsh blocks SIGINT in what it puts into the background

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if (
            self.received and error is None
        ):  # all is done and the process ends: one signal more means no failure
            atexit.register(_ignore_signals)
            self.before = dict.fromkeys(SIGNALS, _end)
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(self.fd)
        self.selector.unregister(self.wake_r)
        self.wake_r.close()
        self.wake_w.close()

    def _handle(self, signum: int, frame: object) -> None:
        self.received += 1


def _end(signum: int, frame: object) -> None:
    os._exit(0)


def _ignore_signals() -> None:
    # Python takes every handler back before it is through with its modules, but not this.
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
