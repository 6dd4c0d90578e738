"""A claimed job as its runner and its worker hold it, and what is to be written of it in the end. Values, no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Run(NamedTuple):
    """A job as it is given to a worker."""

    pk: int
    claims: int
    job_name: str
    args: bytes | None
    kwargs: bytes | None
    failures: int  # failed attempts there will have been if this one fails


class Claim(NamedTuple):
    """A job as its runner holds it. `claims` is the number that every later write must still find."""

    pk: int
    claims: int
    title: str
    job_name: str
    args: bytes | None
    kwargs: bytes | None
    attempts: int  # this one included
    crashes: int
    crash_retries: int | None
    timeout: float | None  # seconds

    def run(self) -> Run:
        """What a worker needs of it."""
        return Run(self.pk, self.claims, self.job_name, self.args, self.kwargs, self.attempts - self.crashes)


@dataclass(slots=True, kw_only=True, eq=False)
class Ending:
    """What becomes of a claimed job: its outcome, or back to the queue. `None` leaves a column as it is."""

    claim: Claim
    status: str
    result: bytes | None = None
    error: dict[str, str] | None = None  # one more entry for `errors`, without its time
    status_msg: str | None = None
    extra: str | None = None  # JSON text
    started: datetime | None = None
    completed: datetime | None = None
    run_after: datetime | None = None
    patience: int = 0  # put back until `run_after` instead, while so many errors of the same kind were not yet kept
    attempts: int = 0  # added to the column
    crashes: int = 0  # added to the column
