"""Stored values as text for people: arguments, results, durations, times.

Masks secrets, and never loads a pickle.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from inspect import Parameter
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from django.utils import timezone
from django.utils.formats import date_format, get_format
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from peasy_jobs import conf, payloads

if TYPE_CHECKING:
    from peasy_jobs.models import PeasyJobQueue

MASK = "••••••"
VALUE_LENGTH = 20_000  # characters
NAME_LENGTH = 200

# Looked for in lower-case names without punctuation: API_KEY, apiKey and X-Api-Key are the same.
SECRET_NAMES = re.compile(
    "passw|passphrase|passcode|pwd|secret|token|apikey|accesskey|privatekey|secretkey|signingkey"
    "|encryptionkey|sshkey|authorization|bearer|credential|cookie|csrf|xsrf|sessionid|sessionkey"
    "|jwt|otp$|^pin$|pass$|auth$|^pw$|cvc|cvv|cardnumber|creditcard|^ssn$"
)


class Argument(NamedTuple):
    name: str
    text: str


class Unit(NamedTuple):
    """A unit of a duration, and the next smaller one. Sizes are in seconds."""

    name: str
    size: int
    smaller_name: str
    smaller_size: int


UNITS = (
    Unit("d", 86400, "h", 3600),
    Unit("h", 3600, "min", 60),
    Unit("min", 60, "s", 1),
)


class Failure(NamedTuple):
    """One failed attempt of a job."""

    number: int  # among those that the job keeps, the oldest first
    id: str  # of the HTML element
    at: datetime | None
    where: str
    exception: str
    message: str
    traceback: str


def is_secret(name: str) -> bool:
    """Return whether values with this name are masked. `PEASY_MASK_ARGUMENT` may add names."""
    if SECRET_NAMES.search(re.sub(r"[^a-z0-9]", "", name.lower())):
        return True
    decide = conf.hook("mask_argument")
    return bool(decide and decide(name))


def arguments(job: PeasyJobQueue) -> list[Argument]:
    """Return the arguments of a job.

    Positional arguments have their names if this process has imported the job function.
    """
    return [*_positional_arguments(job), *_keyword_arguments(job)]


def _positional_arguments(job: PeasyJobQueue) -> list[Argument]:
    if job.args_data is None:
        return []
    is_plain, values = payloads.plain(job.args_data)
    if not is_plain or not isinstance(values, list):
        return [Argument(_("Positional arguments"), unreadable(job.args_data))]
    return [
        _positional(name, number, value)
        for number, (name, value) in enumerate(_named(job.job_name, values), 1)
    ]


def _keyword_arguments(job: PeasyJobQueue) -> list[Argument]:
    if job.kwargs_data is None:
        return []
    is_plain, values = payloads.plain(job.kwargs_data)
    if not is_plain or not isinstance(values, dict):
        return [Argument(_("Keyword arguments"), unreadable(job.kwargs_data))]
    return [
        Argument(payloads.text(name, NAME_LENGTH), text(value, name))
        for name, value in values.items()
    ]


def _positional(name: str, number: int, value: Any) -> Argument:
    if name or not isinstance(value, str | list):
        return Argument(name or str(number), text(value, name))
    # It might be a password. Numbers are shown: most of them are primary keys.
    hidden = _("%(mask)s (its function is not loaded here, so its name is not known)")
    return Argument(str(number), hidden % {"mask": MASK})


def _named(job_name: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    """Pair values with parameter names. The last name is repeated, for `*args`."""
    names = _parameters(job_name)
    padding = repeat(names[-1] if names else "")
    return zip(chain(names, padding), values, strict=False)


def _parameters(job_name: str) -> list[str]:
    """Return the names of the positional parameters of a job function. Imports nothing.

    Empty if this process has not imported the function.
    """
    module, _, name = job_name.rpartition(".")
    # Not `getattr`: a module may import something when it is asked for an attribute.
    namespace = getattr(sys.modules.get(module), "__dict__", {})
    signature = getattr(namespace.get(name), "signature", None)
    parameters = getattr(signature, "parameters", {})
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
    return [
        parameter.name
        for parameter in parameters.values()
        if isinstance(parameter, Parameter) and parameter.kind in kinds
    ]


def result(job: PeasyJobQueue) -> str:
    """Return the result of a job as text; empty if there is none."""
    if job.result_data is None:
        return ""
    is_plain, value = payloads.plain(job.result_data)
    return text(value) if is_plain else unreadable(job.result_data)


def text(value: Any, name: str = "") -> str:
    """Return a JSON value as text. Masks it if `name` is secret, and what is secret inside it."""
    if name and is_secret(name):
        return MASK
    try:
        written = json.dumps(masked(value), indent=2, ensure_ascii=False)
    except (RecursionError, ValueError):
        return _("nested too deeply to be shown")
    cut = payloads.text(written, VALUE_LENGTH)
    more = len(written) - VALUE_LENGTH
    if more <= 0:
        return cut
    return cut + "\n… " + _("%(count)d more characters") % {"count": more}


def masked(value: Any) -> Any:
    """Return a JSON value with `MASK` in place of every value that has a secret name."""
    if isinstance(value, dict):
        return {key: MASK if is_secret(str(key)) else masked(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    is_pair = len(value) == 2 and isinstance(value[0], str)  # such as a header
    if is_pair and is_secret(value[0]):
        return [value[0], MASK]
    return [masked(item) for item in value]


def unreadable(data: bytes | memoryview) -> str:
    """Return a description of stored bytes that are not shown."""
    data = bytes(data)
    size = ngettext("%(count)s byte", "%(count)s bytes", len(data)) % {"count": f"{len(data):,}"}
    if data[:1] == payloads.PICKLE:
        return _("stored as a pickle, %(size)s") % {"size": size}
    return _("not readable, %(size)s") % {"size": size}


def duration(seconds: float) -> str:
    """Return a duration: < 0.01 s, 0.25 s, 12 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.01:
        return "< 0.01 s"
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit in UNITS:
        if whole >= unit.size:
            smaller = whole % unit.size // unit.smaller_size
            return f"{whole // unit.size} {unit.name} {smaller} {unit.smaller_name}"
    return f"{whole} s"


def moment(value: datetime | None) -> datetime | None:
    """Return a time in the current time zone, or None if that is out of range.

    The last hours of the year 9999 have no date east of Greenwich.
    """
    if value is None or timezone.is_naive(value):
        return value
    try:
        return timezone.localtime(value)
    except OverflowError:
        return None


def clock(value: datetime) -> str:
    """Return a time of day with seconds, which Django's own formats for languages lack."""
    pattern = str(get_format("TIME_FORMAT")).replace("P", "g:i:s a")
    return date_format(value, pattern if "s" in pattern else re.sub(r"(\W)i", r"\1i\1s", pattern))


def failures(job: PeasyJobQueue) -> list[Failure]:
    """Return the failed attempts that a job keeps, the newest first. Ignores malformed entries."""
    errors = job.errors if isinstance(job.errors, list) else []
    entries = [entry for entry in errors if isinstance(entry, dict)]
    found = [_failure(job, number, entry) for number, entry in enumerate(entries, 1)]
    return found[::-1]


def _failure(job: PeasyJobQueue, number: int, entry: dict[str, Any]) -> Failure:
    def part(key: str) -> str:
        return payloads.text(entry.get(key) or "", VALUE_LENGTH)

    digits = re.sub("[^0-9]", "", str(entry.get("at")))[:20]
    return Failure(
        number=number,
        id=f"failure-{job.pk}-{digits}-{number}",
        at=_parsed(entry.get("at")),
        where=part("where"),
        exception=part("exception"),
        message=part("message"),
        traceback=part("traceback"),
    )


def _parsed(written: Any) -> datetime | None:
    try:
        return moment(datetime.fromisoformat(written))
    except (ValueError, TypeError):
        return None
