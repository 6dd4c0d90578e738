"""What is imported when: by the app, by whoever enqueues, and by the fork server."""

import os
import subprocess
import sys

from tests.processes import REPOSITORY

SITE = """
import sys
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
)
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from peasy_jobs.models import PeasyJobQueue
from tests.jobs import echo
args = PeasyJobQueue.objects.get(pk=echo(1).pk).args
print(args, [name for name in sys.modules if name.startswith("django_htmx")])
"""


def test_the_app_may_come_before_auth_and_enqueues_without_django_htmx() -> None:
    code = SITE.format(apps=["peasy_jobs", "django.contrib.contenttypes", "django.contrib.auth"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "(1,) []\n"), done.stderr


FORK_SERVER = """
import sys
from peasy_jobs.workers import forkserver
forkserver._load_project(0)
loaded = set(sys.modules)
from peasy_jobs.workers import workerprocess
print(sorted(set(sys.modules) - loaded))
"""


def test_the_fork_server_has_imported_all_that_a_worker_runs() -> None:
    # Or each worker takes as long as the import, and after an upgrade runs other code than its
    # runner.
    done = subprocess.run(
        [sys.executable, "-c", FORK_SERVER],
        cwd=REPOSITORY,
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
