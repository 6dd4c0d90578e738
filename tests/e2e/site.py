"""A site with jobs in every state, for the browser tests of the dashboard."""

from datetime import timedelta
from typing import Any

from django.db import connection
from playwright.sync_api import Locator, Page, expect

from peasy_jobs import payloads
from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now

TRACEBACK = (
    "Traceback (most recent call last):\n" + '  File "/srv/shop/jobs.py", line 7, in export\n' * 30
)
LONG_TITLE = (
    "a title that is rather long, as titles are when somebody writes a whole sentence " + "x" * 60
)
LONG_QUEUE_NAME = "a-queue-with-a-rather-long-name-that-somebody-made-up"


def add(title: str, status: str = ENQUEUED, **columns: Any) -> PeasyJobQueue:
    return PeasyJobQueue.objects.create(
        title=title, job_name="tests.jobs.nothing", status=status, **columns
    )


def change(job: PeasyJobQueue, **columns: Any) -> None:
    PeasyJobQueue.objects.filter(pk=job.pk).update(**columns)


def create_busy_site() -> dict[str, PeasyJobQueue]:
    """Create a job in every state, a live runner and a dead one."""
    now = database_now(connection)
    moment = as_field(now)
    runner = create_runner("web-1", lease_until=now.timestamp() + 1000)
    create_runner("web-2", lease_until=0, queues=["slow", "mail"])
    error = {
        "at": now.isoformat(),
        "where": "web-1",
        "exception": "shop.Broken",
        "message": "broken",
        "traceback": TRACEBACK,
    }
    finished = {"started": moment - timedelta(seconds=70), "completed": moment, "attempts": 1}
    running = {"started": moment, "runner_id": runner.pk}
    result = payload({"n": 1}, payloads.RESULT)
    arguments = payload({"password": "x", "rows": {"a": [1, 2]}}, payloads.KWARGS)
    progress = {"extra": {"progress": 40}, "status_msg": "40 of 100"}
    later = moment + timedelta(hours=1)
    return {
        "completed": add("deliver", COMPLETED, result_data=result, **finished),
        "failed": add(LONG_TITLE, FAILED, errors=[error, error], kwargs_data=arguments, **finished),
        "cancelled": add("stopped", CANCELLED, **finished),
        "stopping": add("stopping", CANCELLED, **running),
        "scheduled": add("later", SCHEDULED, run_after=later, errors=[error]),
        "ongoing": add("resize", ONGOING, **progress, **running),
        "without progress": add("count", ONGOING, **running),
        "enqueued": add("wait", queue_name=LONG_QUEUE_NAME),
    }


def create_runner(host: str, lease_until: float, **columns: Any) -> PeasyRunner:
    moment = as_field(database_now(connection))
    columns = {"queues": [], "worker_type": "process", "concurrency": 4, "pid": 4242, **columns}
    return PeasyRunner.objects.create(
        host=host, lease_until=lease_until, started=moment, heartbeat=moment, **columns
    )


def payload(value: Any, column: str) -> bytes:
    return payloads.dumps(
        value,
        column=column,
        job_name="tests.jobs.nothing",
        max_bytes=10**6,
        serializer="pickle",
    )


def row(page: Page, job: PeasyJobQueue) -> Locator:
    return page.get_by_role("row").filter(has=page.locator(f"#peasy-job-link-{job.pk}"))


class PageClock:
    """Control the clock of a page, which counts its own polls."""

    def __init__(self, page: Page) -> None:
        self.page = page
        page.add_init_script(
            "window.polls = 0; addEventListener('htmx:beforeSend', ({ target }) => {"
            " window.polls += target.matches('[data-peasy-poll]') })"
        )
        page.clock.install()

    def pause(self) -> None:
        # In the future, also when the call arrives.
        self.page.clock.pause_at(self.page.evaluate("Date.now() + 60_000"))

    def resume(self) -> None:
        self.page.clock.resume()

    def assert_polling(self) -> None:
        with self.page.expect_response("**/live/**"):
            self.page.clock.run_for(2000)
        self._wait_for_answer()

    def count_polls(self, seconds: int) -> int:
        """Return how many polls are sent in this time; at least one if the page polls at all."""
        self._wait_for_answer()
        before = self.page.evaluate("polls")
        self.page.clock.run_for(1000 * seconds)
        return self.page.evaluate("polls") - before

    def _wait_for_answer(self) -> None:
        # The next poll waits until the current one is answered.
        expect(self.page.locator(".htmx-request")).to_have_count(0)
