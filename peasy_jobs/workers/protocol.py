"""Every message between a runner, its fork server and its workers.

::

    +------------------------------------------------------------------------------------+
    |                               runner (processes.py)                                |
    +------------------------------------------------------------------------------------+
         |             ^                |           ^               |               |
    ServerRequest ServerNotice      JobBatch    JobStarted       Ticket         StopOrder
         |             |                |        Report             |               |
         |             |                |        Outcome            |               |
         |             |                |           |               |               |
        control socket                   job socket            ticket pipe      stop pipe
         v             |                v           |               v               v
    +-----------------------+ fork,  +---------------------------------------------------+
    |      fork server      | signal |                      worker                       |
    |    (forkserver.py)    | -----> |                (workerprocess.py)                 |
    +-----------------------+        +---------------------------------------------------+

Control socket: one per fork server. The worker's ends of its own three transports are sent along
with START.

Job socket: one per worker, for data of any size, framed by `channel.py`.

Ticket pipe: one per worker. Whoever reads a ticket owns its job: the worker reads the next one when
it is free, and the runner reads whatever is left to recall jobs. The kernel gives each ticket to
only one of them.

Stop pipe: one per worker. The worker reads it when it gets SIGTERM, which the fork server sends on
STOP_JOB.

Messages of fixed size are structs. Those with job data are written with `marshal`, which takes four
fifths of pickle's time and a fraction of JSON's, and can be used because both ends are the same
Python on the same host.
"""

from __future__ import annotations

import enum
import marshal
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from peasy_jobs.store.values import Claim, Run

# Runner and fork server, over the control socket


class RequestKind(enum.Enum):
    """What the runner wants the fork server to do."""

    START = b"S"  # fork it; its ends of job socket, ticket pipe and stop pipe are sent along
    STOP_JOB = b"J"  # interrupt it, so that it reads its stop pipe
    KILL = b"K"  # kill it, and every process of its job
    DISCONNECTED = b"D"  # it has closed its job socket: kill it unless it is already exiting


class ServerRequest(NamedTuple):
    """From the runner to the fork server."""

    kind: RequestKind
    worker: int  # the runner's number for it, never used twice

    def pack(self) -> bytes:
        return _SERVER_REQUEST.pack(self.kind.value, self.worker)

    @classmethod
    def unpack(cls, data: bytes) -> ServerRequest:
        kind, worker = _SERVER_REQUEST.unpack(data)
        return cls(RequestKind(kind), worker)


_SERVER_REQUEST = struct.Struct("!cq")
SERVER_REQUEST_SIZE = _SERVER_REQUEST.size


class NoticeKind(enum.Enum):
    """What has happened to a worker."""

    STARTED = b"S"
    NOT_STARTED = b"N"  # it could not be forked
    EXITED = b"E"
    DISCONNECTED = b"D"  # it was killed because it kept running after it had closed its job socket


class ServerNotice(NamedTuple):
    """From the fork server to the runner."""

    kind: NoticeKind
    worker: int
    pid: int = 0
    wait_status: int = 0  # as `os.waitpid` returns it; of EXITED only

    def pack(self) -> bytes:
        return _SERVER_NOTICE.pack(self.kind.value, self.worker, self.pid, self.wait_status)

    @classmethod
    def unpack_all(cls, data: bytes) -> Iterator[ServerNotice]:
        for kind, worker, pid, wait_status in _SERVER_NOTICE.iter_unpack(data):
            yield cls(NoticeKind(kind), worker, pid, wait_status)


_SERVER_NOTICE = struct.Struct("!cqqq")
SERVER_NOTICE_SIZE = _SERVER_NOTICE.size


# Runner to worker


class Ticket(NamedTuple):
    """The permission to run a job, in the ticket pipe.

    The fencing token is part of it, because a recalled job may come back under a new claim.
    """

    pk: int
    fencing_token: int

    @classmethod
    def of(cls, job: Claim | Run) -> Ticket:
        return cls(job.pk, job.fencing_token)

    def pack(self) -> bytes:
        return _TICKET.pack(*self)

    @classmethod
    def unpack(cls, data: bytes) -> Ticket:
        return cls(*_TICKET.unpack(data))

    @classmethod
    def unpack_all(cls, data: bytes) -> list[Ticket]:
        return [cls(*values) for values in _TICKET.iter_unpack(data)]


_TICKET = struct.Struct("!qq")
TICKET_SIZE = _TICKET.size


class JobBatch(NamedTuple):
    """Jobs for a worker, over its job socket. It runs a job once it has read the ticket."""

    recalled: list[Ticket]  # jobs that it was given before and must forget
    jobs: list[Run]
    report_start: bool  # reply with `JobStarted` when the first of `jobs` starts

    def pack(self) -> bytes:
        # marshal writes plain tuples only, no named ones.
        recalled = [tuple(ticket) for ticket in self.recalled]
        return marshal.dumps((recalled, [tuple(job) for job in self.jobs], self.report_start))

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> JobBatch:
        recalled, jobs, report_start = marshal.loads(data)  # noqa: S302  from the runner
        return cls([Ticket(*each) for each in recalled], [Run(*job) for job in jobs], report_start)


class StopReason(enum.Enum):
    """Why a running job has to stop."""

    CANCELLED = b"C"
    TIME_LIMIT = b"T"
    SHUTDOWN = b"S"


class StopRequest(NamedTuple):
    """A request to stop a running job."""

    reason: StopReason  # for code
    message: str  # for people: the log, and the text of `peasy.Stop` and `peasy.TimeLimit`


class StopOrder(NamedTuple):
    """A job that has to stop, in the stop pipe. Ignored if the worker is not running that job."""

    ticket: Ticket
    request: StopRequest

    def pack(self) -> bytes:
        reason, message = self.request
        return _STOP_ORDER.pack(*self.ticket, reason.value, message.encode())

    @classmethod
    def unpack_all(cls, data: bytes) -> Iterator[StopOrder]:
        for pk, fencing_token, reason, message in _STOP_ORDER.iter_unpack(data):
            request = StopRequest(StopReason(reason), message.decode(errors="replace"))
            yield cls(Ticket(pk, fencing_token), request)


# A message of more than 127 bytes is cut. All of one size, and smaller than PIPE_BUF, so that the
# pipe holds whole ones.
_STOP_ORDER = struct.Struct("!qqc128p")
STOP_ORDER_SIZE = _STOP_ORDER.size


# Worker to runner, over the job socket


class JobStarted(NamedTuple):
    """A worker that was idle has started a job. The job's time limit counts from then on."""

    at: float  # time.monotonic(), which all processes of a host share


class Report(NamedTuple):
    """Progress of a running job. None leaves the message, or `extra` (JSON text), as it is."""

    pk: int
    fencing_token: int
    status_msg: str | None
    extra: str | None


class Outcome(NamedTuple):
    """How one run of a job ended. `started` and `ended` are `time.monotonic()`."""

    pk: int
    fencing_token: int
    started: float
    ended: float
    status: str  # what the job becomes
    result: bytes | None
    error: dict[str, str] | None
    delay: float  # seconds until it runs again, if it does
    function_missing: bool = False  # the runner decides what the job becomes


WorkerMessage = JobStarted | Report | Outcome

_WORKER_MESSAGES: dict[str, Any] = {
    message.__name__: message for message in (JobStarted, Report, Outcome)
}


def pack_worker_message(message: WorkerMessage) -> bytes:
    """Return a message of a worker as bytes: the name of its type and its fields."""
    return marshal.dumps((type(message).__name__, *message))


def unpack_worker_message(data: bytes | bytearray) -> WorkerMessage:
    """Return the message that `pack_worker_message` has written."""
    name, *fields = marshal.loads(data)  # noqa: S302  from a worker of this runner
    message: WorkerMessage = _WORKER_MESSAGES[name](*fields)
    return message
