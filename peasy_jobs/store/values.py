"""A claimed job as its runner and its worker hold it, and what is to be written of it in the end. Values, no more."""

from __future__ import annotations

from dataclasses import dataclass
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
    failures: int  # failed attempts there will have been if this one fails


class Claim(NamedTuple):
    """A job as its runner holds it. `fencing_token` is the number that every later write must still find."""

    pk: int
    fencing_token: int
    title: str
    job_name: str
    args: bytes | None
    kwargs: bytes | None
    attempts: int  # this one included
    crashes: int
    crash_retries: int | None
    timeout: float | None  # seconds
    # When it might first have started: seconds since 1970, in the time zone of the columns. Unknown
    # for a job whose worker died, or that was put back by hand after its first attempt.
    since: float | None = None
    rank: float = 0  # jobs run in the order of rank and pk

    def invalid_field(self) -> str:
        """Return why the row cannot be used, as SQLite stores any value in any column. Empty if it can."""
        if tuple(map(type, self)) in SOUND:
            return ""
        wrong = next(
            name
            for name, value in zip(self._fields, self, strict=True)
            if type(value) not in KINDS[name]
        )
        return f"The row of this job is damaged: {COLUMNS.get(wrong, wrong)} is {getattr(self, wrong)!r:.100}."

    def payload_bytes(self) -> int:
        """Return the size of its arguments in bytes, plus one."""
        return len(self.args or b"") + len(self.kwargs or b"") + 1

    def run(self) -> Run:
        """What a worker needs of it."""
        return Run(
            self.pk,
            self.fencing_token,
            self.job_name,
            self.args,
            self.kwargs,
            self.attempts - self.crashes,
        )


COLUMNS = {"fencing_token": "claims"}  # where a column has another name
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("pk", "fencing_token", "attempts", "crashes"), (int,)),
    **dict.fromkeys(("title", "job_name"), (str,)),
    **dict.fromkeys(("args", "kwargs"), (bytes, NoneType)),
    "crash_retries": (int, NoneType),
    "timeout": (float, int, NoneType),
    "since": (float, NoneType),
    "rank": (int, float),
}
SOUND = set(product(*(KINDS[name] for name in Claim._fields)))


@dataclass(slots=True, kw_only=True, eq=False)
class JobUpdate:
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
    cancelled: bool = (
        False  # found out while it was written: somebody had cancelled the job as it ran
    )
