"""Detect an unresponsive database server."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from time import monotonic, sleep


class Watchdog:
    """Shut down the runner's socket when an iteration takes longer than `limit` seconds.

    The query that waits fails then, and the runner connects again. Needed because a suspended
    server, or a network that drops packets, leaves a query waiting for ever: the kernel still
    acknowledges, so keep-alives do not help, and libpq has no time limit for an answer.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        # The socket's descriptor, and since when it is in use. One tuple, so that the thread never
        # sees half of a change.
        self.waiting: tuple[int, float] | None = None
        threading.Thread(target=self._watch, name="peasy watchdog", daemon=True).start()

    def set(self, fd: int) -> None:
        """Start the time limit for the socket with this descriptor; below 0 there is none."""
        self.waiting = (fd, monotonic()) if fd >= 0 else None

    def clear(self) -> None:
        """Stop the time limit."""
        self.waiting = None

    def _watch(self) -> None:
        while True:
            sleep(self.limit / 10)
            waiting = self.waiting
            if waiting is None:
                continue
            fd, since = waiting
            if monotonic() - since > self.limit:
                _shut_down(fd)
                self.waiting = None


def _shut_down(fd: int) -> None:
    # On a duplicate: closing the socket object must not close the driver's descriptor.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)
