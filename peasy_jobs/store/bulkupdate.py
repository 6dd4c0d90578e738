"""One UPDATE for many rows of a table, each with values of its own.

The ORM would send a query for each row, or a CASE with a branch for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from string import Formatter
from typing import TYPE_CHECKING, Any

from peasy_jobs.store.vendors import SURELY_ACCEPTED, refuse_too_large, table_sql

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

# How a column is set, as SQL: {new} is the value given for the row, {old} what the column holds.
REPLACE = "{new}"
KEEP_IF_NULL = "COALESCE({new}, {old})"
INCREMENT = "{old} + {new}"

TEXTS = ("text", "bytea", "jsonb")  # types whose values may be large
TIME = "timestamptz"


@dataclass(frozen=True, slots=True)
class Column:
    """A column to set. `how` may name the value given for another column, too: `{status}`."""

    name: str
    sql_type: str  # on PostgreSQL, which cannot tell it from a parameter
    how: str = REPLACE


@dataclass(frozen=True, slots=True)
class Guard:
    """A value that a row must hold to be changed."""

    name: str
    sql_type: str  # on PostgreSQL
    held: str  # SQL for what the row holds: `job` is the table


class BulkUpdate:
    """An UPDATE that can write itself for SQLite, PostgreSQL and MariaDB or MySQL.

    On the servers the values come from a second table, whose columns are called `given_…`: MariaDB
    would find `SET status` ambiguous if both tables had such a column.

    columns: what is set for each row.
    constants: what is set alike for all rows, as SQL by column.
    guards: which row is meant, and what it must hold.
    """

    def __init__(
        self, columns: Sequence[Column], constants: Mapping[str, str], guards: Sequence[Guard]
    ) -> None:
        self.types = {column.name: column.sql_type for column in columns}
        self.types |= {guard.name: guard.sql_type for guard in guards}
        self.texts = [name for name, sql_type in self.types.items() if sql_type in TEXTS]
        assignments = [f"{name} = {sql}" for name, sql in constants.items()]
        for column in columns:
            how = column.how.replace("{new}", f"{{{column.name}}}")
            assignments.append(f"{column.name} = {how.replace('{old}', f'job.{column.name}')}")
        conditions = [f"{guard.held} = {{{guard.name}}}" for guard in guards]
        self.template = (
            "UPDATE {table} AS job{join}"
            f" SET {', '.join(assignments)}"
            "{source}"
            f" WHERE {' AND '.join(conditions)}"
        )
        # The names of the values in the order of the statement, some more than once.
        self.uses = [
            name
            for _, name, _, _ in Formatter().parse(self.template)
            if name is not None and name in self.types
        ]

    def run(
        self, connection: BaseDatabaseWrapper, table: str, values: Mapping[str, Sequence[Any]]
    ) -> int:
        """Update rows and return how many were found.

        values: for each column and guard by its name, one entry per row. Times as fields hold them.
        """
        refuse_too_large(connection, zip(*(values[name] for name in self.texts), strict=True))
        times = {
            name: _as_stored(connection, values[name])
            for name, sql_type in self.types.items()
            if sql_type == TIME
        }
        batch = {**values, **times}
        if connection.vendor == "sqlite":
            return self._for_each_row(connection, table, batch)
        return self._for_all_rows(connection, table, batch)

    def _for_each_row(
        self, connection: BaseDatabaseWrapper, table: str, values: Mapping[str, Sequence[Any]]
    ) -> int:
        """Run a prepared statement for each row, which takes SQLite no longer than one for all."""
        placeholders = dict.fromkeys(self.types, "%s")
        statement = self._statement(connection, table, placeholders)
        rows = list(zip(*(values[name] for name in self.uses), strict=True))
        with connection.cursor() as cursor:
            cursor.executemany(statement, rows)
            return int(cursor.rowcount)

    def _for_all_rows(
        self, connection: BaseDatabaseWrapper, table: str, values: Mapping[str, Sequence[Any]]
    ) -> int:
        """Join the table with the rows in one statement, or in several if it would be too large.

        executemany sends a statement per row here and costs a server up to ten times as much.
        """
        count = len(next(iter(values.values())))
        if count > 1 and self._text_bytes(values) > SURELY_ACCEPTED // 2:
            half = count // 2
            first = {name: column[:half] for name, column in values.items()}
            second = {name: column[half:] for name, column in values.items()}
            return sum(self._for_all_rows(connection, table, some) for some in (first, second))
        # A value that all rows have in common is sent once.
        common = {name for name, column in values.items() if column.count(column[0]) == count}
        if connection.vendor == "postgresql":
            statement, parameters = self._with_arrays(connection, table, values, common)
        else:
            statement, parameters = self._with_derived_table(connection, table, values, common)
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return int(cursor.rowcount)

    def _with_arrays(
        self,
        connection: BaseDatabaseWrapper,
        table: str,
        values: Mapping[str, Sequence[Any]],
        common: set[str],
    ) -> tuple[str, list[Any]]:
        """Return statement and parameters for PostgreSQL, with one array per column."""
        selected = [
            f"%s::{sql_type} AS given_{name}"
            if name in common
            else f"unnest(%s::{sql_type}[]) AS given_{name}"
            for name, sql_type in self.types.items()
        ]
        parameters = [
            values[name][0] if name in common else _array(sql_type, values[name])
            for name, sql_type in self.types.items()
        ]
        references = {name: f"given_{name}" for name in self.types}
        source = f" FROM (SELECT {', '.join(selected)}) AS given"
        return self._statement(connection, table, references, source=source), parameters

    def _with_derived_table(
        self,
        connection: BaseDatabaseWrapper,
        table: str,
        values: Mapping[str, Sequence[Any]],
        common: set[str],
    ) -> tuple[str, list[Any]]:
        """Statement and parameters for MariaDB and MySQL, where the rows are a UNION of SELECTs."""
        own = [name for name in self.types if name not in common]
        # mysqlclient sends bytes as text, which without the cast would have to be valid text.
        placeholders = [
            "CAST(%s AS BINARY)" if self.types[name] == "bytea" else "%s" for name in own
        ]
        named = [f"{value} AS given_{name}" for value, name in zip(placeholders, own, strict=True)]
        rows = list(zip(*(values[name] for name in own), strict=True))
        others = f" UNION ALL SELECT {', '.join(placeholders)}" * (len(rows) - 1)
        join = f", (SELECT {', '.join(named)}{others}) AS given" if own else ""
        references = {name: "%s" if name in common else f"given_{name}" for name in self.types}
        parameters = [value for row in rows for value in row]
        parameters += [values[name][0] for name in self.uses if name in common]
        return self._statement(connection, table, references, join=join), parameters

    def _statement(
        self,
        connection: BaseDatabaseWrapper,
        table: str,
        references: Mapping[str, str],
        join: str = "",
        source: str = "",
    ) -> str:
        quoted = table_sql(connection, table)
        return self.template.format(table=quoted, join=join, source=source, **references)

    def _text_bytes(self, values: Mapping[str, Sequence[Any]]) -> int:
        return sum(len(value) for name in self.texts for value in values[name] if value)


def _as_stored(connection: BaseDatabaseWrapper, times: Sequence[Any]) -> list[Any]:
    """Return times as the database takes them."""
    if connection.vendor != "postgresql" and connection.timezone is UTC:
        # Columns and times are both in UTC then. Django's own way to the same text took a sixth of
        # the time of a runner on SQLite.
        return [time and str(time.replace(tzinfo=None)) for time in times]
    adapt = connection.ops.adapt_datetimefield_value
    return [time and adapt(time) for time in times]


def _array(sql_type: str, column: Iterable[Any]) -> Any:
    """Return an array for PostgreSQL: numbers and times as text.

    A driver takes a microsecond for each element of a list, which makes no difference for texts.
    """
    if sql_type in TEXTS:
        return list(column)
    return f"{{{','.join('NULL' if value is None else str(value) for value in column)}}}"
