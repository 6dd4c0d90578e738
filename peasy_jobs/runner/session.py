"""The runner's own database connection, apart from those of its jobs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from django.db import OperationalError

from peasy_jobs.runner.watchdog import Watchdog
from peasy_jobs.store import vendors

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

LOCK_TIMEOUT = 0.5  # seconds that the runner's own connection waits for a lock


class Session:
    """One connection that is opened with a runner's settings and closed after an error."""

    def __init__(self, connection: BaseDatabaseWrapper, answer_timeout: float) -> None:
        """Prepare to open `connection`.

        answer_timeout: seconds to wait for an answer of the server.
        """
        self.connection = connection
        self.answer_timeout = answer_timeout
        self.watchdog = Watchdog(answer_timeout)
        self.is_open = False
        self.file: tuple[int, int] | None = None  # device and inode of the file, on SQLite

    def open(self) -> None:
        """Connect and configure the connection, unless that is done. Call it in each iteration.

        The watchdog limits what follows until `stop_time_limit` is called.
        Raises what the database raises.
        """
        if not self.is_open:
            vendors.configure_runner_settings(self.connection, self.answer_timeout)
            self.connection.ensure_connection()
            self.file = vendors.file_of(self.connection)
        self.watchdog.set(vendors.socket_of(self.connection))
        if not self.is_open:
            vendors.configure_session(self.connection, LOCK_TIMEOUT)
            self.is_open = True

    def stop_time_limit(self) -> None:
        """Stop the watchdog until the next `open`: no query runs until then."""
        self.watchdog.clear()

    def close(self) -> None:
        self.is_open = False
        with suppress(Exception):
            self.connection.close()

    def check_file(self) -> None:
        """Raise `OperationalError` if the SQLite file was replaced by another, such as a backup."""
        if vendors.file_of(self.connection) != self.file:
            name = self.connection.settings_dict["NAME"]
            raise OperationalError(f"{name} was replaced by another file")
