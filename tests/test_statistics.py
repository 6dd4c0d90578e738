"""What the runners count for the charts, and the charts."""

import re
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any
from xml.etree import ElementTree

import pytest
from django.conf import settings
from django.db import DataError, OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import translation

from peasy_jobs.conf import Conf
from peasy_jobs.models import PeasyJobQueue, PeasyMinute
from peasy_jobs.runner import maintenance
from peasy_jobs.runner.counters import DELETE_BATCH, KEPT_MINUTES, MAX_SECONDS, Counters
from peasy_jobs.runner.maintenance import COUNTERS_EVERY, Maintenance
from peasy_jobs.runner.recorder import Recorder
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, SCHEDULED
from peasy_jobs.store import durations, vendors
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.clock import Clock, as_field, database_now
from peasy_jobs.store.durations import BOUNDS, COLUMNS, EDGES, bucket
from peasy_jobs.store.values import Claim, JobUpdate
from peasy_jobs.web import charts, history
from peasy_jobs.web.history import Point, quantile
from tests import jobs
from tests.concurrent_processes import ConcurrentProcess, run_concurrently, second_connection
from tests.manual import ROOT
from tests.rows import row

pytestmark = pytest.mark.django_db(transaction=True)

ME = 1
NOW = datetime(2026, 6, 1, 12, 7, 30, tzinfo=UTC)
MINUTE = int(NOW.timestamp()) // 60
MINUTES = PeasyMinute._meta.db_table
SQLITE = settings.TEST_DATABASE == "sqlite"


@pytest.fixture
def counters() -> Counters:
    """Counts at `NOW`."""
    clock = Clock(connection)
    clock.offset = NOW.timestamp() - monotonic()
    return Counters(connection.alias, clock)


def at(seconds: float) -> datetime:
    return as_field(NOW + timedelta(seconds=seconds))


def since(seconds: float) -> float:
    """A moment as a claim has it."""
    moment = at(seconds)
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def ended(
    status: str = COMPLETED, waited: float | None = None, run: float | None = None
) -> JobUpdate:
    claim = Claim(1, 1, "", "", 1, 0, None, None, None if waited is None else since(-waited))
    times = {} if run is None else {"started": at(0), "completed": at(run)}
    return JobUpdate(claim=claim, status=status, **times)


def stored() -> dict[int, dict[str, int]]:
    """The rows, each with what is not 0."""
    rows = PeasyMinute.objects.order_by("minute").values("minute", *COLUMNS)
    return {
        columns.pop("minute"): {name: count for name, count in columns.items() if count}
        for columns in rows
    }


def longest() -> list[tuple[float | None, float | None]]:
    """The longest time waited and run of each row."""
    return list(PeasyMinute.objects.order_by("minute").values_list("waited_max", "run_max"))


def hour() -> list[Point]:
    return history.last_hour(database_now(connection))


# Buckets


@pytest.mark.parametrize(
    ("seconds", "place"),
    [
        (-5, 0),
        (0, 0),
        (0.00099, 0),
        (0.001, 1),
        (0.3, 4),
        (59, 7),
        (60, 8),
        (3599, 10),
        (3600, 11),
        (1e300, 11),
    ],
)
def test_a_duration_is_counted_in_the_bucket_that_contains_it(seconds, place):
    assert bucket(seconds) == place
    assert len(EDGES) == len(BOUNDS) + 2 == 13


def test_a_quantile_lies_in_the_bucket_in_which_the_share_of_jobs_is_reached():
    counts = [0] * 12
    assert quantile(counts, 0.5) is None
    counts[3] = 1
    assert quantile(counts, 0.5) == pytest.approx((0.02 * 0.1) ** 0.5), (
        "in the middle on a log scale"
    )
    counts[3], counts[8] = 90, 10
    assert 0.02 < quantile(counts, 0.5) < 0.1
    assert quantile(counts, 0.9) == pytest.approx(0.1)
    assert quantile(counts, 0.95) == pytest.approx((60 * 300) ** 0.5)
    assert quantile([0] * 11 + [7], 0.95) < EDGES[-1]


def test_a_quantile_is_never_above_the_longest_time():
    counts = [0, 0, 0, 90, 0, 0, 0, 10, 0, 0, 0, 0]
    assert quantile(counts, 0.9, 12.0) == pytest.approx(0.1), "another bucket"
    assert quantile(counts, 0.95, 12.0) == pytest.approx((10 * 12) ** 0.5)
    assert quantile(counts, 1.0, 12.0) == pytest.approx(12)
    assert quantile([0] * 11 + [7], 1.0, 36_000.0) == pytest.approx(36_000), (
        "the last bucket has no end of its own"
    )


@pytest.mark.parametrize("time", [-5.0, 0.0, 0.0001])
def test_a_longest_time_below_the_first_bucket_does_not_break_a_quantile(time):
    assert quantile([7] + [0] * 11, 0.95, time) == EDGES[0]


# Counting


def test_each_finished_job_is_counted_with_the_time_it_waited_and_ran(counters):
    counters.count(
        [
            ended(waited=0.3, run=3),
            ended(waited=0.3, run=30),
            ended(FAILED, 70, 0.0005),
            ended(CANCELLED),
        ]
    )
    counters.write()

    counts = {
        "completed": 2,
        "failed": 1,
        "cancelled": 1,
        "w4": 2,
        "w8": 1,
        "r6": 1,
        "r7": 1,
        "r0": 1,
    }
    assert stored() == {MINUTE: counts}
    assert longest() == [(pytest.approx(70), 30)]
    counters.write()
    assert stored() == {MINUTE: counts}, "once"


def test_jobs_that_all_take_the_lower_end_of_a_bucket_are_shown_with_that(counters):
    counters.count([ended(waited=60, run=10)] * 8)
    counters.write()

    assert history.last_hour(NOW)[-1][-4:] == history.last_day(NOW)[-1][-4:] == (60, 60, 10, 10)
    words = charts.seconds(history.last_hour(NOW))
    assert "half of the jobs waited up to 1 min, 95% up to 1 min." in words
    assert "half of the jobs ran up to 10 s, 95% up to 10 s." in words


def test_median_and_p95_distinguish_short_jobs_from_a_few_long_ones(counters):
    counters.count([*[ended(run=0.05)] * 90, *[ended(run=70)] * 10])
    counters.write()

    *_, median, p95 = history.last_hour(NOW)[-1]
    assert 0.02 < median < 0.1
    assert 60 < p95 < 70


def test_an_infinite_waiting_time_does_not_break_the_chart(counters):
    update = ended(run=1)
    since_ever = update.claim._replace(runnable_since=float("-inf"))
    counters.count([update._replace(claim=since_ever)])
    counters.write()

    assert longest() == [(MAX_SECONDS, 1)]
    assert " h" in charts.seconds(history.last_hour(NOW))


def test_the_longest_time_of_a_minute_never_decreases(counters):
    known = []
    for waited, run in [(None, None), (None, 3), (2, 1), (1, None), (1, 4), (-1, 0)]:
        counters.count([ended(waited=waited, run=run)])
        counters.count([ended(FAILED)])
        counters.write()
        known += longest()

    assert known == [(None, None), (None, 3), (2, 3), (2, 3), (2, 4), (2, 4)]
    counters.count([ended(waited=3, run=7), ended(waited=7, run=3)])
    counters.count([ended(waited=5, run=5)])
    counters.write()
    assert longest() == [(7, 7)]
    assert not counters.longest


@pytest.mark.parametrize("status", [ENQUEUED, SCHEDULED])
def test_a_job_that_runs_again_is_not_counted(counters, status):
    counters.count([ended(status, waited=1, run=1)])
    assert not counters.counts


def claimed(count: int, **columns: Any) -> list[Claim]:
    for _ in range(count):
        PeasyJobQueue.objects.create(
            **{"title": "a job", "job_name": "tests.jobs.nothing", **columns}
        )
    now = as_field(database_now(connection))
    return PeasyJobQueue.objects.claim(ClaimRequest(runner_id=ME, limit=count, now=now))


def test_a_job_cancelled_while_it_ran_is_counted_and_a_lost_one_is_not(counters):
    done, cancelled, lost = claimed(3)
    PeasyJobQueue.objects.filter(pk=cancelled.pk).update(status=CANCELLED)
    PeasyJobQueue.objects.filter(pk=lost.pk).update(runner=ME + 1)
    recorder = Recorder(connection, PeasyJobQueue.objects.all(), counters.clock, counters)
    for claim, status in ((done, COMPLETED), (cancelled, ENQUEUED), (lost, COMPLETED)):
        recorder.record(JobUpdate(claim=claim, status=status))
    recorder.write(ME, urgent=True)

    assert counters.counts == {MINUTE: {"completed": 1, "cancelled": 1}}


@pytest.mark.parametrize(
    ("columns", "seconds"),
    [
        ({}, 0),
        ({"run_after": -30}, -30),
        ({"run_after": -30, "attempts": 2}, -30),
        ({"attempts": 1}, None),  # put back by hand: since when is not known
        ({"crashes": 1, "attempts": 1, "run_after": -30}, None),
    ],
    ids=["new", "was due", "retried", "put back", "crashed"],
)
def test_a_claim_contains_the_time_since_which_the_job_has_waited(columns, seconds):
    now = database_now(connection)
    if "run_after" in columns:
        columns = {**columns, "run_after": as_field(now + timedelta(seconds=columns["run_after"]))}
    (claim,) = claimed(1, **columns)

    assert not claim.invalid_field()
    if seconds is None:
        assert claim.runnable_since is None
    else:
        moment = as_field(now)
        expected = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() + seconds
        assert claim.runnable_since == pytest.approx(expected, abs=2)


def test_a_job_that_was_given_back_has_waited_since_the_same_time(counters):
    (claim,) = claimed(1, run_after=at(-600))
    PeasyJobQueue.objects.finish(ME, [JobUpdate(claim=claim, status=ENQUEUED, attempts=-1)], at(0))
    (again,) = PeasyJobQueue.objects.claim(ClaimRequest(runner_id=ME, limit=1, now=at(0)))

    assert again.fencing_token == 2
    assert again.runnable_since == claim.runnable_since


def test_an_unreadable_time_does_not_prevent_a_claim():
    broken = {"sqlite": "'soon'", "postgres": "'infinity'", "mariadb": "'9999-12-31'"}[
        settings.TEST_DATABASE
    ]
    PeasyJobQueue.objects.create(title="a job", job_name="tests.jobs.nothing")
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {PeasyJobQueue._meta.db_table} SET created = {broken}")
    (claim,) = PeasyJobQueue.objects.claim(ClaimRequest(runner_id=ME, limit=1, now=at(0)))

    assert not claim.invalid_field()
    assert claim.runnable_since is None or claim.runnable_since > since(0)


# Writing


def test_counting_needs_no_query_and_writing_at_most_two_per_minute(counters):
    recorder = Recorder(connection, PeasyJobQueue.objects.all(), counters.clock, counters)

    def queries(count: int) -> int:
        for claim in claimed(count):
            recorder.record(
                JobUpdate(claim=claim, status=COMPLETED, started=at(0), completed=at(1))
            )
        with CaptureQueriesContext(connection) as captured:
            recorder.write(ME, urgent=True)
        assert not [query for query in captured if MINUTES in query["sql"]]
        return len(captured)

    assert queries(1) == queries(50) or not SQLITE, "pymysql sends executemany row by row"
    for expected in (3, 2):  # the first adds the row; the last of each looks for what is too old
        counters.count([ended()])
        with CaptureQueriesContext(connection) as captured:
            counters.write()
        assert len(captured) == expected
    assert stored()[MINUTE]["completed"] == 53


def test_runners_that_write_the_same_minutes_concurrently_lose_no_count():
    minutes = [MINUTE + n // 4 for n in range(200)]
    run_concurrently(
        *(
            ConcurrentProcess("write_statistics", minutes=minutes, seconds=seconds)
            for seconds in ([1, 2, 3, 2], [1, 5, 4, 1])
        )
    )

    assert stored() == {minute: {"completed": 8, "r0": 8} for minute in set(minutes)}
    assert longest() == [(None, 5)] * 50


def test_minutes_older_than_two_days_are_deleted_in_batches(counters):
    old = [PeasyMinute(minute=MINUTE - KEPT_MINUTES - n) for n in range(1, DELETE_BATCH + 11)]
    PeasyMinute.objects.bulk_create(
        [*old, PeasyMinute(minute=MINUTE - KEPT_MINUTES), PeasyMinute(minute=MINUTE)]
    )
    counters.write()
    assert PeasyMinute.objects.count() == 12
    counters.write()
    assert set(stored()) == {MINUTE - KEPT_MINUTES, MINUTE}


def test_statistics_are_written_about_every_ten_seconds(counters, monkeypatch):
    now = monotonic()
    monkeypatch.setattr(maintenance, "monotonic", lambda: now)
    house = Maintenance(PeasyJobQueue.objects.all(), counters.clock, Conf())
    written = []
    for seconds in (0, COUNTERS_EVERY - 1, 2, 1, 2 * COUNTERS_EVERY):
        now += seconds
        house.counters.count([ended()])
        house.run_due(backlog=False)
        written.append(sum(counts["completed"] for counts in stored().values()))

    assert written == [0, 0, 3, 3, 5]


def test_writing_statistics_does_not_wait_for_a_lock_and_loses_nothing(counters):
    PeasyMinute.objects.create(minute=MINUTE)
    vendors.configure_session(connection, 0.05)
    counters.count([ended()])
    with second_connection() as other:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute(f"UPDATE {MINUTES} SET failed = 7")
        counters.write()
        assert counters.counts == {MINUTE: {"completed": 1}}
        other.commit()
    counters.write()
    connection.close()

    assert stored() == {MINUTE: {"completed": 1, "failed": 7}}


def test_an_outage_while_writing_statistics_raises_and_loses_nothing(counters, monkeypatch):
    counters.count([ended(run=1)])
    with monkeypatch.context() as patch, pytest.raises(OperationalError):
        patch.setattr(
            counters, "_add", raises(OperationalError("server closed the connection unexpectedly"))
        )
        counters.write()
    counters.write()

    assert stored() == {MINUTE: {"completed": 1, "r5": 1}}
    assert longest() == [(None, 1)]


def test_statistics_that_cannot_be_stored_are_dropped_with_one_warning(
    counters, monkeypatch, caplog
):
    monkeypatch.setattr(counters, "_add", raises(DataError("integer out of range")))
    for _ in range(2):
        counters.count([ended(run=1)])
        counters.write()

    assert not counters.counts
    assert not counters.longest
    assert caplog.messages == ["Statistics could not be written: integer out of range"]


def raises(error: Exception) -> Callable[..., None]:
    def action(*args: Any) -> None:
        raise error

    return action


# Reading


def test_the_last_hour_has_one_point_per_minute():
    PeasyMinute.objects.create(minute=MINUTE - 60, completed=100)
    PeasyMinute.objects.create(minute=MINUTE - 59, completed=2, w3=2, r5=2)
    PeasyMinute.objects.create(minute=MINUTE, failed=1, cancelled=3)
    with CaptureQueriesContext(connection) as captured:
        points = history.last_hour(NOW)

    assert len(captured) == 1
    assert [(point.completed, point.failed, point.cancelled) for point in points] == [
        (2, 0, 0),
        *[(0,) * 3] * 58,
        (0, 1, 3),
    ]
    assert points[0].start == at(-59 * 60 - 30)
    assert points[-1].start == at(-30)
    assert [bucket(time) for time in points[0][-4:]] == [3, 3, 5, 5]
    assert points[-1][-4:] == (None,) * 4


def test_the_last_day_has_one_point_per_quarter_of_an_hour():
    for minute in (MINUTE - 24 * 60, MINUTE - 8, MINUTE - 7, MINUTE):  # it is seven minutes past
        PeasyMinute.objects.create(minute=minute, completed=1, r2=1)
    with CaptureQueriesContext(connection) as captured:
        points = history.last_day(NOW)

    assert len(captured) == 1
    assert [point.completed for point in points] == [*[0] * 94, 1, 2]
    assert points[0].start == at(-7 * 60 - 30 - 95 * 15 * 60)
    assert points[-1].start == at(-7 * 60 - 30)
    assert {point.minutes for point in points} == {15}


def test_a_point_for_several_minutes_shows_their_longest_time():
    for minute, run_max in (
        (MINUTE, 11),
        (MINUTE - 1, 12),
        (MINUTE - 2, None),
    ):  # in the last nothing ran
        PeasyMinute.objects.create(
            minute=minute, failed=1, r7=0 if run_max is None else 1, run_max=run_max
        )
    assert history.last_day(NOW)[-1].run_p95 == pytest.approx(10 * 1.2**0.95)


def test_without_a_longest_time_a_quantile_may_reach_the_end_of_the_last_bucket():
    PeasyMinute.objects.create(minute=MINUTE, completed=1, r7=1, run_max=12)
    PeasyMinute.objects.create(minute=MINUTE - 1, completed=1, r7=1)
    assert history.last_hour(NOW)[-2].run_p95 == pytest.approx(10 * 6**0.95)
    assert history.last_day(NOW)[-1].run_p95 == pytest.approx(10 * 6**0.95)


def test_a_longest_time_is_added_to_a_row_that_has_none(counters):
    PeasyMinute.objects.create(minute=MINUTE, completed=1, r3=1)
    counters.count([ended(run=3)])
    counters.write()
    assert longest() == [(None, 3)]


def test_a_runner_writes_its_statistics_when_it_ends(run_peasy, tmp_path):
    was_due = jobs.nothing.using(run_after=timedelta(seconds=-30))()
    all_of_them = [
        was_due,
        *(jobs.nothing() for _ in range(3)),
        jobs.boom(),
        jobs.call_off(str(tmp_path / "record")),
    ]
    assert run_peasy("--exit-on-empty").wait() == 0

    assert [row(job).status for job in all_of_them] == [COMPLETED] * 4 + [FAILED, CANCELLED]
    points = hour()
    counts = [
        sum(getattr(point, name) for point in points)
        for name in ("completed", "failed", "cancelled")
    ]
    assert counts == [4, 1, 1]
    total = Counter()
    for columns in stored().values():
        total.update(columns)
    assert (
        sum(total[name] for name in durations.RUN)
        == sum(total[name] for name in durations.WAITED)
        == 6
    )
    assert total["w7"] == 1, "it waited since it was due"
    assert sum(total[name] for name in durations.RUN[:6]) == 6, "each ran for less than two seconds"
    waited, run = zip(*longest(), strict=True)
    assert 30 <= max(waited) < 60
    assert 0 < max(run) < 2


# Charts

CHARTS = [charts.jobs_per_minute, charts.seconds]


def points(**columns: Any) -> list[Point]:
    """An hour with something in its 31st minute."""
    quiet = Point(as_field(NOW), 1, 0, 0, 0, None, None, None, None)
    made = [quiet._replace(start=at(60 * minute)) for minute in range(60)]
    made[30] = made[30]._replace(**columns)
    return made


BUSY = {
    **{"completed": 1200, "failed": 1, "cancelled": 2},
    **{"waited_median": 0.004, "waited_p95": 1.25, "run_median": 90.0, "run_p95": 5400.0},
}


def drawn(chart: Callable[..., str], points: list[Point]) -> tuple[ElementTree.Element, str]:
    markup = chart(points)
    caption, svg = ElementTree.fromstring(markup)
    assert caption.text == svg.find("title").text
    return svg, markup


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_has_a_name_and_no_inline_style(chart):
    svg, markup = drawn(chart, points(**BUSY))

    assert "style" not in markup
    assert svg.get("role") == "img"
    assert svg.get("viewBox") == "0 0 320 164"
    ids = [element.get("id") for element in svg.iter() if element.get("id")]
    assert svg.get("aria-labelledby").split() == ids[:2]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", markup)) <= set(ids)
    assert markup != chart([point._replace(minutes=15) for point in points(**BUSY)]), (
        "another id, another title"
    )


def test_the_charts_describe_in_words_what_they_show():
    jobs_chart, seconds_chart = (drawn(chart, points(**BUSY))[0] for chart in CHARTS)

    assert jobs_chart.find("title").text == "Jobs per minute in the last hour"
    time = charts._clock(points()[30])
    assert jobs_chart.find("desc").text == (
        "Jobs ended: 1,203 (1,200 completed, 1 failed, 2 cancelled)."
        f" The busiest time was {time}: 1,203 a minute."
    )
    assert seconds_chart.find("desc").text == (
        f"The longest times: At {time} half of the jobs waited up to 4 ms, 95% up to 1.2 s. "
        f"At {time} half of the jobs ran up to 1.5 min, 95% up to 1.5 h."
    )
    labels = [text.text for text in seconds_chart.iter("text")]
    assert labels[:8] == ["1 ms", "10 ms", "100 ms", "1 s", "10 s", "1 min", "10 min", "1 h"]


def test_one_failure_among_a_thousand_jobs_is_visible():
    svg, _ = drawn(charts.jobs_per_minute, points(**BUSY))
    bars = {
        bar.get("class"): bar
        for bar in svg.findall("rect")
        if bar.get("y") not in ("4", "16", "30")
    }
    assert float(bars["peasy-chart-bar peasy-chart-failed"].get("height")) >= 1.5


def test_an_isolated_point_is_long_enough_to_show_its_dashes():
    css = (ROOT / "peasy_jobs/static/peasy_jobs/charts.css").read_text()
    dash, gap = map(int, re.search(r"stroke-dasharray: (\d) (\d)", css).groups())
    svg, _ = drawn(charts.seconds, points(**BUSY))
    lengths = {
        path.get("d").partition("h")[2] for path in svg.findall("path") if "," in path.get("d")[2:]
    }
    assert {"14"} < lengths, "that is the legend"
    assert all(int(length) > dash + gap for length in lengths)


@pytest.mark.parametrize(
    ("chart", "text"),
    [
        (charts.jobs_per_minute, "Nothing ended in the last hour."),
        (charts.seconds, "No job ran to its end in the last hour."),
    ],
)
def test_a_chart_without_data_says_that_nothing_ended(chart, text):
    svg, _ = drawn(chart, points())
    assert [element.text for element in svg.iter("text")] == [text] == [svg.find("desc").text]


@pytest.mark.parametrize("chart", CHARTS)
def test_chart_coordinates_are_not_localised(chart):
    with translation.override("de"):
        svg, markup = drawn(chart, points(**BUSY))
    for element in svg.iter():
        for name in ("x", "y", "width", "height", "x1", "y1"):
            float(element.get(name, 0))
    assert "1.203" in markup or "1,2 s" in markup, "what is read is in the language of the page"


@pytest.mark.parametrize("value", [0.067, 0.5, 1, 2, 3, 7, 10, 99, 1203])
def test_the_value_axis_ends_at_a_readable_number(value):
    top = charts._round_up(value)
    assert value <= top <= 2.5 * value
    assert len(f"{top / 2:g}".strip("0.")) == 1
