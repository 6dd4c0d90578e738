"""The PEASY_* settings: the only module that reads `settings`. Everybody else gets plain values from here."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

PREFIX = "PEASY_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """Every setting with its default. Times are seconds, sizes are bytes."""

    max_completed: int | None = 10
    max_failed: int | None = 10
    max_cancelled: int | None = 10
    prune_grace: float = 60
    polling_interval: float = 2
    concurrency: int = 1
    worker_type: str = "process"
    shutdown_timeout: float = 30
    lease: float = 30
    crash_retries: int = 1
    job_timeout: float | None = None
    max_jobs_per_worker: int | None = None
    max_payload: int = 10 * 1024 * 1024
    serializer: str = "pickle"
    token_max_age: float = 24 * 60 * 60
    dashboard_poll: float = 5
    dashboard_permission: str | None = None
    can_view_job: str | None = None
    job_json: str | None = None
    mask_argument: str | None = None


class Problem(NamedTuple):
    """A setting with a value nothing can be done with."""

    id: str
    message: str
    hint: str


class Rule(NamedTuple):
    id: str
    accepts: Callable[[Any], bool]
    hint: str


def _whole(minimum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and minimum <= value < 2**63


def _seconds(minimum: float) -> Callable[[Any], bool]:
    # Of more no date can be made. NaN is in no range.
    return lambda value: type(value) in (int, float) and minimum <= value <= 10**9


def _maximum(value: Any) -> bool:
    return value is None or _whole(0)(value)


def _path(value: Any) -> bool:
    # Not imported here: the settings are read before every app is there.
    return value is None or (isinstance(value, str) and "." in value.strip("."))


KEEP = "Set it to how many of them to keep, a whole number, or to None to keep all."
RULES = {
    "max_completed": Rule("E001", _maximum, KEEP),
    "max_failed": Rule("E002", _maximum, KEEP),
    "max_cancelled": Rule("E003", _maximum, KEEP),
    "prune_grace": Rule("E004", _seconds(0), "Set it to a number of seconds, 0 or more."),
    "polling_interval": Rule(
        "E005", _seconds(0.01), "Set it to a number of seconds, 0.01 or more."
    ),
    "concurrency": Rule(
        "E006", _whole(1), "Set it to how many workers a runner has, a whole number, 1 or more."
    ),
    "worker_type": Rule(
        "E007", lambda value: value in ("process", "thread"), 'Set it to "process" or "thread".'
    ),
    "shutdown_timeout": Rule("E008", _seconds(0), "Set it to a number of seconds, 0 or more."),
    "lease": Rule("E009", _seconds(2), "Set it to a number of seconds, 2 or more."),
    "crash_retries": Rule("E010", _whole(0), "Set it to a whole number, 0 or more."),
    "max_payload": Rule("E011", _whole(1), "Set it to a number of bytes, 1 or more."),
    "serializer": Rule(
        "E012", lambda value: value in ("pickle", "json"), 'Set it to "pickle" or "json".'
    ),
    "job_timeout": Rule(
        "E013",
        lambda value: value is None or (_seconds(0)(value) and value > 0),
        "Set it to a number of seconds above 0, or to None for no limit.",
    ),
    "max_jobs_per_worker": Rule(
        "E014",
        lambda value: value is None or _whole(1)(value),
        "Set it to a whole number of jobs, 1 or more, or to None to keep workers for good.",
    ),
}

HOOK = "Set it to the dotted path of a callable, or to None."
RULES |= {
    "token_max_age": Rule("E016", _seconds(1), "Set it to a number of seconds, 1 or more."),
    "dashboard_poll": Rule(
        "E017",
        lambda value: _seconds(0)(value) and not 0 < value < 1,
        "Set it to seconds, 1 or more, or to 0 for none.",
    ),
    "dashboard_permission": Rule("E018", _path, HOOK),
    "can_view_job": Rule("E019", _path, HOOK),
    "job_json": Rule("E020", _path, HOOK),
    "mask_argument": Rule("E021", _path, HOOK),
}

_loaded: Conf | None = None


def get() -> Conf:
    """The settings of this site. Raises `ImproperlyConfigured` when one of them is wrong."""
    global _loaded
    if _loaded is None:
        for problem in problems():
            raise ImproperlyConfigured(f"{problem.message} {problem.hint}")
        _loaded = Conf(**_given())
    return _loaded


def hook(name: str) -> Callable[..., Any] | None:
    """The callable whose path the setting of this name is; None without one."""
    path: str | None = getattr(get(), name)
    return None if path is None else import_string(path)


def problems() -> list[Problem]:
    """What is wrong with the settings of this site."""
    return [
        Problem(RULES[name].id, f"{_setting(name)} is {value!r}.", RULES[name].hint)
        for name, value in _given().items()
        if not RULES[name].accepts(value)
    ]


def names() -> list[str]:
    """Every setting there is."""
    return [_setting(field.name) for field in fields(Conf)]


def unknown() -> list[str]:
    """What this site sets under a name of that kind that is none of them."""
    return sorted({name for name in dir(settings) if name.startswith(PREFIX)} - set(names()))


def uses_time_zones() -> bool:
    """Whether the site's datetimes are aware (`USE_TZ`)."""
    return bool(settings.USE_TZ)


def is_debug() -> bool:
    """Whether this is somebody's development (`DEBUG`)."""
    return bool(settings.DEBUG)


def user_model() -> str:
    """The model of the site's users (`AUTH_USER_MODEL`)."""
    return settings.AUTH_USER_MODEL


def _setting(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _given() -> dict[str, Any]:
    names = [field.name for field in fields(Conf)]
    return {
        name: getattr(settings, _setting(name))
        for name in names
        if hasattr(settings, _setting(name))
    }


def _forget(*, setting: str, **kwargs: Any) -> None:
    global _loaded
    if setting.startswith(PREFIX):
        _loaded = None


setting_changed.connect(_forget)
