"""Find where the URLs of peasy_jobs are mounted: with any prefix, in any namespace, repeatedly."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from django.urls import NoReverseMatch, URLResolver, get_resolver, get_urlconf, reverse

if TYPE_CHECKING:
    from django.http import HttpRequest

APP_NAME = "peasy_jobs"


def address(view: str, *args: int, request: HttpRequest | None = None) -> str:
    """Return the path of a view of peasy_jobs.

    If the URLs are mounted more than once, the copy that serves `request` is preferred, then the
    first one that has the view. Raises `NoReverseMatch` if none has it.
    """
    current = _current_namespace(request)
    namespaces = sorted(
        _namespaces(get_resolver(get_urlconf())),
        key=lambda namespace: not f"{namespace}:".startswith(f"{current}:"),
    )
    for namespace in namespaces:
        with suppress(NoReverseMatch):  # `status_urls` has no pages
            return reverse(f"{namespace}:{view}", args=args)
    raise NoReverseMatch(f"{view!r} is mounted nowhere: include peasy_jobs.urls in the URLconf.")


def _current_namespace(request: HttpRequest | None) -> str:
    match = getattr(request, "resolver_match", None)
    return getattr(request, "current_app", None) or (match.namespace if match else "")


@lru_cache(maxsize=16)  # Django keeps one resolver for each URLconf
def _namespaces(resolver: URLResolver) -> list[str]:
    """Return the namespaces of peasy_jobs, such as "peasy_jobs" or "ops:jobs".

    The default namespace comes first, as in Django.
    """
    found = sorted(resolver.app_dict.get(APP_NAME, []), key=lambda name: name != APP_NAME)
    for outer, (_, inner_resolver) in resolver.namespace_dict.items():
        found += [f"{outer}:{inner}" for inner in _namespaces(inner_resolver)]
    return found
