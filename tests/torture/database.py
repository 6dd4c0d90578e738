"""The database of a torture run, with triggers that record each change of a job."""

import os
from typing import Any
from urllib.parse import urlsplit

URLS = {
    "postgres": ("PEASY_TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres", 5432),
    "mariadb": ("PEASY_TEST_MARIADB_URL", "mysql://root@127.0.0.1:3306/test", 3306),
}
UNKNOWN_THREAD = "1094"  # MariaDB's error number
JOBS, AUDIT = "peasy_jobs_peasyjobqueue", "torture_audit"
COLUMNS = ("status", "claims", "attempts", "crashes", "runner_id")
CHANGED = (
    "(OLD.status <> NEW.status OR OLD.claims <> NEW.claims"
    " OR COALESCE(OLD.runner_id, 0) <> COALESCE(NEW.runner_id, 0))"
)


def target(database: str) -> tuple[str, int]:
    name, url, port = URLS[database]
    parts = urlsplit(os.environ.get(name, url))
    return parts.hostname or "127.0.0.1", parts.port or port


def through(database: str, port: int) -> dict[str, str]:
    """Return the environment of a runner that reaches the server over this port."""
    name, url, _ = URLS[database]
    parts = urlsplit(os.environ.get(name, url))
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return {name: parts._replace(netloc=f"{login}127.0.0.1:{port}").geturl()}


def create(name: str) -> None:
    from django.core.management import call_command
    from django.db import connection

    options = {"postgresql": "ENCODING 'UTF8' TEMPLATE template0", "mysql": "CHARACTER SET utf8mb4"}
    if connection.vendor in options:
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} {options[connection.vendor]}")
    call_command("migrate", verbosity=0)
    _watch(connection)


def drop(name: str) -> None:
    from django.db import connection, connections

    connections.close_all()
    force = {"postgresql": "WITH (FORCE)", "mysql": ""}
    if connection.vendor in force:
        with connection._nodb_cursor() as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {name} {force[connection.vendor]}")


def _watch(connection: Any) -> None:
    vendor = connection.vendor
    key = {
        "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
        "postgresql": "BIGSERIAL PRIMARY KEY",
        "mysql": "BIGINT AUTO_INCREMENT PRIMARY KEY",
    }[vendor]
    now = {
        "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
        "postgresql": "extract(epoch FROM clock_timestamp())",
        "mysql": "UNIX_TIMESTAMP(SYSDATE(6))",
    }[vendor]
    types = ("CHAR(1)", "BIGINT", "BIGINT", "BIGINT", "BIGINT")
    names = [f"{when}_{column}" for when in ("old", "new") for column in COLUMNS]
    columns = [f"{name} {kind}" for name, kind in zip(names, types * 2, strict=True)]
    values = [f"{when}.{column}" for when in ("OLD", "NEW") for column in COLUMNS]
    insert = (
        f"INSERT INTO {AUDIT} (at, job, {', '.join(names)})"
        f" VALUES ({now}, NEW.id, {', '.join(values)});"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE {AUDIT} (id {key}, at DOUBLE PRECISION, job BIGINT,"
            f" {', '.join(columns)})"
        )
        for statement in _triggers(vendor, insert):
            cursor.execute(statement)


def _triggers(vendor: str, insert: str) -> list[str]:
    """Return the statements that create a trigger running `insert` for each changed job."""
    trigger = f"CREATE TRIGGER torture AFTER UPDATE ON {JOBS}"
    return {
        "sqlite": [f"{trigger} WHEN {CHANGED} BEGIN {insert} END"],
        "postgresql": [
            "CREATE FUNCTION torture() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN {insert} RETURN NULL; END $$",
            f"{trigger} FOR EACH ROW WHEN {CHANGED} EXECUTE FUNCTION torture()",
        ],
        "mysql": [f"{trigger} FOR EACH ROW BEGIN IF {CHANGED} THEN {insert} END IF; END"],
    }[vendor]


def audit() -> list[dict[str, Any]]:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(f"SELECT * FROM {AUDIT} ORDER BY id")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def end_connections(kept: set[int]) -> int:
    """End all connections to this database except those `kept` and this thread's.

    Return how many ended.
    """
    from django.db import connection

    kept = {*kept, own_connection()}
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND backend_type = 'client backend'"
            )
            command = "SELECT pg_terminate_backend(%s)"
        else:
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = DATABASE()")
            command = "KILL CONNECTION %s"
        numbers = {number for (number,) in cursor.fetchall()} - kept
        return sum(_end_connection(cursor, command, number) for number in numbers)


def _end_connection(cursor: Any, command: str, number: int) -> bool:
    """Return False if the connection had ended already."""
    try:
        cursor.execute(command, [number])
    except Exception as error:
        if UNKNOWN_THREAD not in str(error):
            raise
        return False
    return True


def own_connection() -> int:
    """Return the server's id of this thread's connection."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_backend_pid()"
            if connection.vendor == "postgresql"
            else "SELECT CONNECTION_ID()"
        )
        return cursor.fetchone()[0]
