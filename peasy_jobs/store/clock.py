"""The database's clock, and datetimes as the site's fields hold them."""

from __future__ import annotations

from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any

from django.db.models import DateTimeField, Value
from django.utils import timezone

from peasy_jobs import conf

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

STEP = 1.0  # seconds: two clocks that differ by more than before have not just drifted apart
NOW = {
    "sqlite": "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "postgresql": "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
    "mysql": "SELECT UTC_TIMESTAMP(6)",  # NOW() would be in the time zone of the session
}


class Clock:
    """The database's clock, read from time to time and continued with the monotonic one."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.aware = conf.uses_time_zones()
        self.offset = 0.0
        # When `sync` last found that the database's clock was set, or that this host was suspended.
        self.stepped_at = float("-inf")

    def sync(self) -> float:
        """Read the database's clock. Return it in seconds since 1970."""
        now = database_now(self.connection).timestamp()
        offset = now - monotonic()
        if abs(offset - self.offset) > STEP:
            self.stepped_at = monotonic()
        self.offset = offset
        return now

    def at(self, moment: float) -> datetime:
        """Return the time of a moment, as fields hold it.

        moment: of `time.monotonic()`, which is the same in every process of a host.
        """
        time = datetime.fromtimestamp(moment + self.offset, UTC)
        return time if self.aware else as_field(time)


def database_now(connection: BaseDatabaseWrapper) -> datetime:
    """Return the database's time in UTC.

    No other clock is compared with what is due, leased or expired.
    """
    with connection.cursor() as cursor:
        cursor.execute(NOW[connection.vendor])
        (now,) = cursor.fetchone()
    return as_moment(now)


def as_moment(now: datetime | str) -> datetime:
    """Return the answer to a `NOW` query as an aware datetime."""
    return (datetime.fromisoformat(now) if isinstance(now, str) else now).replace(tzinfo=UTC)


def as_field(moment: datetime) -> datetime:
    """Return an aware datetime as the site's fields hold it: aware or naive, as `USE_TZ` says."""
    if conf.uses_time_zones():
        return moment
    return timezone.make_naive(moment, timezone.get_default_timezone())


def as_read(connection: BaseDatabaseWrapper, value: Any) -> datetime:
    """Return a time that SQL has read, as the site's fields hold it.

    Raises `ValueError` for anything else, which SQLite may hold.
    """
    for convert in connection.ops.get_db_converters(Value(None, DateTimeField())):
        value = convert(value, None, connection)
    if not isinstance(value, datetime):  # Django reads it as None without time zones
        raise ValueError(f"{value!r} is not a time")
    return value
