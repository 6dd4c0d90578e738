"""The statuses of a job, each declared once.

The model, the queries, the pages, the JSON document and the manual read their statuses from here.
The stylesheet repeats the icons; `tests/test_statuses.py` compares it and the manual with this
module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from django.utils.translation import gettext_lazy as _

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

ENQUEUED = "Q"
SCHEDULED = "S"
ONGOING = "O"
COMPLETED = "C"
FAILED = "F"
CANCELLED = "X"


@dataclass(frozen=True, kw_only=True)
class Status:
    """What everyone needs to know about one status."""

    letter: str  # the value in the database
    word: str  # in the JSON document, in addresses and in the `data-status` attribute
    label: _StrPromise  # on pages
    icon: str  # one character before the label; decoration, never the only signal
    description: str  # in the manual
    is_finished: bool = False  # a job leaves such a status only when it is retried


STATUSES = (
    Status(
        letter=ENQUEUED,
        word="enqueued",
        label=_("Enqueued"),
        icon="○",
        description="ready to run",
    ),
    Status(
        letter=SCHEDULED,
        word="scheduled",
        label=_("Scheduled"),
        icon="◷",
        description="waiting for `run_after`, or for its next attempt",
    ),
    Status(
        letter=ONGOING,
        word="ongoing",
        label=_("Ongoing"),
        icon="▶",
        description="claimed by a runner",
    ),
    Status(
        letter=COMPLETED,
        word="completed",
        label=_("Completed"),
        icon="✓",
        description="the function returned",
        is_finished=True,
    ),
    Status(
        letter=FAILED,
        word="failed",
        label=_("Failed"),
        icon="✕",
        description="the function raised an exception, or its worker died too often",
        is_finished=True,
    ),
    Status(
        letter=CANCELLED,
        word="cancelled",
        label=_("Cancelled"),
        icon="⊘",
        description="cancelled; still being stopped while `runner_id` is set",
        is_finished=True,
    ),
)

BY_LETTER = {status.letter: status for status in STATUSES}
BY_WORD = {status.word: status for status in STATUSES}
CHOICES = tuple((status.letter, status.label) for status in STATUSES)
FINISHED = tuple(status.letter for status in STATUSES if status.is_finished)


class Transition(NamedTuple):
    """One permitted change of a job's status."""

    verb: str
    old: str
    new: str


TRANSITIONS = (
    Transition("promote", SCHEDULED, ENQUEUED),
    Transition("claim", ENQUEUED, ONGOING),
    Transition("fail exhausted", ENQUEUED, FAILED),  # a counter of the row cannot grow any more
    Transition("finish", ONGOING, COMPLETED),
    Transition("finish", ONGOING, FAILED),
    Transition("finish", ONGOING, CANCELLED),
    Transition("finish", ONGOING, SCHEDULED),  # the next attempt runs later
    Transition("finish", ONGOING, ENQUEUED),  # the runner could not finish it
    Transition("give back", ONGOING, ENQUEUED),
    Transition("rescue", ONGOING, ENQUEUED),
    Transition("rescue", ONGOING, FAILED),  # its runner died, and it has no crash retries left
    Transition("cancel", ENQUEUED, CANCELLED),
    Transition("cancel", SCHEDULED, CANCELLED),
    Transition("cancel", ONGOING, CANCELLED),
    Transition("retry", FAILED, ENQUEUED),
    Transition("retry", CANCELLED, ENQUEUED),
)


def sources(verb: str) -> tuple[str, ...]:
    """Return the letters of the statuses that `verb` may change."""
    found = tuple(dict.fromkeys(change.old for change in TRANSITIONS if change.verb == verb))
    if not found:
        raise ValueError(f"No transition has the verb {verb!r}.")
    return found
