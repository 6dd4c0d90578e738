"""The site under test. Variations come from the environment, so that child processes share them."""

import json
import os
import tempfile
import uuid
from urllib.parse import unquote, urlsplit

TEST_DATABASE = os.environ.get("PEASY_TEST_DATABASE", "sqlite")
# In a process that a test has started: the name of that test's database
TEST_DB_NAME = os.environ.get("PEASY_TEST_DB_NAME")


def sqlite() -> dict:
    # The file is created when it is first opened: reading the settings, as mypy does, creates none.
    name = TEST_DB_NAME or os.path.join(
        tempfile.gettempdir(), f"peasy_jobs-{uuid.uuid4().hex}.sqlite3"
    )
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "OPTIONS": {
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
        },
        # A file, because other processes have to open it; Django would use memory.
        "TEST": {"NAME": name},
    }


def server(engine: str, url: str, options: dict, test: dict) -> dict:
    parts = urlsplit(url)
    return {
        "ENGINE": engine,
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "NAME": TEST_DB_NAME or unquote(parts.path.lstrip("/")),
        "OPTIONS": options,
        # Two runs of the suite may use one server at the same time.
        "TEST": {"NAME": f"test_peasy_jobs_{os.getpid()}", **test},
    }


def postgres() -> dict:
    url = os.environ.get("PEASY_TEST_POSTGRES_URL", "postgres://postgres@127.0.0.1:5432/postgres")
    # A cluster that was created without a UTF-8 locale has SQL_ASCII templates.
    return server(
        "django.db.backends.postgresql", url, {}, {"CHARSET": "UTF8", "TEMPLATE": "template0"}
    )


def mariadb() -> dict:
    driver = os.environ.get("PEASY_TEST_MARIADB_DRIVER", "pymysql")
    if driver == "pymysql":
        import pymysql

        pymysql.install_as_MySQLdb()
    elif driver != "mysqlclient":
        raise ValueError(
            f"PEASY_TEST_MARIADB_DRIVER is {driver!r}. Set it to pymysql or mysqlclient."
        )
    url = os.environ.get("PEASY_TEST_MARIADB_URL", "mysql://root@127.0.0.1:3306/test")
    options = {"charset": "utf8mb4", "isolation_level": "read committed"}
    return server("django.db.backends.mysql", url, options, {"CHARSET": "utf8mb4"})


choices = {"sqlite": sqlite, "postgres": postgres, "mariadb": mariadb}
if TEST_DATABASE not in choices:
    raise ValueError(
        f"PEASY_TEST_DATABASE is {TEST_DATABASE!r}. Set it to one of: {', '.join(choices)}."
    )
DATABASES = {"default": choices[TEST_DATABASE]()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

SECRET_KEY = (
    "for the tests only, but long enough for the deployment check that wants fifty characters"
)
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
STATIC_URL = "static/"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# Neither UTC nor the zone of any server, so that a wrong clock shows.
TIME_ZONE = os.environ.get("PEASY_TEST_TIME_ZONE", "America/New_York")
USE_TZ = os.environ.get("PEASY_TEST_USE_TZ", "1") == "1"

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_htmx",
    "peasy_jobs",
    "tests",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
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
            ],
        },
    },
]

globals().update(json.loads(os.environ.get("PEASY_TEST_SETTINGS", "{}")))
