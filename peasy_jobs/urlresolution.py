"""Where our URLs are mounted: under any prefix, in any namespace, once or several times. Knows no view."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from django.urls import NoReverseMatch, URLResolver, get_resolver, get_urlconf, reverse

if TYPE_CHECKING:
    from django.http import HttpRequest

APP = "peasy_jobs"


def address(view: str, *args: int, request: HttpRequest | None = None) -> str:
    """The path of a view of ours: where this request came through, or else in the first place that has it.

    Raises `NoReverseMatch` where no URLs of ours are mounted.
    """
    places = _places(get_resolver(get_urlconf()))
    match = getattr(request, "resolver_match", None)
    here = getattr(request, "current_app", None) or (match.namespace if match else "")
    for place in sorted(places, key=lambda place: not f"{place}:".startswith(f"{here}:")):
        with suppress(NoReverseMatch):  # the status URLs alone have no pages
            return reverse(f"{place}:{view}", args=args)
    raise NoReverseMatch(f"{view!r} is mounted nowhere: include peasy_jobs.urls in the URLconf.")


@lru_cache(maxsize=16)  # Django keeps a resolver for each URLconf
def _places(resolver: URLResolver) -> list[str]:
    """The namespaces that ours are in, such as "peasy_jobs" or "ops:jobs"; the default one first, as in Django."""
    mine = sorted(resolver.app_dict.get(APP, []), key=lambda name: name != APP)
    inner = ((name, inside) for name, (_, inside) in resolver.namespace_dict.items())
    return [*mine, *(f"{name}:{place}" for name, inside in inner for place in _places(inside))]
