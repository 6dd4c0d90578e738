"""The dashboard without a browser: access, lists, actions, masking, and cost."""

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.http import HttpRequest
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.functional import Promise
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from peasy_jobs import conf, payloads, statuses
from peasy_jobs.models import PeasyJobQueue, PeasyMinute, PeasyRunner
from peasy_jobs.statuses import CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import actions, formatting, listing, snapshot
from peasy_jobs.web.filters import Filters
from tests.conftest import user
from tests.manual import ROOT

pytestmark = pytest.mark.django_db

XSS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></textarea><svg/onload=alert(1)>",
    "{{ request }}{% debug %}",
    "javascript:alert(1)",
    "<!--<script>",
]
odd = st.text(max_size=30) | st.sampled_from(
    ["-1", "²", "9" * 19, "9" * 40, "\0", "%00", "1e3", "\ud800", "enqueued"]
)
HOSTILE = re.compile(r"<(script>|img|svg|!--)|'? onmouseover='", re.IGNORECASE)


def add(title: str = "a job", status: str = ENQUEUED, **columns: Any) -> PeasyJobQueue:
    now = as_field(database_now(connection))
    if status in (COMPLETED, FAILED, CANCELLED):
        columns = {"started": now, "completed": now, **columns}
    for name, kind in (
        ("args", payloads.ARGS),
        ("kwargs", payloads.KWARGS),
        ("result", payloads.RESULT),
    ):
        if name in columns:
            how = {
                "job_name": "shop.jobs.export",
                "column": kind,
                "max_bytes": 10**7,
                "serializer": "pickle",
            }
            columns[f"{name}_data"] = payloads.dumps(columns.pop(name), **how)
    columns.setdefault("job_name", "shop.jobs.export")
    return PeasyJobQueue.objects.create(title=title, status=status, **columns)


def add_runner(host: str = "web-1", lease: float = 60, **columns: Any) -> PeasyRunner:
    now = database_now(connection)
    moment = as_field(now)
    columns = {"queues": [], "worker_type": "process", "concurrency": 2, "pid": 4242, **columns}
    return PeasyRunner.objects.create(
        host=host, started=moment, heartbeat=moment, lease_until=now.timestamp() + lease, **columns
    )


def titles(response: Any) -> list[str]:
    return [row.job.title for row in response.context["rows"]]


def counts(response: Any) -> dict[str, str]:
    return {tab.word: tab.total for tab in response.context["tabs"] if tab.word}


# Access


def test_strangers_are_redirected_to_login_and_fragments_reload_the_page(client: Client) -> None:
    job = add()
    for url in ("/peasy/", "/peasy/?status=failed", f"/peasy/jobs/{job.pk}/", "/peasy/jobs/999/"):
        response = client.get(url)
        assert response.status_code == 302
        assert response["Location"].partition("?")[0] == "/accounts/login/"
    for url in ("/peasy/live/", f"/peasy/jobs/{job.pk}/live/", "/peasy/jobs/999/live/"):
        response = client.get(url)
        assert response.status_code == 401
        assert response["HX-Refresh"] == "true"
        assert response.content == b""


@pytest.mark.parametrize("person", [((), True), (("change", "delete"), True), (("view",), False)])
def test_a_user_without_permission_gets_403(client: Client, person: Any) -> None:
    client.force_login(user(*person[0], staff=person[1]))
    job = add()
    for url in ("/peasy/", f"/peasy/jobs/{job.pk}/", "/peasy/live/", f"/peasy/jobs/{job.pk}/live/"):
        assert client.get(url).status_code == 403
    assert (
        client.post("/peasy/jobs/actions/", {"action": "cancel", "pk": job.pk}).status_code == 403
    )


@pytest.mark.parametrize("granted", [(), ("change",), ("delete",), ("change", "delete")])
def test_each_action_and_its_button_need_a_permission(client: Client, granted: Any) -> None:
    client.force_login(user("view", *granted))
    allowed = {
        "cancel": "change" in granted,
        "retry": "change" in granted,
        "delete": "delete" in granted,
    }
    waiting, failed = add(), add(status=FAILED)
    page = client.get("/peasy/").content.decode()
    assert {action: f'value="{action}"' in page for action in actions.ACTIONS} == allowed
    assert ('type="checkbox" name="pk"' in page) == any(allowed.values())
    detail = "".join(
        client.get(f"/peasy/jobs/{job.pk}/").content.decode() for job in (waiting, failed)
    )
    assert {action: f'value="{action}"' in detail for action in actions.ACTIONS} == allowed
    for action, job in (("cancel", waiting), ("retry", failed), ("delete", failed)):
        response = client.post(
            "/peasy/jobs/actions/", {"action": action, "pk": job.pk, "confirmed": "1"}
        )
        expected = 302 if allowed[action] else 403
        assert response.status_code == expected, action


def operators_only(request: HttpRequest, action: str) -> bool:
    return request.GET.get("who") == "operator" and action != "delete"


def test_peasy_dashboard_permission_decides_instead(client: Client, settings: Any) -> None:
    settings.PEASY_DASHBOARD_PERMISSION = f"{__name__}.operators_only"
    add()
    page = client.get("/peasy/?who=operator")
    assert page.status_code == 200
    assert 'value="cancel"' in page.content.decode()
    assert 'value="delete"' not in page.content.decode()
    assert client.get("/peasy/").status_code == 302
    client.force_login(User.objects.create_superuser("root"))
    assert client.get("/peasy/").status_code == 403


def test_an_expired_session_reloads_the_page_with_login_required_middleware(
    client: Client, settings: Any
) -> None:
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    response = client.get("/peasy/live/")
    assert response.status_code == 401, "or the login page is put into the page"
    assert response["HX-Refresh"] == "true", "or the login page is put into the page"
    assert client.get("/peasy/")["Location"] == "/accounts/login/?next=/peasy/"
    assert client.post("/peasy/jobs/actions/")["Location"] == "/accounts/login/?next="
    settings.PEASY_DASHBOARD_PERMISSION = f"{__name__}.operators_only"
    assert client.get("/peasy/?who=operator").status_code == 200


def test_an_action_needs_post_and_a_csrf_token(staff: Client, settings: Any) -> None:
    job = add()
    assert staff.get("/peasy/jobs/actions/").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user("view", "change"))
    sent = {"action": "cancel", "pk": job.pk}
    assert strict.post("/peasy/jobs/actions/", sent).status_code == 403
    job.refresh_from_db()
    assert job.status == ENQUEUED
    token = re.search(
        r'name="csrfmiddlewaretoken" value="(\w+)"', strict.get("/peasy/").content.decode()
    )
    assert token is not None
    assert (
        strict.post("/peasy/jobs/actions/", {**sent, "csrfmiddlewaretoken": token[1]}).status_code
        == 302
    )
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    bare = Client(enforce_csrf_checks=True)
    bare.force_login(user("view", "change"))
    assert bare.post("/peasy/jobs/actions/", sent).status_code == 403, (
        "whatever the site has installed"
    )


# Actions


def test_actions_change_the_selected_jobs_and_report_the_result(staff: Client) -> None:
    waiting, failed, running = (
        add(),
        add(status=FAILED),
        add(status=ONGOING, runner_id=add_runner().pk),
    )
    pks = [waiting.pk, failed.pk, running.pk]
    page = staff.post("/peasy/jobs/actions/", {"action": "cancel", "pk": pks}, follow=True)
    assert [str(message) for message in page.context["messages"]] == [
        "2 jobs cancelled.",
        "1 job had already finished.",
    ]
    assert dict(PeasyJobQueue.objects.values_list("pk", "status")) == {
        waiting.pk: CANCELLED,
        failed.pk: FAILED,
        running.pk: CANCELLED,
    }
    page = staff.post("/peasy/jobs/actions/", {"action": "retry", "pk": pks}, follow=True)
    assert "2 jobs enqueued again." in page.content.decode()
    assert "1 job was not retried" in page.content.decode()
    asked = staff.post(
        "/peasy/jobs/actions/", {"action": "delete", "pk": pks, "next": "/peasy/?q=job"}
    )
    assert asked.status_code == 200
    assert PeasyJobQueue.objects.count() == 3
    assert "Delete these 3 jobs?" in asked.content.decode()
    sent = {"action": "delete", "pk": pks, "confirmed": "1", "next": "/peasy/?q=job"}
    done = staff.post("/peasy/jobs/actions/", sent)
    assert done.status_code == 302
    assert done["Location"] == "/peasy/?q=job"
    assert list(PeasyJobQueue.objects.all()) == [running]


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "javascript:alert(1)",
        "x\r\ny: z",
    ],
)
def test_an_action_never_redirects_to_another_site(staff: Client, address: str) -> None:
    for sent in ({"pk": add().pk}, {}):
        response = staff.post("/peasy/jobs/actions/", {"action": "cancel", "next": address, **sent})
        assert response.status_code == 302
        assert response["Location"] == "/peasy/"


def test_an_action_does_not_redirect_to_a_url_that_is_too_long(staff: Client) -> None:
    job = add()
    sent = {"action": "cancel", "pk": job.pk, "next": f"/peasy/?q={'%F0%9F%92%A9' * 200}"}
    assert staff.post("/peasy/jobs/actions/", sent)["Location"] == "/peasy/"


@given(
    st.dictionaries(st.sampled_from(["action", "pk", "next", "confirmed", "x"]), odd, max_size=5),
    st.booleans(),
)
@example({"action": "delete", "pk": "1", "next": "/\r\n[x"}, True)
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_form_data_causes_an_error(staff: Client, form: dict[str, str], known: bool) -> None:
    sent = {name: text.encode("utf-8", "replace") for name, text in form.items()}
    sent |= {"action": b"delete"} if known else {}
    assert staff.post("/peasy/jobs/actions/", sent).status_code in (200, 302, 400)


def test_invalid_actions_and_selections_are_refused(staff: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 5000
    job = add()
    post = lambda **sent: staff.post("/peasy/jobs/actions/", sent, follow=True)  # noqa: E731
    assert post(action="explode", pk=job.pk).status_code == 400
    assert post(pk=job.pk).status_code == 400
    assert "No job is selected." in post(action="cancel").content.decode()
    assert (
        "No job is selected."
        in post(action="cancel", pk=["x", "-1", "²", str(2**64), ""]).content.decode()
    )
    assert (
        "Select at most 1,000 jobs."
        in post(action="cancel", pk=list(range(1, 1002))).content.decode()
    )
    job.refresh_from_db()
    assert job.status == ENQUEUED


# The list


def test_the_list_is_newest_first_and_pages_by_key(staff: Client) -> None:
    PeasyJobQueue.objects.bulk_create(
        [PeasyJobQueue(title=f"{n}", job_name="x.y") for n in range(120)]
    )
    seen, url = [], "/peasy/?status=enqueued"
    while url:
        page = staff.get(url)
        seen.append(titles(page))
        assert len(page.context["rows"]) <= listing.PAGE_SIZE
        url = page.context["older"] and "/peasy/" + page.context["older"]
    assert [title for some in seen for title in some] == [f"{n}" for n in reversed(range(120))]
    assert [len(some) for some in seen] == [50, 50, 20]
    back = staff.get("/peasy/" + page.context["newer"])
    assert titles(back) == seen[1]
    first = staff.get("/peasy/" + back.context["newer"])
    assert titles(first) == seen[0]
    assert not first.context["newer"]
    assert titles(staff.get("/peasy/" + first.context["newest"])) == seen[0]


def test_an_empty_page_links_to_the_newest_jobs(staff: Client) -> None:
    job = add()
    for query in (
        "?before=0",
        f"?before={job.pk}",
        f"?after={job.pk}",
    ):  # such as the last page, when it was pruned
        page = staff.get(f"/peasy/{query}")
        assert "No jobs yet." not in page.content.decode()
        assert titles(staff.get("/peasy/" + page.context["newest"])) == ["a job"]


def test_every_status_has_a_tab_with_its_count_and_its_jobs(staff: Client) -> None:
    runner = add_runner()
    later = as_field(timezone.make_aware(timezone.datetime(2090, 1, 1)))
    add("Q"), add("Q"), add("S", SCHEDULED, run_after=later), add("O", ONGOING, runner_id=runner.pk)
    add("C", COMPLETED), add("F", FAILED), add("X", CANCELLED), add("X", CANCELLED, completed=None)
    newest = PeasyJobQueue.objects.latest("pk").pk
    expected = dict(zip(statuses.BY_WORD, ("Q", "S", "O", "C", "F", "X"), strict=True))
    assert counts(staff.get("/peasy/")) == {
        "enqueued": "2",
        "scheduled": "1",
        "ongoing": "1",
        "completed": "1",
        "failed": "1",
        "cancelled": "2",
    }
    for word, letter in expected.items():
        page = staff.get(f"/peasy/?status={word}")
        assert set(titles(page)) == {letter}
        assert f'data-status="{word}" aria-current="page"' in page.content.decode()
        assert set(titles(staff.get(f"/peasy/?status={word}&before={newest + 1}"))) == {letter}


def test_counts_stop_at_ten_thousand(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "COUNT_LIMIT", 2)
    for _ in range(4):
        add(status=FAILED)
    add(), add()
    page = staff.get("/peasy/?status=failed")
    assert counts(page)["failed"] == "2+"
    assert counts(page)["enqueued"] == "2"
    assert len(titles(page)) == 4


def test_search_and_queue_filter_the_list_and_its_counts(staff: Client) -> None:
    letter = add("Send a letter", queue_name="post")
    add("other", FAILED, job_name="shop.letters.print_it")
    add("third", status_msg="100% of LETTERS")
    add("fourth")
    assert titles(staff.get("/peasy/?q=letter")) == ["third", "other", "Send a letter"]
    assert counts(staff.get("/peasy/?q=letter"))["failed"] == "1"
    assert titles(staff.get("/peasy/?q=letter&status=failed")) == ["other"]
    assert titles(staff.get("/peasy/?q=100%25")) == ["third"]
    assert titles(staff.get(f"/peasy/?q={letter.pk}")) == ["Send a letter"]
    assert titles(staff.get("/peasy/?queue=post")) == ["Send a letter"]
    page = staff.get("/peasy/?queue=post&q=nothing")
    assert titles(page) == []
    assert "No job matches." in page.content.decode()
    assert page.context["without_q"] == "?queue=post"
    assert page.context["without_queue"] == "?q=nothing"


def test_a_search_covers_only_the_newest_jobs(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, *new = [add("wanted") for _ in range(4)]
    monkeypatch.setattr(listing, "WINDOW", 3)
    assert [row.job for row in staff.get("/peasy/?q=wanted").context["rows"]] == new[::-1]
    assert titles(staff.get(f"/peasy/?q={old.pk}")) == ["wanted"], "a number is found however old"
    add(f"parcel {10**20}")
    assert titles(staff.get(f"/peasy/?q={10**20}")) == [f"parcel {10**20}"], (
        "what no key can be is text"
    )


@pytest.mark.skipif(
    connection.vendor != "mysql", reason="only MariaDB and MySQL count what a session has read"
)
@pytest.mark.parametrize(
    "query", [{"q": "wanted"}, {"queue": "default"}, {"q": "wanted", "status": "failed"}], ids=str
)
def test_a_search_reads_only_the_newest_rows(
    query: dict[str, str], db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    PeasyJobQueue.objects.bulk_create(
        [PeasyJobQueue(title="old", job_name="shop.jobs.old") for _ in range(3000)]
    )
    monkeypatch.setattr(listing, "WINDOW", 100)

    def rows_read() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            return sum(int(count) for _, count in cursor.fetchall())

    before = rows_read()
    snapshot.take(Filters(**query))
    assert 100 < rows_read() - before < 2000


@given(
    st.dictionaries(
        st.sampled_from(["status", "queue", "q", "before", "after", "v", "f", "x"]), odd, max_size=6
    )
)
@example({"q": str(2**63)})
@example({"before": "0", "after": "0", "q": "0", "queue": "\0"})
@example({"v": "d", "f": "99999", "status": "failed"})
@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_query_string_causes_an_error(staff: Client, query: dict[str, str]) -> None:
    sent = {name: text.encode("utf-8", "replace") for name, text in query.items()}
    assert staff.get("/peasy/", sent).status_code == 200
    assert staff.get("/peasy/live/", sent).status_code in (200, 204)


def test_primary_keys_out_of_range_are_not_found(staff: Client) -> None:
    for pk in (0, 2**63, 10**30):
        assert staff.get(f"/peasy/jobs/{pk}/").status_code == 404
        assert staff.get(f"/peasy/jobs/{pk}/live/").status_code == 404


# Cost


def queries(client: Client, url: str) -> tuple[int, Any]:
    with CaptureQueriesContext(connection) as captured:
        response = client.get(url)
    return sum(
        "peasy_jobs_" in query["sql"] or "'now'" in query["sql"]
        for query in captured.captured_queries
    ), response


@pytest.mark.parametrize(
    "query", ["?", "?status=failed&", "?q=job&", "?queue=default&before=999999&"]
)
def test_a_page_takes_few_queries_and_an_unchanged_poll_one(staff: Client, query: str) -> None:
    for n in range(60):
        add(status=FAILED if n % 2 else ENQUEUED)
    add_runner("dead", lease=-1)
    for n in range(3):
        add(status=ONGOING, runner_id=add_runner(f"web-{n}", queues=["other"]).pk)
    count, page = queries(staff, f"/peasy/{query}")
    assert count < 6
    unchanged = f"/peasy/live/{query}v={page.context['version']}"
    count, response = queries(staff, unchanged)
    assert count == 1
    assert response.status_code == 204
    add(status=FAILED)
    count, response = queries(staff, unchanged)
    assert count < 6
    assert response.status_code == 200


def test_the_list_reads_no_arguments_and_results(staff: Client) -> None:
    add(args=["x" * 10000], result=1)
    with CaptureQueriesContext(connection) as captured:
        staff.get("/peasy/")
    assert not [
        query
        for query in captured.captured_queries
        if "args_data" in query["sql"] or "result_data" in query["sql"]
    ]


def test_every_visible_change_changes_the_version(staff: Client) -> None:
    runner = add_runner()
    job = add(status=ONGOING, runner_id=runner.pk)
    row = PeasyJobQueue.objects.filter(pk=job.pk)
    version = staff.get("/peasy/").context["version"]
    detail = staff.get(f"/peasy/jobs/{job.pk}/").context["version"]
    for change in (
        {"status_msg": "x"},
        {"extra": {"progress": 3}},
        {"title": "y"},
        {"attempts": 2},
    ):
        row.update(**change)
        page = staff.get("/peasy/live/", {"v": version})
        assert page.status_code == 200, change
        assert staff.get(f"/peasy/jobs/{job.pk}/live/", {"v": detail}).status_code == 200, change
        version = page.context["version"]
        detail = staff.get(f"/peasy/jobs/{job.pk}/").context["version"]
        assert staff.get(f"/peasy/jobs/{job.pk}/live/", {"v": detail}).status_code == 204
    PeasyRunner.objects.update(heartbeat=runner.heartbeat, lease_until=0)
    assert staff.get("/peasy/live/", {"v": version}).status_code == 200, "a runner has died"


def test_a_poll_announces_new_failures(staff: Client) -> None:
    add(status=FAILED), add(status=FAILED), add(status=FAILED)
    assert "2 new failures" in staff.get("/peasy/live/?f=1").content.decode()
    assert "new failure" not in staff.get("/peasy/live/?f=3").content.decode()


# Runners


def test_runners_are_shown_with_their_jobs(staff: Client) -> None:
    runner, dead = add_runner("web-1"), add_runner("web-2", lease=-1)
    started = as_field(database_now(connection)) - timedelta(seconds=65)
    add("resize", ONGOING, runner_id=runner.pk, started=started)
    add("claimed ahead", ONGOING, runner_id=runner.pk)
    page = staff.get("/peasy/")
    alive, gone = page.context["runners"]
    assert alive.runner == runner
    assert alive.alive
    assert alive.not_started == 1
    assert [(doing.title, doing.duration) for doing in alive.running_jobs] == [
        ("resize", "1 min 5 s")
    ]
    assert gone.runner == dead
    assert not gone.alive
    text = page.content.decode()
    assert "dead" in text
    assert "1 of 2 process workers busy" in text
    assert "4242" in text


def test_a_warning_names_waiting_jobs_that_no_runner_serves(staff: Client) -> None:
    assert staff.get("/peasy/").context["stalled"] == []
    add(), add(queue_name="slow")
    add_runner(lease=-1)
    (sentence,) = staff.get("/peasy/").context["stalled"]
    assert re.fullmatch(
        r"2 jobs waiting since \d\d:\d\d and no runner is alive: "
        r"start one with manage\.py run_peasy",
        sentence,
    )
    add_runner(queues=["default"])
    (sentence,) = staff.get("/peasy/").context["stalled"]
    assert sentence.startswith("1 job waiting in the queue slow since ")
    assert sentence.endswith("start one with manage.py run_peasy --queue slow")
    PeasyJobQueue.objects.update(queue_name="a; b")
    assert staff.get("/peasy/").context["stalled"][0].endswith("--queue 'a; b'"), (
        "to be pasted into a shell"
    )
    PeasyJobQueue.objects.update(queue_name="")
    assert staff.get("/peasy/").context["stalled"][0].endswith("--queue ''"), (
        "a queue like any other"
    )
    add_runner()
    assert staff.get("/peasy/").context["stalled"] == []


def test_an_empty_list_says_what_to_do(staff: Client) -> None:
    page = staff.get("/peasy/").content.decode()
    assert "No jobs yet." in page
    assert "run_peasy" in page
    assert "Show all jobs" in staff.get("/peasy/?status=failed").content.decode()


# A job


@pytest.mark.parametrize("payload", XSS)
def test_texts_of_jobs_and_runners_are_escaped(staff: Client, payload: str) -> None:
    error = dict.fromkeys(("at", "where", "exception", "message", "traceback"), payload)
    add_runner(host=payload, queues=[payload])
    job = add(
        payload,
        FAILED,
        status_msg=payload,
        extra={payload: payload},
        queue_name=payload,
        job_name=f"shop.{payload}",
        errors=[error],
        args=[payload, {payload: [payload]}],
        kwargs={payload: payload},
        result=payload,
    )
    pages = [
        staff.get("/peasy/"),
        staff.get("/peasy/", {"q": payload, "queue": payload, "status": payload}),
        staff.get("/peasy/live/"),
        staff.get(f"/peasy/jobs/{job.pk}/"),
        staff.get(f"/peasy/jobs/{job.pk}/live/"),
        staff.post(
            "/peasy/jobs/actions/", {"action": "delete", "pk": job.pk, "next": f"/{payload}"}
        ),
    ]
    add(payload, queue_name=f"not {payload}")  # waits in a queue that nobody serves
    for page in [*pages, staff.get("/peasy/")]:
        assert page.status_code == 200
        assert not HOSTILE.search(page.content.decode())


def test_the_page_of_a_job_shows_all_its_facts(staff: Client) -> None:
    runner = add_runner("web-9")
    errors = [
        {
            "at": "2026-01-02T03:04:05+00:00",
            "where": "w",
            "exception": "an.E1",
            "message": "m1",
            "traceback": "t1",
        },
        {"at": "nonsense", "exception": "an.E2", "message": "m2", "traceback": None},
        "nonsense",
    ]
    job = add(
        "export",
        ONGOING,
        runner_id=runner.pk,
        extra={"progress": 5},
        status_msg="at it",
        errors=errors,
        args=[17],
    )
    text = staff.get(f"/peasy/jobs/{job.pk}/").content.decode()
    for part in (
        "export",
        "at it",
        "web-9, pid 4242",
        "an.E1",
        "t1",
        "m2",
        "17",
        "&quot;progress&quot;: 5",
        "shop.jobs.export",
    ):
        assert part in text, part
    assert text.index("an.E2") < text.index("an.E1"), "the newest first"
    assert "data-peasy-poll" in text
    done = add(status=COMPLETED, result={"exported": 17})
    text = staff.get(f"/peasy/jobs/{done.pk}/").content.decode()
    assert "&quot;exported&quot;: 17" in text
    assert "data-peasy-poll" not in text


def test_rows_with_invalid_values_are_shown(staff: Client) -> None:
    half = "\ud800" if connection.vendor == "sqlite" else "x"  # the others refuse it
    job = add(status=FAILED, errors={"no": "list"}, extra={"a": half, "progress": "x"}, args=[1])
    PeasyJobQueue.objects.filter(pk=job.pk).update(
        args_data=b"J{", kwargs_data=b'J["\\ud800"]', result_data=b'J"\\ud800"', runner_id=987654
    )
    for url in ("/peasy/", f"/peasy/jobs/{job.pk}/", f"/peasy/jobs/{job.pk}/live/"):
        assert staff.get(url).status_code == 200


@pytest.mark.skipif(not conf.uses_time_zones(), reason="Times are shown as they are then.")
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_times_out_of_range_in_the_current_time_zone_are_left_out(
    staff: Client, settings: Any, zone: str
) -> None:
    settings.TIME_ZONE = zone
    for never in (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)):
        job = add(
            status=SCHEDULED,
            run_after=never,
            errors=[{"at": never.isoformat(), "message": "it failed"}],
        )
        for url in (
            "/peasy/",
            "/peasy/live/",
            f"/peasy/jobs/{job.pk}/",
            f"/peasy/jobs/{job.pk}/live/",
        ):
            page = staff.get(url)
            assert page.status_code == 200
            assert "Scheduled" in page.content.decode()


def test_showing_arguments_imports_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lazy = ModuleType("lazy")
    lazy.__getattr__ = pytest.fail
    monkeypatch.setitem(sys.modules, "lazy", lazy)
    assert formatting.arguments(add(job_name="lazy.export", args=[7]))[0].text == "7"


class Bomb:
    def __reduce__(self) -> Any:
        return (pytest.fail, ("a pickle was loaded",))


def test_a_pickle_is_not_loaded(staff: Client) -> None:
    job = add(status=COMPLETED, args=[(1,)], kwargs={"x": {1, 2}}, result=Bomb())
    text = staff.get(f"/peasy/jobs/{job.pk}/").content.decode()
    assert len(re.findall(r"stored as a pickle, \d+ bytes", text)) == 3


def no_iban(name: str) -> bool:
    return name == "iban"


def test_secrets_are_masked_by_name(staff: Client, settings: Any) -> None:
    settings.PEASY_MASK_ARGUMENT = f"{__name__}.no_iban"
    nested = {
        "API-Key": "hush",
        "rows": [{"client_secret": "hush", "n": 1}],
        "iban": "hush",
        "Authorization": ["hush"],
    }
    nested["headers"] = [["X-Auth", "hush"], ["Accept", "shown"], ["Cookie", ["hush"]]]
    names = ("password", "accessToken", "iban", "db_pass", "pw", "basic_auth", "credit_card")
    kwargs = {**dict.fromkeys(names, "hush"), "set_cookie": {"a": "hush"}, "options": nested}
    job = add(status=COMPLETED, kwargs={**kwargs, "plain": "shown"}, result=nested)
    text = staff.get(f"/peasy/jobs/{job.pk}/").content.decode()
    assert "hush" not in text
    assert "shown" in text
    assert "&quot;n&quot;: 1" in text


def test_positional_arguments_are_masked_by_parameter_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tests import jobs

    job = add(job_name="tests.jobs.sign_in", args=["anna", "hush", "rest", {"token": "hush"}])
    shown = dict(formatting.arguments(job))
    assert shown["login"] == '"anna"'
    assert shown["password"] == formatting.MASK
    assert "hush" not in str(shown)
    unknown = formatting.arguments(
        add(job_name="nowhere.at_all", args=["hush", 7, {"token": "hush", "n": 1}, ["hush"]])
    )
    assert "hush" not in str(unknown)
    assert unknown[1].text == "7"
    assert '"n": 1' in unknown[2].text
    assert jobs.sign_in.signature


def test_large_and_deep_values_are_cut() -> None:
    assert len(formatting.text("x" * 10**6)) < formatting.VALUE_LENGTH + 100
    deep = json.loads("[" * 900 + "]" * 900)
    assert formatting.text([deep] * 2)
    for _ in range(2000):
        deep = [deep]
    assert formatting.text(deep) == "nested too deeply to be shown"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "< 0.01 s"),
        (0.009, "< 0.01 s"),
        (0.01, "0.01 s"),
        (0.25, "0.25 s"),
        (3.21, "3.2 s"),
        (59.9, "59 s"),
        (250, "4 min 10 s"),
        (7500, "2 h 5 min"),
        (273600, "3 d 4 h"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert formatting.duration(seconds) == text


# Answers


def test_the_timeline_is_in_the_order_of_the_events(staff: Client) -> None:
    now = as_field(database_now(connection))
    times = [now + timedelta(minutes=minute) for minute in range(5)]
    errors = [{"at": moment.isoformat(), "message": "x"} for moment in (times[2], times[4])]
    job = add(status=FAILED, started=times[3], completed=times[4], errors=errors)
    PeasyJobQueue.objects.filter(pk=job.pk).update(created=times[0])
    text = staff.get(f"/peasy/jobs/{job.pk}/").content.decode()
    timeline = re.search(r'<ol class="peasy-timeline">(.*?)</ol>', text, re.DOTALL)
    assert timeline is not None
    assert re.findall(r"<li>(.*?) <time", timeline[1]) == [
        "Created",
        "Failed attempt",
        "Started",
        "Failed",
    ]


def test_the_labels_of_statuses_can_be_translated() -> None:
    assert all(isinstance(label, Promise) for _, label in PeasyJobQueue.STATUS_CHOICES)


def test_the_script_is_small_and_no_file_refers_to_another_host() -> None:
    folder = ROOT / "peasy_jobs"
    assert len((folder / "static/peasy_jobs/peasy.js").read_text().splitlines()) < 100
    files = [file for part in ("static", "templates") for file in (folder / part).rglob("*.*")]
    assert len(files) > 15
    for file in files:
        assert not re.search(
            r"(https?:)?//\w", file.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
        ), file


def test_answers_are_private_and_not_indexed(staff: Client) -> None:
    job = add()
    for url in ("/peasy/", "/peasy/live/", f"/peasy/jobs/{job.pk}/", f"/peasy/jobs/{job.pk}/live/"):
        response = staff.get(url)
        assert response["X-Robots-Tag"] == "noindex"
        assert response["Cache-Control"] == "private, no-cache"
        text = response.content.decode()
        assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", text)


def test_numbers_for_machines_have_no_thousand_separators(staff: Client, settings: Any) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    settings.PEASY_DASHBOARD_POLL = 10**9
    job = add(pk=1234567, status=FAILED)
    for url in ("/peasy/", f"/peasy/jobs/{job.pk}/"):
        assert "1,234,567" not in staff.get(url).content.decode()
    assert 'hx-trigger="every 86400000ms' in staff.get("/peasy/").content.decode()
    sent = {"action": "delete", "pk": job.pk}
    assert 'name="pk" value="1234567"' in staff.post("/peasy/jobs/actions/", sent).content.decode()


def test_the_document_links_to_the_page_for_users_of_the_dashboard(
    client: Client, settings: Any
) -> None:
    job = add()
    assert "url" not in client.get(job.status_url).json()
    client.force_login(user("view"))
    assert client.get(f"/peasy/jobs/{job.pk}.json").json()["url"] == f"/peasy/jobs/{job.pk}/"
    assert "url" not in client.get(job.status_url).json(), "a link says the same to everybody"
    settings.PEASY_DASHBOARD_PERMISSION = f"{__name__}.operators_only"
    assert "url" not in client.get(f"/peasy/jobs/{job.pk}.json").json()
    assert (
        client.get(f"/peasy/jobs/{job.pk}.json?who=operator").json()["url"]
        == f"/peasy/jobs/{job.pk}/"
    )


def test_without_polling_pages_do_not_update_themselves(staff: Client, settings: Any) -> None:
    settings.PEASY_DASHBOARD_POLL = 0
    add()
    text = staff.get("/peasy/").content.decode()
    assert "every" not in text
    assert "Live updates" not in text
    assert "Refresh" in text


# Statistics


def test_statistics_have_a_page_and_are_part_of_the_dashboard(staff: Client) -> None:
    now = database_now(connection)
    PeasyMinute.objects.create(minute=int(now.timestamp()) // 60, completed=7, r3=7, w2=7)
    assert "/peasy/statistics/charts/" in staff.get("/peasy/").content.decode()
    for address in ("/peasy/statistics/", "/peasy/statistics/charts/"):
        with CaptureQueriesContext(connection) as context:
            text = staff.get(address).content.decode()
        assert text.count("<svg") == 4
        assert "Jobs per minute in the last hour" in text
        assert "Nothing ended" not in text
        assert sum("peasyminute" in query["sql"] for query in context) == 2


def test_statistics_need_the_permission_to_view_jobs(client: Client) -> None:
    assert client.get("/peasy/statistics/").status_code == 302
    assert client.get("/peasy/statistics/charts/").status_code == 401
