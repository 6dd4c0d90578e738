"""Measure the memory of a runner after 20,000 and after 200,000 no-op jobs.

    python -m benchmarks.memory

Uses the settings of the tests and its own SQLite file. Prints the proportional set size (PSS) of
the runner with its workers, in MiB, and the ratio of the two.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.idle import pss

EARLY, LATE = 20_000, 200_000
SETTINGS = {
    "PEASY_MAX_COMPLETED": 1000,
    "PEASY_PRUNE_GRACE": 0,
    "LOGGING": {"version": 1, "loggers": {"peasy_jobs": {"level": "WARNING"}}},
}


def enqueue(count: int) -> None:
    from peasy_jobs.models import PeasyJobQueue

    rows = (PeasyJobQueue(title="nothing", job_name="tests.jobs.nothing") for _ in range(count))
    PeasyJobQueue.objects.bulk_create(rows, batch_size=1000)


def wait_until_run() -> None:
    from peasy_jobs.models import PeasyJobQueue

    while PeasyJobQueue.objects.filter(status__in="QO").exists():
        time.sleep(0.1)
    time.sleep(1)  # for pruning and the garbage collector


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "PEASY_TEST_DB_NAME": str(Path(directory, "db.sqlite3")),
            "PEASY_TEST_SETTINGS": json.dumps(SETTINGS),
        }
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        for worker_type in ("process", "thread"):
            runner = subprocess.Popen(
                [sys.executable, "-m", "django", "run_peasy", "--worker-type", worker_type]
            )
            enqueue(EARLY)
            wait_until_run()
            early = pss([runner.pid])
            started = time.monotonic()
            for _ in range(9):
                enqueue((LATE - EARLY) // 9)
                wait_until_run()
            seconds = time.monotonic() - started
            late = pss([runner.pid])
            print(
                f"{worker_type}: {early:.1f} MiB after {EARLY:,} jobs,"
                f" {late:.1f} MiB after {LATE:,} ({late / early:.2f} times),"
                f" with enqueueing {(LATE - EARLY) / seconds:,.0f} jobs/s",
                flush=True,
            )
            runner.send_signal(signal.SIGINT)
            runner.wait()


if __name__ == "__main__":
    main()
