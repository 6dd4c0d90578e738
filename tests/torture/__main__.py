"""`python -m tests.torture`: run the torture and print its table. Exit code 1 on a violation."""

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import uuid
from collections import Counter
from pathlib import Path
from random import Random
from time import monotonic, sleep
from typing import Any

SHOWN = 8  # violations of one kind
WAITING = 25  # the number of jobs that is kept waiting for a runner


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("--database", choices=("sqlite", "postgres", "mariadb"), default="sqlite")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--pause", type=float, default=0.9, help="Seconds between two faults, on average."
    )
    parser.add_argument(
        "--only", action="append", default=[], help="Only this kind of fault; may be given again."
    )
    parser.add_argument(
        "--remove-guards",
        default="",
        help="Guards to remove: fence, lease, flush (and late); a comma between.",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="Keep the directory with the record and the runners' logs.",
    )
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    directory = Path(tempfile.mkdtemp(prefix="peasy_torture_"))
    name = f"peasy_torture_{uuid.uuid4().hex[:12]}"
    os.environ.update(
        DJANGO_SETTINGS_MODULE="tests.settings",
        PEASY_TEST_DATABASE=options.database,
        PEASY_TEST_DB_NAME=str(directory / "db.sqlite3") if options.database == "sqlite" else name,
        PEASY_TEST_SETTINGS="{}",
    )
    import django

    django.setup()
    from tests.torture import database

    try:
        database.create(name)
        return torture(options, directory)
    finally:
        database.drop(name)
        if options.keep:
            print(f"Record and logs: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def torture(options: argparse.Namespace, directory: Path) -> int:
    from tests.torture.faults import FaultInjector
    from tests.torture.verification import Verification

    started = monotonic()
    rng = Random(f"faults {options.seed}")
    injector = FaultInjector(
        options.database, directory, rng, set(options.only), options.remove_guards
    )
    stream = Stream(Random(f"jobs {options.seed}"), injector)
    try:
        stream.start()
        strike_at = monotonic() + 3
        while monotonic() < started + options.seconds:
            injector.keep_going()
            if monotonic() >= strike_at:
                injector.strike()
                strike_at = monotonic() + options.pause * rng.uniform(0.4, 1.6)
            sleep(0.02)
        stream.over.set()
        while stream.is_alive():
            # A runner that was suspended while writing holds SQLite's lock until it is resumed.
            injector.keep_going()
            sleep(0.02)
        injector.end_faults()
        wait_for_the_rest(10 if options.remove_guards else 120, injector)
        injector.stop_all()
        verification = Verification(injector, stream.enqueued, stream.rolled_back)
        if stream.error:
            verification.violations.append(f"The enqueuing side failed: {stream.error!r}")
        verification.check()
    finally:
        stream.over.set()
        injector.clean_up()
    show(options, monotonic() - started, injector, stream, verification)
    return 1 if verification.violations else 0


class Stream(threading.Thread):
    """Enqueue jobs at random and cancel some, over a connection that no fault touches."""

    def __init__(self, rng: Random, injector: Any) -> None:
        super().__init__(daemon=True)
        self.rng, self.injector = rng, injector
        self.over = threading.Event()
        self.enqueued: dict[int, str] = {}
        self.rolled_back: set[str] = set()
        self.cancelled, self.error = 0, None

    def run(self) -> None:
        from django.db import connection

        from tests.torture import database

        try:
            if connection.vendor != "sqlite":
                self.injector.own_connections.add(database.own_connection())
            while not self.over.wait(0.1):
                self._fill_up()
                if self.rng.random() < 0.15:
                    self._cancel()
        except BaseException as error:
            self.error = error
            raise
        finally:
            connection.close()

    def _fill_up(self) -> None:
        from peasy_jobs.models import PeasyJobQueue

        waiting = PeasyJobQueue.objects.filter(status__in="QS").count()
        for _ in range(min(10, WAITING - waiting)):
            self._enqueue()

    def _enqueue(self) -> None:
        from django.db import transaction

        from tests.torture.jobs import STREAM

        _, job, queue_name, arguments = self.rng.choices(STREAM, [entry[0] for entry in STREAM])[0]
        token = f"{len(self.enqueued)}-{len(self.rolled_back)}"
        priority = self.rng.choice([0, 0, 0, 5])
        call = job.using(queue_name=queue_name, priority=priority)
        if self.rng.random() < 0.03:
            try:
                with transaction.atomic():
                    call(f"never {token}", **arguments(self.rng))
                    raise ZeroDivisionError
            except ZeroDivisionError:
                self.rolled_back.add(f"never {token}")
            return
        row = call(token, **arguments(self.rng))
        self.enqueued[row.pk] = token

    def _cancel(self) -> None:
        from peasy_jobs.peasy_jobs import peasy

        recent = list(self.enqueued)[-30:]
        if recent and peasy.cancel(self.rng.choice(recent)):
            self.cancelled += 1


def wait_for_the_rest(seconds: float, injector: Any) -> None:
    from django.db.models import Q

    from peasy_jobs.models import PeasyJobQueue, PeasyRunner

    deadline = monotonic() + seconds
    unfinished = PeasyJobQueue.objects.filter(
        Q(status__in="QSO") | Q(runner__isnull=False) | Q(completed=None)
    )
    while monotonic() < deadline:
        injector.keep_going()
        if not unfinished.exists() and PeasyRunner.objects.count() == len(injector.slots):
            return
        sleep(0.1)
    left = list(unfinished.values_list("pk", "status", "runner", "title", "completed")[:20])
    runners = list(PeasyRunner.objects.values_list("pk", "pid"))
    injector.violations.append(f"Unfinished after {seconds} s. Jobs: {left}. Runners: {runners}.")


def show(
    options: argparse.Namespace, seconds: float, injector: Any, stream: Stream, verification: Any
) -> None:
    from tests.torture.faults import KILLS

    faults = injector.table()
    how_long = f"{options.seconds:g} s of faults ({seconds:.0f} s in all)"
    print(f"Torture run: {options.database}, {how_long}, seed {options.seed}")
    if options.remove_guards:
        print(f"Guards removed: {options.remove_guards}")
    print(f"\n{'fault':40}{'times':>8}{'hit a running job':>20}")
    for kind, count, hits in faults:
        print(f"{kind:40}{count:>8}{hits:>20}")
    for label, some in (("all", faults), ("kills", [row for row in faults if row[0] in KILLS])):
        print(f"{label:40}{sum(row[1] for row in some):>8}{sum(row[2] for row in some):>20}")
    print()
    for label, count in job_counts(injector, stream, verification):
        print(f"{label:60}{count:>8}")
    shown: Counter[str] = Counter()
    for violation in verification.violations:
        sort = re.sub(r"[\d.]+", "", violation)[:40]
        shown[sort] += 1
        if shown[sort] <= SHOWN:
            print(f"\nVIOLATION: {violation}")
    sys.stdout.flush()


def job_counts(injector: Any, stream: Stream, verification: Any) -> list[tuple[str, int]]:
    return [
        ("jobs committed and verified", verification.counts["jobs"]),
        *((f"  {name}", count) for name, count in sorted(verification.outcomes.items())),
        ("starts of jobs", verification.counts["starts"]),
        ("runs again", verification.counts["runs again"]),
        ("given back uncharged", verification.counts["given back"]),
        ("crashes charged", verification.counts["crashes charged"]),
        ("cancelled in time", stream.cancelled),
        ("enqueued by jobs", len(verification.record.enqueued)),
        ("enqueued and rolled back, none ran", len(stream.rolled_back)),
        ("runners started", len(injector.commands)),
        *(
            (name, count)
            for name, count in sorted(verification.counts.items())
            if name.startswith("overlaps")
        ),
        ("lost", verification.counts["lost"]),
        ("violations", len(verification.violations)),
    ]


if __name__ == "__main__":
    sys.exit(main())
