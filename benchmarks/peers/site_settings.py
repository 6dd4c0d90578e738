"""The Django project of the systems that need one, with its database from the environment.

SQLite in WAL mode with synchronous NORMAL, servers as configured, persistent connections, logging
at WARNING.
"""

import json
import os
from urllib.parse import unquote, urlsplit

PARTS = urlsplit(os.environ["BENCH_URL"])
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": PARTS.path,
    "OPTIONS": {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        "transaction_mode": "IMMEDIATE",
        "timeout": 20,
    },
}
ENGINES = {"postgres": "postgresql", "mariadb": "mysql"}
SERVER = {
    "ENGINE": f"django.db.backends.{ENGINES.get(PARTS.scheme)}",
    "HOST": PARTS.hostname or "",
    "PORT": PARTS.port or "",
    "USER": unquote(PARTS.username or ""),
    "PASSWORD": unquote(PARTS.password or ""),
    "NAME": PARTS.path.lstrip("/"),
    "OPTIONS": {"charset": "utf8mb4", "isolation_level": "read committed"}
    if PARTS.scheme == "mariadb"
    else {},
    "CONN_MAX_AGE": None,
}
if PARTS.scheme == "mariadb":
    try:
        import MySQLdb  # noqa: F401
    except ImportError:
        import pymysql

        pymysql.install_as_MySQLdb()
DATABASES = {"default": SQLITE if PARTS.scheme == "sqlite" else SERVER}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = (
    "for measuring only, but long enough for the deployment check that wants fifty characters"
)
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

globals().update(json.loads(os.environ.get("BENCH_SETTINGS", "{}")))
INSTALLED_APPS += json.loads(os.environ["BENCH_APPS"])
