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

STEP = 1.0  # seconds by which clocks do not drift apart between two looks
NOW = {
    "sqlite": "SELECT strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "postgresql": "SELECT clock_timestamp() AT TIME ZONE 'UTC'",
    "mysql": "SELECT UTC_TIMESTAMP(6)",  # Now() would be the time of the server's zone
}


class Clock:
    """The database's clock, read now and then and carried on by the monotonic one in between."""

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection, self.aware = connection, conf.uses_time_zones()
        self.offset = 0.0
        self.stepped_at = float(
            "-inf"
        )  # when it was last found to have been set, or this host to have slept

    def sync(self) -> float:
        """Read the database's clock. Returns seconds since 1970."""
        now = database_now(self.connection).timestamp()
        offset = now - monotonic()
        if abs(offset - self.offset) > STEP:
            self.stepped_at = monotonic()
        self.offset = offset
        return now

    def at(self, moment: float) -> datetime:
        """The time of `moment` (`time.monotonic()`, the same in every process of a host), as fields hold it."""
        time = datetime.fromtimestamp(moment + self.offset, UTC)
        return time if self.aware else as_field(time)


def database_now(connection: BaseDatabaseWrapper) -> datetime:
    """The database's own time in UTC: the only clock that is compared with what is due, leased or expired."""
    with connection.cursor() as cursor:
        cursor.execute(NOW[connection.vendor])
        return as_moment(cursor.fetchone()[0])


def as_moment(now: datetime | str) -> datetime:
    """What a `NOW` query has answered, as an aware datetime."""
    return (datetime.fromisoformat(now) if isinstance(now, str) else now).replace(tzinfo=UTC)


def as_field(moment: datetime) -> datetime:
    """An aware `moment` as the site's datetime fields hold it: aware or naive, as `USE_TZ` says."""
    return (
        moment
        if conf.uses_time_zones()
        else timezone.make_naive(moment, timezone.get_default_timezone())
    )


def as_read(connection: BaseDatabaseWrapper, value: Any) -> datetime:
    """A time that plain SQL has read, as the site's datetime fields hold it. Raises `ValueError` for no time."""
    for convert in connection.ops.get_db_converters(Value(None, DateTimeField())):
        value = convert(value, None, connection)
    if not isinstance(value, datetime):  # without time zones Django reads what is no time as None
        raise ValueError(f"{value!r} is no time")
    return value
