"""What the address of the dashboard asks for. `listing` finds the jobs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from django.utils.http import urlencode

from peasy_jobs.options import QUEUE_NAME_LIMIT
from peasy_jobs.statuses import BY_WORD
from peasy_jobs.web import keys

if TYPE_CHECKING:
    from collections.abc import Mapping

SEARCH_LENGTH = 200  # characters; longer texts are cut


@dataclass(frozen=True)
class Filters:
    """The part of the jobs that a page lists. Any query string is valid; nonsense is ignored."""

    status: str = ""  # the word of a status
    queue: str = ""
    q: str = ""  # search text
    before: int | None = None  # list the jobs with smaller primary keys
    after: int | None = None  # list the jobs with larger primary keys; ignored with `before`

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """Return the filters that a query string asks for."""
        status = query.get("status", "")
        before = keys.parse(query.get("before", ""))
        after = keys.parse(query.get("after", ""))
        return cls(
            status=status if status in BY_WORD else "",
            queue=_printable(query.get("queue", ""), QUEUE_NAME_LIMIT),
            q=_printable(query.get("q", ""), SEARCH_LENGTH).strip(),
            before=before,
            after=after if before is None else None,
        )

    @property
    def letter(self) -> str:
        """The letter of the selected status, or an empty string."""
        status = BY_WORD.get(self.status)
        return status.letter if status else ""

    @property
    def is_first_page(self) -> bool:
        return self.before is None and self.after is None

    @property
    def narrow(self) -> bool:
        """Whether only the newest jobs are searched, because no index serves these filters."""
        return bool(self.queue or self.q)

    def query(self, **changes: Any) -> str:
        """Return the query string of this page with some changes.

        Without `before` or `after` among the changes, it leads to the first page.
        """
        new = replace(self, **{"before": None, "after": None, **changes})
        given = {name: value for name, value in vars(new).items() if value not in ("", None)}
        return f"?{urlencode(given)}" if given else ""


def _printable(text: str, limit: int) -> str:
    return "".join(letter for letter in text[:limit] if letter.isprintable())
