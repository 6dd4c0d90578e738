"""Stored values for people: arguments, results, times. Masks what is secret, and never loads a pickle."""

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
LIMIT = 20_000  # characters of one value
# Parts of names, without what is no letter or digit: API_KEY, apiKey and X-Api-Key are one.
SECRETS = re.compile(
    "passw|passphrase|passcode|pwd|secret|token|apikey|accesskey|privatekey|secretkey|signingkey|encryptionkey|sshkey"
    "|authorization|bearer|credential|cookie|csrf|xsrf|sessionid|sessionkey|jwt|otp$|^pin$|pass$|auth$|^pw$|cvc|cvv"
    "|cardnumber|creditcard|^ssn$"
)


class Argument(NamedTuple):
    name: str
    text: str


def is_secret(name: str) -> bool:
    """Whether a value under this name is masked: by its name, or because `PEASY_MASK_ARGUMENT` says so."""
    if SECRETS.search(re.sub(r"[^a-z0-9]", "", name.lower())):
        return True
    decide = conf.hook("mask_argument")
    return bool(decide and decide(name))


def arguments(job: PeasyJobQueue) -> list[Argument]:
    """The arguments of a job, the positional ones under their names where its function is known here."""
    shown: list[Argument] = []
    if job.args_data is not None:
        plain, values = payloads.plain(job.args_data)
        if plain and isinstance(values, list):
            shown += [
                _positional(name, n, value)
                for n, (name, value) in enumerate(_named(job.job_name, values), 1)
            ]
        else:
            shown.append(Argument(_("Positional arguments"), unreadable(job.args_data)))
    if job.kwargs_data is not None:
        plain, values = payloads.plain(job.kwargs_data)
        if plain and isinstance(values, dict):
            shown += [
                Argument(payloads.text(name, 200), text(value, name))
                for name, value in values.items()
            ]
        else:
            shown.append(Argument(_("Keyword arguments"), unreadable(job.kwargs_data)))
    return shown


def result(job: PeasyJobQueue) -> str:
    """What a job returned; empty when there is nothing."""
    if job.result_data is None:
        return ""
    plain, value = payloads.plain(job.result_data)
    return text(value) if plain else unreadable(job.result_data)


def text(value: Any, name: str = "") -> str:
    """A JSON value as text, masked by its name and by the names inside it."""
    if name and is_secret(name):
        return MASK
    try:
        written = json.dumps(masked(value), indent=2, ensure_ascii=False)
    except (RecursionError, ValueError):
        return _("nested too deeply to be shown")
    more = len(written) - LIMIT
    cut = payloads.text(written, LIMIT)
    return cut if more <= 0 else cut + "\n… " + _("%(count)d more characters") % {"count": more}


def masked(value: Any) -> Any:
    """A JSON value with `MASK` in the place of everything under a secret name."""
    if isinstance(value, dict):
        return {key: MASK if is_secret(str(key)) else masked(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    if (
        len(value) == 2 and isinstance(value[0], str) and is_secret(value[0])
    ):  # of a list of pairs, such as headers
        return [value[0], MASK]
    return [masked(item) for item in value]


def unreadable(data: bytes | memoryview) -> str:
    """What is said of bytes that are not shown."""
    data = bytes(data)
    size = ngettext("%(count)s byte", "%(count)s bytes", len(data)) % {"count": f"{len(data):,}"}
    if data[:1] == payloads.PICKLE:
        return _("stored as a pickle, %(size)s") % {"size": size}
    return _("not readable, %(size)s") % {"size": size}


def duration(seconds: float) -> str:
    """How long something took: < 0.01 s, 0.25 s, 12 s, 4 min 10 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 0.01:
        return "< 0.01 s"
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, smaller, size, step in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step} {smaller}"
    return f"{whole} s"


def moment(value: datetime | None) -> datetime | None:
    """A time that templates can show: the last hours of the year 9999, "never", cannot be told east of Greenwich."""
    try:
        return (
            timezone.localtime(value) if value is not None and timezone.is_aware(value) else value
        )
    except OverflowError:
        return None


def clock(value: datetime) -> str:
    """A time of day to the second, in the way of the language: Django's own format for it ends with the minutes."""
    pattern = str(get_format("TIME_FORMAT")).replace("P", "g:i:s a")
    return date_format(value, pattern if "s" in pattern else re.sub(r"(\W)i", r"\1i\1s", pattern))


def failures(job: PeasyJobQueue) -> list[dict[str, Any]]:
    """The failed attempts that a job keeps, the newest first, whatever somebody else has written there."""
    entries = (
        [entry for entry in job.errors if isinstance(entry, dict)]
        if isinstance(job.errors, list)
        else []
    )
    return [
        {
            **{
                key: payloads.text(entry.get(key) or "", LIMIT)
                for key in ("where", "exception", "message", "traceback")
            },
            "at": _moment(entry.get("at")),
            "number": number,
            "id": f"failure-{job.pk}-{re.sub('[^0-9]', '', str(entry.get('at')))[:20]}-{number}",
        }
        for number, entry in reversed(list(enumerate(entries, 1)))
    ]


def _moment(written: Any) -> datetime | None:
    try:
        return moment(datetime.fromisoformat(written))
    except (ValueError, TypeError):
        return None


def _named(job_name: str, values: list[Any]) -> Iterator[tuple[str, Any]]:
    names = _parameters(job_name)
    return zip(chain(names or (), repeat(names[-1] if names else "")), values, strict=False)


def _parameters(job_name: str) -> list[str]:
    """The names of the positional parameters of a job function; none when it is not known here. Imports nothing."""
    module, _, name = job_name.rpartition(".")
    # Not an attribute of the module, which it may import when it is asked for.
    known = getattr(sys.modules.get(module), "__dict__", {})
    signature = getattr(known.get(name), "signature", None)
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
    found = getattr(signature, "parameters", {})
    return [
        each.name for each in found.values() if isinstance(each, Parameter) and each.kind in kinds
    ]


def _positional(name: str, number: int, value: Any) -> Argument:
    if not name and isinstance(value, str | list):
        # It might be a password. Numbers are shown: most of them are primary keys.
        return Argument(
            str(number),
            _("%(mask)s (its function is not loaded here, so its name is not known)")
            % {"mask": MASK},
        )
    return Argument(name or str(number), text(value, name))
