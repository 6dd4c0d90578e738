"""A claimed job, as its runner and its worker hold it, and what is written of it in the end."""

from __future__ import annotations

from datetime import datetime
from itertools import product
from types import NoneType
from typing import NamedTuple


class Run(NamedTuple):
    """A job as it is given to a worker."""

    pk: int
    fencing_token: int
    job_name: str
    args: bytes | None
    kwargs: bytes | None
    failures: int  # failed attempts, counting this one if it fails


class Claim(NamedTuple):
    """A job as its runner holds it. Every later write is guarded by `fencing_token`."""

    pk: int
    fencing_token: int
    title: str
    job_name: str
    attempts: int  # counting this one
    crashes: int
    crash_retries: int | None
    timeout: float | None  # seconds
    # When it could first have started, for the statistics of waiting times: seconds since 1970, in
    # the time zone of the columns. Unknown for a job whose worker died, or that was put back by
    # hand after its first attempt.
    runnable_since: float | None = None
    rank: float = 0  # jobs run in the order of rank and pk
    args: bytes | None = None
    kwargs: bytes | None = None

    def invalid_field(self) -> str:
        """Return what is wrong with the row, empty if nothing is.

        SQLite lets every column hold any value.
        """
        if tuple(map(type, self)) in VALID_TYPES:
            return ""
        name = next(
            name
            for name, value in zip(self._fields, self, strict=True)
            if type(value) not in TYPES[name]
        )
        value = getattr(self, name)
        return f"The row of this job is damaged: {COLUMNS.get(name, name)} is {value!r:.100}."

    def payload_bytes(self) -> int:
        """Return the size of its arguments, and at least 1."""
        return len(self.args or b"") + len(self.kwargs or b"") + 1

    def run(self) -> Run:
        """Return what a worker needs of it."""
        return Run(
            self.pk,
            self.fencing_token,
            self.job_name,
            self.args,
            self.kwargs,
            self.attempts - self.crashes,
        )


COLUMNS = {"fencing_token": "claims"}  # where a column has another name
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("pk", "fencing_token", "attempts", "crashes"), (int,)),
    **dict.fromkeys(("title", "job_name"), (str,)),
    **dict.fromkeys(("args", "kwargs"), (bytes, NoneType)),
    "crash_retries": (int, NoneType),
    "timeout": (float, int, NoneType),
    "runnable_since": (float, NoneType),
    "rank": (int, float),
}
# Every valid combination, so that checking a claim takes a single look-up.
VALID_TYPES = set(product(*(TYPES[name] for name in Claim._fields)))


class JobUpdate(NamedTuple):
    """What a claimed job becomes: its outcome, or back into the queue.

    None leaves `status_msg` or `extra` as it is, and empties any other column.
    """

    claim: Claim
    status: str
    result: bytes | None = None
    error: dict[str, str] | None = None  # one more entry for `errors`, without its time
    status_msg: str | None = None
    extra: str | None = None  # JSON text
    started: datetime | None = None
    completed: datetime | None = None
    run_after: datetime | None = None  # kept as it is for a job that becomes ENQUEUED
    attempts: int = 0  # added to the column
    crashes: int = 0  # added to the column
    function_missing: bool = False  # it is not decided yet whether the job waits or fails


class Dropped(NamedTuple):
    """An update that was not written, because its job was no longer the runner's."""

    claim: Claim
    was_cancelled: bool  # while it ran; it is closed now
