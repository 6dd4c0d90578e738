"""What is done to the jobs that somebody has chosen, and what is said of it. The verbs are those of the queryset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.contrib import messages
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web.filters import key

if TYPE_CHECKING:
    from django.http import HttpRequest, QueryDict

MOST = 1000  # jobs of one action
VERBS = {"cancel": "cancel", "retry": "retry", "delete": "remove"}


def chosen(sent: QueryDict, name: str) -> list[int]:
    """The primary keys that a form has sent under this name, each once; what is none is left out."""
    return list(dict.fromkeys(pk for text in sent.getlist(name) if (pk := key(text))))


def are_some(request: HttpRequest, pks: list[int]) -> bool:
    """Whether these are jobs for one action: neither none nor too many, which is said."""
    if 0 < len(pks) <= MOST:
        return True
    text = (
        _("No job is selected.")
        if not pks
        else _("Select %(most)d jobs at the most.") % {"most": MOST}
    )
    messages.warning(request, text, fail_silently=True)
    return False


def perform(request: HttpRequest, action: str, pks: list[int]) -> None:
    """Cancel, retry or delete these jobs, and say how many were and why others were not."""
    done: int = getattr(PeasyJobQueue.objects.all(), VERBS[action])(*pks)
    _tell(request, action, done, len(pks) - done)


def _tell(request: HttpRequest, action: str, done: int, left: int) -> None:
    if done:
        text = {
            "cancel": ngettext("%(n)d job cancelled.", "%(n)d jobs cancelled.", done),
            "retry": ngettext("%(n)d job enqueued again.", "%(n)d jobs enqueued again.", done),
            "delete": ngettext("%(n)d job deleted.", "%(n)d jobs deleted.", done),
        }[action]
        messages.success(request, text % {"n": done}, fail_silently=True)
    if left:
        text = {
            "cancel": ngettext(
                "%(n)d job had ended already.", "%(n)d jobs had ended already.", left
            ),
            "retry": ngettext(
                "%(n)d job was not retried: only those that failed or were cancelled, and have stopped, are.",
                "%(n)d jobs were not retried: only those that failed or were cancelled, and have stopped, are.",
                left,
            ),
            "delete": ngettext(
                "%(n)d job was not deleted: it is running, or gone. Cancel it first.",
                "%(n)d jobs were not deleted: they are running, or gone. Cancel them first.",
                left,
            ),
        }[action]
        messages.warning(request, text % {"n": left}, fail_silently=True)
