"""Create a new database for each measurement, and drop it afterwards."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

URLS = {
    "postgres": os.environ.get(
        "PEASY_TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres"
    ),
    "mariadb": os.environ.get("PEASY_TEST_MARIADB_URL", "mariadb://root@127.0.0.1:3306/test"),
}
NAMES = {"sqlite": "SQLite", "postgres": "PostgreSQL", "mariadb": "MariaDB", "redis": "Redis"}


@contextlib.contextmanager
def fresh(kind: str, directory: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite://{directory / f'{uuid.uuid4().hex}.sqlite3'}"
        return
    if kind == "redis":
        with _redis(directory) as port:
            yield f"redis://127.0.0.1:{port}/0"
        return
    name = f"peasy_bench_{uuid.uuid4().hex[:12]}"
    options = {
        "postgres": "ENCODING 'UTF8' TEMPLATE template0",
        "mariadb": "CHARACTER SET utf8mb4",
    }[kind]
    execute(kind, f"CREATE DATABASE {name} {options}")
    try:
        yield urlsplit(URLS[kind])._replace(scheme=kind, path=f"/{name}").geturl()
    finally:
        execute(
            kind, f"DROP DATABASE IF EXISTS {name}{' WITH (FORCE)' if kind == 'postgres' else ''}"
        )


def analyze(kind: str, url: str) -> None:
    """Update PostgreSQL's statistics, on which plans depend, as it does itself within a minute."""
    if kind == "postgres":
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE")


def execute(kind: str, statement: str) -> list[Any]:
    """Return the server's answer to a statement, over a separate connection."""
    if kind == "postgres":
        import psycopg

        with psycopg.connect(URLS[kind], autocommit=True, connect_timeout=5) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []
    import pymysql

    parts = urlsplit(URLS[kind])
    login = {"user": parts.username, "password": parts.password or "", "port": parts.port or 3306}
    with (
        pymysql.connect(host=parts.hostname, connect_timeout=5, **login) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(statement)
        return list(cursor.fetchall())


@contextlib.contextmanager
def _redis(directory: Path) -> Iterator[int]:
    """Start a server with the default configuration: snapshots only, so it is less durable."""
    if not shutil.which("redis-server"):
        raise RuntimeError("redis-server was not found")
    port = free_port()
    own = directory / f"redis-{port}"
    own.mkdir()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(own)],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.01)
        yield port
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def version(kind: str) -> str:
    """Return the version, or why the database cannot be used."""
    try:
        if kind == "sqlite":
            import sqlite3

            return sqlite3.sqlite_version
        if kind == "redis":
            answer = subprocess.run(
                ["redis-server", "--version"], capture_output=True, text=True, check=True
            ).stdout
            return answer.split("v=")[1].split()[0]
        statement = {"postgres": "SHOW server_version", "mariadb": "SELECT VERSION()"}[kind]
        return str(execute(kind, statement)[0][0]).split()[0]
    except Exception as error:
        return f"cannot be used: {str(error).strip() or type(error).__name__}"
