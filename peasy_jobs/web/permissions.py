"""Who may open the dashboard and do what there, and the headers of its answers. Draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpResponse

from peasy_jobs import conf

if TYPE_CHECKING:
    from django.http import HttpRequest

View = Callable[..., HttpResponse]

ACTIONS = ("cancel", "retry", "delete")
PERMISSIONS = {"view": "view", "cancel": "change", "retry": "change", "delete": "delete"}


def may(request: HttpRequest, action: str) -> bool:
    """Whether this request may `view` the dashboard, or `cancel`, `retry` or `delete` jobs there.

    Staff with the model's permissions may, unless `PEASY_DASHBOARD_PERMISSION` decides instead.
    """
    if decide := conf.hook("dashboard_permission"):
        return says_yes(decide, request, action)
    user = getattr(request, "user", None)
    # A user model of the site's own may know no staff.
    if user is None or not user.is_active or not getattr(user, "is_staff", False):
        return False
    return bool(user.has_perm(f"peasy_jobs.{PERMISSIONS[action]}_peasyjobqueue"))


def says_yes(decide: Callable[..., object], request: HttpRequest, what: object) -> bool:
    """What a callable of the site decides. It may say no as a view would: nobody is to tell that from a missing job."""
    try:
        answer = decide(request, what)
    except (PermissionDenied, Http404):
        return False
    return bool(answer) and not isawaitable(
        answer
    )  # a coroutine, which is true, would let everybody in


def page(view: View) -> View:
    """A page of the dashboard: strangers are sent to log in, those who may not see it are told so."""

    @login_not_required  # asked below: LoginRequiredMiddleware would answer HTMX with the login page
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if may(request, "view"):
            return private(view(request, *args, **kwargs))
        if is_logged_in(request):
            raise PermissionDenied
        from django.contrib.auth.views import (
            redirect_to_login,
        )  # late: it needs the user model, and we are models' too

        # A form that was sent leads nowhere by GET: not back to it.
        return private(
            redirect_to_login(request.get_full_path() if request.method in ("GET", "HEAD") else "")
        )

    return guarded


def fragment(view: View) -> View:
    """A part of a page that HTMX asks for: without permission the whole page is loaded anew, which explains itself."""

    @login_not_required
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if may(request, "view"):
            return private(view(request, *args, **kwargs))
        status = 403 if is_logged_in(request) else 401
        return private(HttpResponse(status=status, headers={"HX-Refresh": "true"}))

    return guarded


def is_logged_in(request: HttpRequest) -> bool:
    user = getattr(request, "user", None)
    return bool(user is not None and user.is_authenticated)


def private(response: HttpResponse) -> HttpResponse:
    # Not no-store: with that, a browser never asks whether something has changed.
    response["Cache-Control"] = "private, no-cache"
    response["X-Robots-Tag"] = "noindex"
    return response
