"""A database server that says nothing any more: whoever waits for it is woken, so that the runner can try again."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from time import monotonic, sleep


class Watchdog:
    """Closes the runner's connection when one round with the database takes longer than `limit` seconds.

    A server that is stopped, or a network that drops packets, leaves a query waiting for good: the kernel still
    acknowledges, so keep-alives do not help, and the drivers know no time limit of their own for an answer.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.waiting: tuple[int, float] | None = None  # the connection's descriptor, and since when
        threading.Thread(target=self._watch, name="peasy silence alarm", daemon=True).start()

    def set(self, fd: int) -> None:
        """From now on the server is talked to over this descriptor; below 0 there is none."""
        self.waiting = (fd, monotonic()) if fd >= 0 else None

    def clear(self) -> None:
        self.waiting = None

    def _watch(self) -> None:
        while True:
            sleep(self.limit / 10)
            waiting = self.waiting
            if waiting and monotonic() - waiting[1] > self.limit:
                with (
                    contextlib.suppress(OSError),
                    socket.socket(fileno=os.dup(waiting[0])) as connection,
                ):
                    connection.shutdown(socket.SHUT_RDWR)
                self.waiting = None
