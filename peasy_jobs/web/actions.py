"""Cancel, retry and delete selected jobs, in the dashboard and in the admin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import messages
from django.utils.translation import gettext as _
from django.utils.translation import ngettext_lazy

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import keys

if TYPE_CHECKING:
    from django.http import HttpRequest, QueryDict

MAX_SELECTED = 1000  # jobs of one action


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something that can be done to jobs, and the messages about it. `n`: the number of jobs."""

    verb: str  # of the queryset
    done: Any
    not_done: Any


ACTIONS = {
    "cancel": Action(
        verb="cancel",
        done=ngettext_lazy("%(n)d job cancelled.", "%(n)d jobs cancelled.", "n"),
        not_done=ngettext_lazy(
            "%(n)d job had already finished.", "%(n)d jobs had already finished.", "n"
        ),
    ),
    "retry": Action(
        verb="retry",
        done=ngettext_lazy("%(n)d job enqueued again.", "%(n)d jobs enqueued again.", "n"),
        not_done=ngettext_lazy(
            "%(n)d job was not retried. Only failed and cancelled jobs that have stopped can be.",
            "%(n)d jobs were not retried. Only failed and cancelled jobs that have stopped can be.",
            "n",
        ),
    ),
    "delete": Action(
        verb="remove",
        done=ngettext_lazy("%(n)d job deleted.", "%(n)d jobs deleted.", "n"),
        not_done=ngettext_lazy(
            "%(n)d job was not deleted: it is running or no longer exists. "
            "Cancel a running job first.",
            "%(n)d jobs were not deleted: they are running or no longer exist. "
            "Cancel running jobs first.",
            "n",
        ),
    ),
}


def selected_keys(form: QueryDict, field: str) -> list[int]:
    """Return the primary keys in a form field, each once. Other values are left out."""
    found = (keys.parse(text) for text in form.getlist(field))
    return list(dict.fromkeys(pk for pk in found if pk))


def selection_error(pks: list[int]) -> str:
    """Return why an action cannot be performed on these jobs, or an empty string."""
    if not pks:
        return _("No job is selected.")
    if len(pks) > MAX_SELECTED:
        return _("Select at most %(limit)s jobs.") % {"limit": f"{MAX_SELECTED:,}"}
    return ""


def warn(request: HttpRequest, text: str) -> None:
    """Show a warning on the next page."""
    messages.warning(request, text, fail_silently=True)


def perform(request: HttpRequest, name: str, pks: list[int]) -> None:
    """Perform an action, and tell the user how many jobs it changed and why not the others."""
    action = ACTIONS[name]
    done: int = getattr(PeasyJobQueue.objects.all(), action.verb)(*pks)
    if done:
        messages.success(request, action.done % {"n": done}, fail_silently=True)
    if not_done := len(pks) - done:
        warn(request, action.not_done % {"n": not_done})
