"""The `PEASY_*` settings. No other module reads `django.conf.settings`.

Each setting is declared once, as a field of `Conf`. The system checks, the error messages and the
test of the manual's table (docs/settings.md) read these declarations.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

PREFIX = "PEASY_"
LARGEST_INTEGER = 2**63 - 1  # the largest that every database stores
LONGEST_SECONDS = 10**9  # about 31 years; adding more to a date could exceed the year 9999

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rule:
    """The values that a setting accepts.

    unit: what the value counts or names, such as "seconds".
    hint: how to correct an invalid value.
    """

    accepts: Callable[[Any], bool]
    unit: str
    hint: str

    def or_none(self, effect: str) -> "Rule":
        """Return the same rule with None as another valid value. `effect` says what None does."""
        return Rule(
            lambda value: value is None or self.accepts(value),
            f"{self.unit} or None",
            f"{self.hint.removesuffix('.')}, or to None {effect}.",
        )

    def or_zero(self, effect: str) -> "Rule":
        """Return the same rule with 0 as another valid value. `effect` says what 0 does."""
        return Rule(
            lambda value: (_is_number(value) and value == 0) or self.accepts(value),
            self.unit,
            f"{self.hint.removesuffix('.')}, or to 0 {effect}.",
        )


def whole_number(unit: str, *, minimum: int) -> Rule:
    return Rule(
        lambda value: type(value) is int and minimum <= value <= LARGEST_INTEGER,
        unit,
        f"Set it to a whole number of {unit}, {minimum} or more.",
    )


def seconds(*, minimum: float) -> Rule:
    # NaN fails every comparison, so it is rejected too.
    return Rule(
        lambda value: _is_number(value) and minimum <= value <= LONGEST_SECONDS,
        "seconds",
        f"Set it to a number of seconds, {minimum:g} or more.",
    )


def seconds_above_zero() -> Rule:
    return Rule(
        lambda value: _is_number(value) and 0 < value <= LONGEST_SECONDS,
        "seconds",
        "Set it to a number of seconds above 0.",
    )


def one_of(*choices: str) -> Rule:
    quoted = " or ".join(f'"{choice}"' for choice in choices)
    return Rule(lambda value: value in choices, quoted, f"Set it to {quoted}.")


def callable_path() -> Rule:
    """Accept a dotted path. It is not imported here: settings are read before apps are ready."""
    return Rule(
        lambda value: isinstance(value, str) and "." in value.strip("."),
        "path of a callable",
        "Set it to the dotted path of a callable.",
    )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # not a bool, which is an int in Python


def setting(default: T, *, check_id: str, rule: Rule, description: str) -> T:
    """Declare a setting: a dataclass field with this default.

    check_id: id of the system check that reports an invalid value, without "peasy_jobs.".
    description: the setting's line in the manual.
    """
    details = {"check_id": check_id, "rule": rule, "description": description}
    return field(default=default, metadata=details)


JOBS_TO_KEEP = whole_number("jobs", minimum=0).or_none("to keep all")
CALLABLE = callable_path().or_none("for the default behaviour")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conf:
    """The value of every setting. The setting of `lease` is `PEASY_LEASE`, and so on."""

    max_completed: int | None = setting(
        10,
        check_id="E001",
        rule=JOBS_TO_KEEP,
        description="completed jobs to keep; None keeps all",
    )
    max_failed: int | None = setting(
        10,
        check_id="E002",
        rule=JOBS_TO_KEEP,
        description="failed jobs to keep; None keeps all",
    )
    max_cancelled: int | None = setting(
        10,
        check_id="E003",
        rule=JOBS_TO_KEEP,
        description="cancelled jobs to keep; None keeps all",
    )
    prune_grace: float = setting(
        60,
        check_id="E004",
        rule=seconds(minimum=0),
        description="how long every finished job is kept, "
        "so that a page watching the job sees how it ended",
    )
    polling_interval: float = setting(
        2,
        check_id="E005",
        rule=seconds(minimum=0.01),
        description="maximum time between two checks for new jobs if no wake-up arrives",
    )
    concurrency: int = setting(
        1,
        check_id="E006",
        rule=whole_number("workers", minimum=1),
        description="workers of a runner: jobs that it runs at the same time",
    )
    worker_type: str = setting(
        "process",
        check_id="E007",
        rule=one_of("process", "thread"),
        description="whether a worker is a process or a thread",
    )
    shutdown_timeout: float = setting(
        30,
        check_id="E008",
        rule=seconds(minimum=0),
        description="how long a runner waits for its running jobs after SIGINT or SIGTERM",
    )
    lease: float = setting(
        30,
        check_id="E009",
        rule=seconds(minimum=2),
        description="time without a heartbeat after which a runner is presumed dead; 2 or more",
    )
    crash_retries: int = setting(
        1,
        check_id="E010",
        rule=whole_number("retries", minimum=0),
        description="how often a job runs again after its worker or runner died",
    )
    job_timeout: float | None = setting(
        None,
        check_id="E013",
        rule=seconds_above_zero().or_none("for no limit"),
        description="time limit of a job; None for no limit",
    )
    max_jobs_per_worker: int | None = setting(
        None,
        check_id="E014",
        rule=whole_number("jobs", minimum=1).or_none("to never replace a worker"),
        description="jobs after which a worker process is replaced, "
        "if code leaks memory; None: never",
    )
    max_payload: int = setting(
        10 * 1024 * 1024,
        check_id="E011",
        rule=whole_number("bytes", minimum=1),
        description="maximum size of a job's arguments, and of its result; the default is 10 MiB",
    )
    serializer: str = setting(
        "pickle",
        check_id="E012",
        rule=one_of("pickle", "json"),
        description='format of values that are not plain JSON; "json" refuses such values',
    )
    token_max_age: float = setting(
        24 * 60 * 60,
        check_id="E016",
        rule=seconds(minimum=1),
        description="how long a signed link to the status of a job is valid; the default "
        "is one day",
    )
    dashboard_poll: float = setting(
        5,
        check_id="E017",
        rule=seconds(minimum=1).or_zero("to turn updates off"),
        description="time between two updates of an open dashboard, 1 or more; 0 turns updates off",
    )
    dashboard_permission: str | None = setting(
        None,
        check_id="E018",
        rule=CALLABLE,
        description="`(request, action)` returns whether it is allowed, "
        "instead of staff and permissions",
    )
    can_view_job: str | None = setting(
        None,
        check_id="E019",
        rule=CALLABLE,
        description="`(request, job)` returns whether it is visible, "
        "instead of the job's user and staff",
    )
    job_json: str | None = setting(
        None,
        check_id="E020",
        rule=CALLABLE,
        description="`(request, job, document)` returns the JSON document to send",
    )
    mask_argument: str | None = setting(
        None,
        check_id="E021",
        rule=CALLABLE,
        description="`(name)` returns whether pages mask this argument",
    )


@dataclass(frozen=True, slots=True)
class Setting:
    """The declaration of one setting.

    name: as a site writes it, such as "PEASY_LEASE".
    attribute: of `Conf`, such as "lease".
    """

    name: str
    attribute: str
    default: Any
    check_id: str
    rule: Rule
    description: str


SETTINGS = tuple(
    Setting(
        f"{PREFIX}{attribute.name.upper()}", attribute.name, attribute.default, **attribute.metadata
    )
    for attribute in fields(Conf)
)
CALLABLES = tuple(declared for declared in SETTINGS if declared.rule is CALLABLE)

_loaded: Conf | None = None


def get() -> Conf:
    """Return the settings of this site. Raise `ImproperlyConfigured` if one of them is invalid."""
    global _loaded
    if _loaded is None:
        for problem in problems():
            raise ImproperlyConfigured(f"{problem.message} {problem.hint}")
        values = {declared.attribute: value for declared, value in _site_values()}
        _loaded = Conf(**values)
    return _loaded


def hook(attribute: str) -> Callable[..., Any] | None:
    """Import and return the callable that a setting of `CALLABLES` names; None if it is None."""
    path: str | None = getattr(get(), attribute)
    return None if path is None else import_string(path)


@dataclass(frozen=True, slots=True)
class Problem:
    """An invalid setting: which check reports it, what is wrong, and what to do."""

    check_id: str
    message: str
    hint: str


def problems() -> list[Problem]:
    """Return the invalid settings of this site."""
    return [
        Problem(declared.check_id, f"{declared.name} is {value!r}.", declared.rule.hint)
        for declared, value in _site_values()
        if not declared.rule.accepts(value)
    ]


def names() -> list[str]:
    """Return the names of all settings."""
    return [declared.name for declared in SETTINGS]


def unknown() -> list[str]:
    """Return the names in this site's settings that begin with `PEASY_` but are no setting."""
    return sorted({name for name in dir(settings) if name.startswith(PREFIX)} - set(names()))


def uses_time_zones() -> bool:
    """Return whether the site's datetimes are aware (`USE_TZ`)."""
    return bool(settings.USE_TZ)


def is_debug() -> bool:
    """Return whether the site is in development (`DEBUG`)."""
    return bool(settings.DEBUG)


def user_model() -> str:
    """Return the name of the site's user model (`AUTH_USER_MODEL`)."""
    return settings.AUTH_USER_MODEL


def _site_values() -> list[tuple[Setting, Any]]:
    """Return the settings that this site sets, with their values."""
    return [
        (declared, getattr(settings, declared.name))
        for declared in SETTINGS
        if hasattr(settings, declared.name)
    ]


def _read_again(*, setting: str, **kwargs: Any) -> None:
    """Forget the loaded settings when a test overrides one of them."""
    global _loaded
    if setting.startswith(PREFIX):
        _loaded = None


setting_changed.connect(_read_again)
