"""The messages between a runner, its worker server and its workers."""

from __future__ import annotations

import enum
from typing import NamedTuple


class StopReason(enum.Enum):
    """Why a running job has to stop."""

    CANCELLED = "cancelled"
    TIME_LIMIT = "time limit"
    SHUTDOWN = "shutdown"


class StopRequest(NamedTuple):
    """Why a running job has to stop: `reason` for code, `message` for people, such as the text of `peasy.Stop`."""

    reason: StopReason
    message: str
