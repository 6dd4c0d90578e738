"""Who may open the dashboard and act there, and the headers of its answers."""

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

# The permission of the model `PeasyJobQueue` that each action needs.
MODEL_PERMISSIONS = {"view": "view", "cancel": "change", "retry": "change", "delete": "delete"}


def may(request: HttpRequest, action: str) -> bool:
    """Return whether this request may `view` the dashboard, or `cancel`, `retry` or `delete` jobs.

    Staff with the model's permission may, unless `PEASY_DASHBOARD_PERMISSION` decides instead.
    """
    if decide := conf.hook("dashboard_permission"):
        return is_allowed_by(decide, request, action)
    user = getattr(request, "user", None)
    # A custom user model may have no `is_staff`.
    if user is None or not user.is_active or not getattr(user, "is_staff", False):
        return False
    return has_model_permission(user, action)


def has_model_permission(user: Any, action: str) -> bool:
    """Return whether the user has the permission of the model that the action needs."""
    return bool(user.has_perm(f"peasy_jobs.{MODEL_PERMISSIONS[action]}_peasyjobqueue"))


def is_allowed_by(decide: Callable[..., object], request: HttpRequest, subject: object) -> bool:
    """Return the decision of a callable of the site. `PermissionDenied` and `Http404` mean no."""
    try:
        answer = decide(request, subject)
    except (PermissionDenied, Http404):
        return False
    # A coroutine is true, and would let everybody in.
    return bool(answer) and not isawaitable(answer)


def page(view: View) -> View:
    """Redirect strangers to the login, and answer 403 to users without permission."""

    # `LoginRequiredMiddleware` would ignore `PEASY_DASHBOARD_PERMISSION`.
    @login_not_required
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if may(request, "view"):
            return private(view(request, *args, **kwargs))
        if is_logged_in(request):
            raise PermissionDenied
        return private(_login(request))

    return guarded


def _login(request: HttpRequest) -> HttpResponse:
    # Imported late: it needs the user model, which does not exist while `models` is imported.
    from django.contrib.auth.views import redirect_to_login

    # A form cannot be submitted again by GET, so there is no way back to it.
    can_return = request.method in ("GET", "HEAD")
    return redirect_to_login(request.get_full_path() if can_return else "")


def fragment(view: View) -> View:
    """Without permission, let HTMX reload the whole page, which then explains what is wrong."""

    # `LoginRequiredMiddleware` would make HTMX insert the login page.
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
    """Keep a response out of shared caches and search engines."""
    # Not no-store: with it, a browser could never send a conditional request.
    response["Cache-Control"] = "private, no-cache"
    response["X-Robots-Tag"] = "noindex"
    return response
