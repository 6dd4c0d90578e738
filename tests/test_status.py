"""The JSON document and the progress widget: access, content and cost, without a browser."""

import json
import math
import pickle
import re
import sys
import time
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import hypothesis.strategies as some
import pytest
from django.contrib.auth.models import Permission, User
from django.core.exceptions import PermissionDenied
from django.db import connection, connections
from django.http import Http404, HttpRequest, HttpResponse
from django.template import engines
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.urls import NoReverseMatch, include, path, reverse
from django.utils import timezone, translation
from django.utils.formats import date_format
from hypothesis import HealthCheck, example, given, settings
from hypothesis.extra.django import TestCase

from peasy_jobs import conf, links, payloads
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import formatting, status_document, widget
from tests import jobs
from tests.manual import MANUAL, ROOT, block

pytestmark = pytest.mark.django_db

AWARE = datetime(2026, 6, 1, 10, 0, 0, 123456, tzinfo=UTC)
MOMENT = (
    AWARE if conf.uses_time_zones() else timezone.make_naive(AWARE, timezone.get_default_timezone())
)
NOT_FOUND = {"type": "about:blank", "title": "Not Found", "status": 404}
WIDGET = "{% load peasy_jobs %}{% peasy_progress job %}"
PAYLOADS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</p></div></section><b>",
    "{{ 7|add:7 }}{% debug %}",
    "<!--",
    "\u2028</script>",
    "&lt;b&gt;",
]


def make(**columns: Any) -> PeasyJobQueue:
    return PeasyJobQueue.objects.create(
        **{"title": "export", "job_name": "shop.jobs.export", **columns}
    )


def change(job: PeasyJobQueue, **columns: Any) -> PeasyJobQueue:
    PeasyJobQueue.objects.filter(pk=job.pk).update(**columns)
    return PeasyJobQueue.objects.get(pk=job.pk)


def fetch_document(
    job: PeasyJobQueue, client: Client | None = None, url: str | None = None
) -> dict[str, Any]:
    response = (client or Client()).get(url or job.status_url)
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    return parse_strictly(response.content)


def parse_strictly(text: bytes) -> Any:
    """Parse JSON like a browser does, which refuses NaN and the infinities."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def create_user(name: str = "anna", *permissions: str, **columns: Any) -> User:
    user = User.objects.create(username=name, **columns)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def client_of(user: User | None) -> Client:
    client = Client()
    if user is not None:
        client.force_login(user)
    return client


def plain_urls(job: PeasyJobQueue) -> list[str]:
    return [f"/peasy/jobs/{job.pk}.json", f"/peasy/jobs/{job.pk}/progress/"]


def can_see(client: Client, job: PeasyJobQueue, query: str = "") -> bool:
    """Return whether the visitor may see the job. Both views have to agree."""
    document, fragment = (client.get(url + query) for url in plain_urls(job))
    assert fragment.status_code == 200
    gone = b"This job is no longer available." in fragment.content
    assert (document.status_code == 404) == gone
    return not gone


class WholeResponse(NamedTuple):
    """Everything by which a client could tell two responses apart."""

    status: int
    content: bytes
    headers: list[tuple[str, str]]
    cookies: str


def whole_response(response: HttpResponse) -> WholeResponse:
    headers = sorted(response.items())
    return WholeResponse(response.status_code, response.content, headers, response.cookies.output())


def expected_document(**columns: Any) -> Any:
    """Return the document of a new job, with some changes."""
    return {
        "title": "export",
        "done": False,
        "progress": None,
        "status_msg": "",
        "extra": None,
        "error": None,
        "created": "2026-06-01T10:00:00.123Z",
        "started": None,
        "completed": None,
        **columns,
    }


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"status": "Q"}, {"status": "enqueued", "status_display": "Enqueued"}),
        (
            {"status": "S", "run_after": MOMENT},
            {"status": "scheduled", "status_display": "Scheduled"},
        ),
        (
            {
                "status": "O",
                "started": MOMENT,
                "extra": {"progress": 50, "rows": [1]},
                "status_msg": "half",
            },
            {
                "status": "ongoing",
                "status_display": "Ongoing",
                "progress": 50.0,
                "extra": {"progress": 50, "rows": [1]},
                "status_msg": "half",
                "started": "2026-06-01T10:00:00.123Z",
            },
        ),
        (
            {
                "status": "C",
                "started": MOMENT,
                "completed": MOMENT + timedelta(hours=1),
                "result_data": b'J{"a":[1]}',
            },
            {
                "status": "completed",
                "status_display": "Completed",
                "done": True,
                "progress": 100.0,
                "started": "2026-06-01T10:00:00.123Z",
                "completed": "2026-06-01T11:00:00.123Z",
                "result": {"a": [1]},
            },
        ),
        (
            {
                "status": "F",
                "completed": MOMENT,
                "errors": [{"message": "key 4711", "exception": "KeyError"}],
            },
            {
                "status": "failed",
                "status_display": "Failed",
                "done": True,
                "error": {"message": "The job failed."},
                "completed": "2026-06-01T10:00:00.123Z",
            },
        ),
        ({"status": "X"}, {"status": "cancelled", "status_display": "Cancelled", "done": True}),
        (
            {"status": "X", "runner_id": 1},
            {"status": "cancelled", "status_display": "Cancelled", "done": False},
        ),
    ],
)
def test_the_json_document_describes_each_status(columns, expected):
    job = make(**{key: value for key, value in columns.items() if not isinstance(value, datetime)})
    job = change(job, created=MOMENT, **columns)
    assert fetch_document(job) == expected_document(id=str(job.pk), **expected)


def test_times_in_the_document_are_utc_without_use_tz(settings):
    settings.USE_TZ = False
    assert status_document._iso(datetime(2026, 6, 1, 6, 0)) == "2026-06-01T10:00:00.000Z"


def test_document_and_widget_links_have_a_short_path_and_a_token():
    job = make()
    assert reverse("peasy_jobs:job_json", args=[42]) == "/peasy/jobs/42.json"
    assert re.fullmatch(rf"/peasy/jobs/{job.pk}\.json\?t=[\w:-]{{40,60}}", job.status_url)
    assert re.fullmatch(rf"/peasy/jobs/{job.pk}/progress/\?t=[\w:-]{{40,60}}", job.progress_url)


def test_the_link_of_a_new_job_works():
    job = jobs.nothing()
    assert fetch_document(job)["status"] == "enqueued"


# Access


def test_only_the_jobs_user_and_staff_with_permission_can_see_a_job():
    owner, view = create_user("owner"), "view_peasyjobqueue"
    job = make(user=owner)
    seers = {
        "owner": client_of(owner),
        "staff with the permission": client_of(create_user("staff", view, is_staff=True)),
        "superuser": client_of(create_user("root", is_staff=True, is_superuser=True)),
    }
    others = {
        "anonymous": client_of(None),
        "another user": client_of(create_user("other")),
        "staff without permission": client_of(create_user("clerk", is_staff=True)),
        "staff who may change": client_of(
            create_user("changer", "change_peasyjobqueue", is_staff=True)
        ),
        "permission without staff": client_of(create_user("reader", view)),
        "staff who left": client_of(left := create_user("left", view, is_staff=True)),
    }
    User.objects.filter(pk=left.pk).update(is_active=False)
    assert {name: can_see(client, job) for name, client in seers.items()} == dict.fromkeys(
        seers, True
    )
    assert {name: can_see(client, job) for name, client in others.items()} == dict.fromkeys(
        others, False
    )


def test_a_deactivated_user_cannot_see_their_job():
    owner = create_user()
    job, client = make(user=owner), client_of(owner)
    assert can_see(client, job)
    User.objects.filter(pk=owner.pk).update(is_active=False)
    assert not can_see(client, job)
    # A backend that lets them in all the same does not change that.
    owner.is_active = False
    request = RequestFactory().get("/")
    request.user = owner
    assert not status_document.may_see(request, job)


def test_an_anonymous_visitor_cannot_see_a_job_without_a_user():
    assert not can_see(Client(), make(user=None))


def test_a_custom_user_model_needs_no_is_staff():
    request = RequestFactory().get("/")
    request.user = SimpleNamespace(pk=1, is_active=True)
    assert status_document.may_see(request, SimpleNamespace(pk=1, user_id=1, created=MOMENT))
    assert not status_document.may_see(request, SimpleNamespace(pk=1, user_id=2, created=MOMENT))


def test_without_auth_middleware_only_the_link_shows_a_job(settings):
    settings.MIDDLEWARE = []
    job = make()
    assert can_see(Client(), job, f"?t={links.token(job)}")
    assert not can_see(Client(), job)


def test_a_link_is_valid_for_one_job_and_expires(monkeypatch):
    job, other = make(), make()
    token = links.token(job)
    assert can_see(Client(), job, f"?t={token}")
    assert not can_see(Client(), other, f"?t={token}")
    assert not can_see(Client(), job, f"?t={token[:-1]}")
    for passed, good in ((86390, True), (86410, False)):
        now = time.time() + passed
        monkeypatch.setattr("django.core.signing.time", SimpleNamespace(time=lambda now=now: now))
        assert can_see(Client(), job, f"?t={token}") is good


def test_a_link_expires_after_peasy_token_max_age(settings, monkeypatch):
    settings.PEASY_TOKEN_MAX_AGE = 5
    job = make()
    token, now = links.token(job), time.time() + 7
    monkeypatch.setattr("django.core.signing.time", SimpleNamespace(time=lambda: now))
    assert not can_see(Client(), job, f"?t={token}")


def test_a_link_is_not_valid_for_a_later_job_with_the_same_primary_key():
    job = make()
    pk, token = job.pk, links.token(job)
    job.delete()
    again = make(pk=pk)
    assert not can_see(Client(), again, f"?t={token}")


def test_a_link_stays_valid_while_its_secret_key_is_a_fallback(settings):
    job = make()
    token, settings.SECRET_KEY_FALLBACKS = links.token(job), [settings.SECRET_KEY]
    settings.SECRET_KEY = (
        "another one that is as long as the first, which the deployment check asks for too"
    )
    assert can_see(Client(), job, f"?t={token}")
    settings.SECRET_KEY_FALLBACKS = []
    assert not can_see(Client(), job, f"?t={token}")


@pytest.mark.parametrize("visitor", ["anonymous", "logged in", "session over", "bad token"])
@pytest.mark.parametrize(("view", "status"), [(0, 404), (1, 200)], ids=["document", "widget"])
@pytest.mark.parametrize("method", ["get", "head"])
def test_a_missing_and_a_forbidden_job_get_the_same_answer(visitor, view, status, method):
    job = make(user=create_user("owner"))
    url = plain_urls(job)[view] + ("?t=bad" if visitor == "bad token" else "")

    def ask() -> Any:
        client = client_of(other if visitor == "logged in" else None)
        if visitor == "session over":
            client.cookies["sessionid"] = "a" * 32
        return whole_response(getattr(client, method)(url))

    other = create_user("other")
    forbidden = ask()
    job.delete()
    assert forbidden == ask()
    assert forbidden.status == status


@pytest.mark.parametrize("query", ["", "?t=bad"])
@pytest.mark.parametrize("is_logged_in", [True, False])
def test_a_forbidden_document_is_a_problem_document(query, is_logged_in):
    job = make(user=create_user("owner"))
    client = client_of(create_user("other") if is_logged_in else None)
    response = client.get(plain_urls(job)[0] + query)
    assert response["Content-Type"] == "application/problem+json"
    assert json.loads(response.content) == NOT_FOUND


def test_the_answers_are_the_same_if_only_a_hook_reads_the_session(settings, monkeypatch):
    monkeypatch.setattr(
        jobs, "decide", lambda request, job: request.session.get("job") == job.pk, raising=False
    )
    settings.PEASY_CAN_VIEW_JOB = "tests.jobs.decide"
    settings.MIDDLEWARE = ["django.contrib.sessions.middleware.SessionMiddleware"]
    job = make()
    forbidden = [whole_response(Client().get(url)) for url in plain_urls(job)]
    urls = plain_urls(job)
    job.delete()
    assert forbidden == [whole_response(Client().get(url)) for url in urls]


MANY = "?" + "&".join(["a=1"] * 1001)  # more than DATA_UPLOAD_MAX_NUMBER_FIELDS


@pytest.mark.parametrize(
    ("query", "headers", "statuses"),
    [
        (MANY, {}, (400, 400)),
        ("?t=%2B2AA-", {"CONTENT_TYPE": "text/plain; charset=utf-7"}, (404, 200)),
        (r"?t=1:\ud800", {"CONTENT_TYPE": "text/plain; charset=unicode_escape"}, (404, 200)),
    ],
    ids=["too many fields", "half a surrogate pair", "another half"],
)
@pytest.mark.parametrize("view", [0, 1], ids=["document", "widget"])
def test_the_answers_are_the_same_for_an_unreadable_query_string(view, query, headers, statuses):
    job = make()
    url = plain_urls(job)[view] + query
    client = Client(raise_request_exception=False)
    forbidden = whole_response(client.generic("GET", url, **headers))
    job.delete()
    assert forbidden == whole_response(client.generic("GET", url, **headers))
    assert forbidden.status == statuses[view]


@pytest.mark.parametrize("no", [PermissionDenied, Http404])
@pytest.mark.parametrize("hook", ["PEASY_CAN_VIEW_JOB", "PEASY_DASHBOARD_PERMISSION"])
def test_the_answers_are_the_same_if_a_hook_raises(settings, monkeypatch, hook, no):
    def decide(request: HttpRequest, what: Any) -> bool:
        raise no("not for you")

    monkeypatch.setattr(jobs, "decide", decide, raising=False)
    setattr(settings, hook, "tests.jobs.decide")
    job = make()
    urls = plain_urls(job)
    forbidden = [whole_response(Client().get(url)) for url in urls]
    job.delete()
    assert forbidden == [whole_response(Client().get(url)) for url in urls]
    assert fetch_document(make())["status"] == "enqueued", "a link is good whatever a hook says"


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_async_hook_lets_nobody_in(settings, monkeypatch):
    async def decide(request: HttpRequest, what: Any) -> bool:
        return True

    monkeypatch.setattr(jobs, "decide", decide, raising=False)
    settings.PEASY_CAN_VIEW_JOB = settings.PEASY_DASHBOARD_PERMISSION = "tests.jobs.decide"
    assert not can_see(Client(), make())
    assert Client().get("/peasy/live/").status_code == 401


def test_a_link_works_with_login_required_middleware(settings):
    settings.MIDDLEWARE = [
        *settings.MIDDLEWARE,
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ]
    job = make()
    assert can_see(Client(), job, f"?t={links.token(job)}")
    assert not can_see(Client(), job)


@pytest.mark.skipif(not conf.uses_time_zones(), reason="A database has no zone of its own then.")
def test_a_link_is_valid_in_any_time_zone_of_the_database(monkeypatch):
    try:
        monkeypatch.setitem(connection.settings_dict, "TIME_ZONE", "Asia/Tokyo")
        forget_the_zone()
        job = jobs.nothing()
        assert fetch_document(job)["status"] == "enqueued"
        assert links.token(PeasyJobQueue.objects.get(pk=job.pk)) == links.token(job)
    finally:
        monkeypatch.undo()
        forget_the_zone()


def forget_the_zone() -> None:
    for name in ("timezone", "timezone_name"):
        connections["default"].__dict__.pop(name, None)
    connections["default"].ensure_timezone()


def test_a_primary_key_out_of_range_is_not_found():
    nothing = make()
    url = plain_urls(nothing)[0]
    nothing.delete()
    for pk in (2**63 - 1, 2**63, 2**64, 10**4000):
        response = Client().get(url.replace(f"{nothing.pk}.json", f"{pk}.json"))
        assert whole_response(response) == whole_response(Client().get(url))
        assert Client().get(f"/peasy/jobs/{pk}/progress/").status_code == 200
    assert Client().get(f"/peasy/jobs/{'9' * 5000}.json").status_code == 404


def test_peasy_can_view_job_decides_who_sees_a_job(settings, monkeypatch):
    asked = []

    def decide(request: HttpRequest, job: PeasyJobQueue) -> bool:
        asked.append((request.path, job.pk))
        return request.headers.get("Shop") == "yes"

    monkeypatch.setattr(jobs, "decide", decide, raising=False)
    settings.PEASY_CAN_VIEW_JOB = "tests.jobs.decide"
    owner = create_user()
    job = make(user=owner)
    assert not can_see(client_of(owner), job)
    assert can_see(Client(headers={"shop": "yes"}), job)
    path, pk = asked[0]
    assert path == f"/peasy/jobs/{job.pk}.json"
    assert pk == job.pk
    asked.clear()
    assert can_see(Client(), job, f"?t={links.token(job)}")
    assert asked == []


def test_users_of_the_dashboard_can_see_every_job(settings, monkeypatch):
    actions = []
    monkeypatch.setattr(
        jobs,
        "decide",
        lambda request, action: actions.append(action) or "Shop" in request.headers,
        raising=False,
    )
    settings.PEASY_DASHBOARD_PERMISSION = "tests.jobs.decide"
    job = make()
    assert can_see(Client(headers={"shop": "yes"}), job)
    assert not can_see(client_of(create_user(is_staff=True, is_superuser=True)), job)
    assert set(actions) == {"view"}


def test_only_staff_are_told_why_a_job_failed():
    error = {
        "message": "no customer 4711",
        "exception": "builtins.KeyError",
        "traceback": "Traceback: secret",
    }
    owner = create_user("owner")
    job = make(status="F", errors=[{"message": "first"}, error], user=owner)
    staff = client_of(create_user("staff", is_staff=True, is_superuser=True))
    seen = fetch_document(job, staff, plain_urls(job)[0])
    assert seen["error"] == {"message": "no customer 4711", "type": "builtins.KeyError"}
    for response in (
        client_of(owner).get(plain_urls(job)[0]),
        staff.get(job.status_url),
        Client().get(job.progress_url),
    ):
        assert b"4711" not in response.content
        assert b"secret" not in response.content
    for odd in ([], ["x"], [None], {"a": 1}):
        assert fetch_document(change(job, errors=odd), staff, plain_urls(job)[0])["error"] == {
            "message": "",
            "type": "",
        }


# The cost of a poll


def test_a_poll_with_a_link_takes_one_query_and_needs_no_session():
    client = client_of(create_user())
    job = make(status="O", extra={"progress": 10})
    for url in (job.status_url, job.progress_url):
        with CaptureQueriesContext(connection) as queries:
            response = client.get(url)
        assert response.status_code == 200
        assert len(queries) == 1, queries.captured_queries
        assert "Vary" not in response
        assert not response.cookies


def test_an_unchanged_poll_takes_one_query_and_has_no_content():
    job = make(status="O", extra={"progress": 10})
    url = poll_url(Client().get(job.progress_url))
    with CaptureQueriesContext(connection) as queries:
        response = Client().get(url)
    assert response.status_code == 204
    assert response.content == b""
    assert len(queries) == 1
    assert "args_data" not in queries[0]["sql"]
    assert "errors" not in queries[0]["sql"]
    assert response["Cache-Control"] == "private, no-cache"


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "C"},
        {"status_msg": "x"},
        {"extra": {"progress": 11}},
        {"title": "x"},
        {"run_after": MOMENT},
        {"extra": {"progress": 10, "other": 1}},
    ],
)
def test_a_poll_after_a_change_returns_the_widget(columns):
    job = make(status="O", extra={"progress": 10})
    url = poll_url(Client().get(job.progress_url))
    change(job, **columns)
    assert Client().get(url).status_code == 200


def test_a_poll_after_a_cancelled_job_stopped_returns_the_widget():
    job = make(status="X", runner_id=1)
    url = poll_url(Client().get(job.progress_url))
    change(job, runner_id=None)
    response = Client().get(url)
    assert response.status_code == 200
    assert poll_url(response) is None
    assert json.loads(response["HX-Trigger"]) == {
        "peasy:done": {"id": str(job.pk), "status": "cancelled"}
    }


def poll_url(response: HttpResponse) -> str | None:
    found = re.search(r'hx-get="([^"]+)"', response.content.decode())
    return found and found[1].replace("&amp;", "&")


def test_an_unchanged_document_is_answered_with_304():
    job = make(status="O")
    first = Client().get(job.status_url)
    same = Client().get(job.status_url, headers={"if-none-match": first["ETag"]})
    assert same.status_code == 304
    assert same.content == b""
    assert same["ETag"] == first["ETag"]
    assert same["Retry-After"] == "2"
    assert (
        Client().get(job.status_url, headers={"if-none-match": f"W/{first['ETag']}"}).status_code
        == 304
    )
    change(job, status_msg="x")
    assert Client().get(job.status_url, headers={"if-none-match": first["ETag"]}).status_code == 200
    for response in (first, same):
        assert response["Cache-Control"] == "private, no-cache"
    assert first["X-Robots-Tag"] == "noindex"


@pytest.mark.parametrize(
    ("age", "seconds"), [(0, 2), (59, 2), (61, 5), (601, 15), (3601, 60), (10**6, 60), (-9, 2)]
)
def test_retry_after_grows_with_the_age_of_the_job(age, seconds):
    job = make(status="O")
    change(job, started=job.created - timedelta(seconds=age))
    assert Client().get(job.status_url)["Retry-After"] == str(seconds)


def test_a_finished_job_has_no_retry_after():
    assert "Retry-After" not in Client().get(make(status="F").status_url)


def test_the_widget_polls_less_often_the_longer_nothing_changes(monkeypatch):
    job, now = make(status="O"), time.time()
    url = poll_url(Client().get(job.progress_url))

    def poll_after(seconds: int) -> HttpResponse:
        monkeypatch.setattr(widget, "time", lambda: now + seconds)
        return Client().get(url)

    assert poll_after(59).status_code == 204
    for seconds, interval in ((61, 5), (601, 15), (3601, 60)):
        response = poll_after(seconds)
        assert response.status_code == 200, seconds
        assert f'hx-trigger="every {interval}s, ' in response.content.decode()
        assert "-live" not in response.content.decode(), "there is nothing to announce"
        url = poll_url(response)
        assert poll_after(seconds + 59).status_code == 204, seconds
    change(job, status_msg="x")
    assert 'hx-trigger="every 2s, ' in Client().get(url).content.decode()


def test_head_answers_like_get_without_a_body():
    job = make(status="O")
    for url in (job.status_url, job.progress_url, *plain_urls(job)):
        get, head = Client().get(url), Client().head(url)
        assert head.status_code == get.status_code
        assert head.content == b""
        assert head.get("ETag") == get.get("ETag")
        assert head["Cache-Control"] == get["Cache-Control"]


@pytest.mark.parametrize("method", ["post", "put", "patch", "delete", "options"])
def test_other_methods_than_get_and_head_are_not_allowed(method):
    job = make(status="O")
    for url in (job.status_url, job.progress_url):
        response = getattr(Client(), method)(url)
        assert response.status_code == 405
        assert response["Allow"] == "GET, HEAD"


# Content


@pytest.mark.parametrize(
    ("extra", "percent"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ("50", None),
        ({"progress": None}, None),
        ({"progress": 0}, 0),
        ({"progress": 50}, 50),
        ({"progress": 33.3}, 33.3),
        ({"progress": "50"}, 50),
        ({"progress": " 7.5 "}, 7.5),
        ({"progress": [1, 4]}, 25),
        ({"progress": ["1", "4"]}, 25),
        ({"progress": (3, 4)}, 75),
        ({"progress": -1}, 0),
        ({"progress": 101}, 100),
        ({"progress": [5, 4]}, 100),
        ({"progress": True}, None),
        ({"progress": [True, 4]}, None),
        ({"progress": math.nan}, None),
        ({"progress": math.inf}, None),
        ({"progress": -math.inf}, None),
        ({"progress": "nan"}, None),
        ({"progress": "Infinity"}, None),
        ({"progress": [1, math.inf]}, None),
        ({"progress": [1, 0]}, None),
        ({"progress": [0, 0]}, None),
        ({"progress": [1]}, None),
        ({"progress": [1, 2, 3]}, None),
        ({"progress": [[1], 2]}, None),
        ({"progress": ["a", "b"]}, None),
        ({"progress": {"done": 1}}, None),
        ({"progress": "half"}, None),
        ({"progress": "50 %"}, None),
        ({"progress": ""}, None),
        ({"progress": 10**400}, None),
        ({"progress": [10**400, 10**400]}, None),
        ({"progress": "9" * 5000}, None),
    ],
)
def test_progress_is_a_number_from_0_to_100_or_none(extra, percent):
    assert status_document.progress(extra) == percent


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
)


@given(extra=JSON | some.fixed_dictionaries({"progress": JSON}))
def test_progress_accepts_any_json(extra):
    percent = status_document.progress(extra)
    assert percent is None or 0 <= percent <= 100


@settings(max_examples=30)
@given(document=some.dictionaries(some.text(some.characters()), JSON))
def test_any_document_is_sent_as_strict_json(document):
    parse_strictly(status_document.encode(document))


def test_only_a_completed_job_is_at_100_percent():
    assert fetch_document(make(status="C", extra={"progress": 7}))["progress"] == 100
    assert (
        'value="99"'
        in Client().get(make(status="O", extra={"progress": 99.9}).progress_url).content.decode()
    )


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("number", ["1e400", "-1e400", "[1, 1e999]"])
def test_a_number_out_of_range_is_sent_as_null(number):
    job = make(status="C", result_data=b"J[" + number.encode() + b", NaN, -Infinity]")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE peasy_jobs_peasyjobqueue SET extra = %s", [f'{{"progress": {number}}}']
        )
    assert fetch_document(job)["result"][1:] == [None, None]
    change(job, status="O")
    assert fetch_document(job)["progress"] in (None, 0, 100)
    assert Client().get(job.progress_url).status_code == 200


def test_half_a_surrogate_pair_can_be_sent(monkeypatch):
    job = make(status="C", result_data=b'J"\\ud800"')
    assert fetch_document(job)["result"] == "\ud800"


class Bomb:
    exploded: list[str] = []

    def __reduce__(self) -> Any:
        return self.exploded.append, ("!",)


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_no_view_loads_a_pickle(settings, monkeypatch, serializer):
    columns = {
        "args_data": payloads.ARGS,
        "kwargs_data": payloads.KWARGS,
        "result_data": payloads.RESULT,
    }
    bomb = pickle.dumps(Bomb())
    signed = {
        name: payloads.signed(bomb, job_name="shop.jobs.export", column=kind)
        for name, kind in columns.items()
    }
    settings.PEASY_SERIALIZER = serializer
    monkeypatch.setattr(pickle, "loads", lambda data: Bomb.exploded.append("loaded"))
    for status_letter in "QSOCFX":
        job = make(status=status_letter, **signed)
        for client in (
            Client(),
            client_of(create_user(f"staff{status_letter}", is_staff=True, is_superuser=True)),
        ):
            for url in (job.status_url, job.progress_url, *plain_urls(job)):
                client.get(url)
            assert "result" not in fetch_document(job)
    assert Bomb.exploded == []


@pytest.mark.parametrize(
    ("data", "result"),
    [
        (None, "absent"),
        (b"", "absent"),
        (b"J", "absent"),
        (b"J{", "absent"),
        (b"J\xff", "absent"),
        (b"P", "absent"),
        (b"x1", "absent"),
        (b"J" + b"[" * 100_000, "absent"),
        (b"Jnull", None),
        (b"J0", 0),
        (b'J"\\u00e9"', "é"),
        (b"J[NaN,1]", [None, 1]),
    ],
)
def test_the_document_has_the_result_if_it_is_plain_json(data, result):
    assert fetch_document(make(status="C", result_data=data)).get("result", "absent") == result
    assert "result" not in fetch_document(make(status="O", result_data=data))


def test_peasy_job_json_can_change_the_document(settings, monkeypatch):
    def change(
        request: HttpRequest, job: PeasyJobQueue, document: dict[str, Any]
    ) -> dict[str, Any]:
        del document["extra"]
        return {**document, "path": request.path, "at": AWARE, "eta": math.nan, "pk": job.pk}

    monkeypatch.setattr(jobs, "change", change, raising=False)
    settings.PEASY_JOB_JSON = "tests.jobs.change"
    job = make()
    seen = fetch_document(job)
    assert seen["path"] == f"/peasy/jobs/{job.pk}.json"
    assert seen["at"] == "2026-06-01T10:00:00.123Z"
    assert seen["eta"] is None
    assert "extra" not in seen
    assert seen["pk"] == job.pk


class Elements(HTMLParser):
    """The elements and texts that a browser would find."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        assert not [name for name, value in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("text", PAYLOADS)
def test_texts_of_a_job_are_escaped(text):
    job = make(title=text, status="O", status_msg=text, extra={"progress": text, text: text})
    page = engines["django"].from_string(WIDGET).render({"job": job})
    fragment = (
        Client()
        .get(job.progress_url, {"t": links.token(job), "a": text, "p": text})
        .content.decode()
    )
    for html, expected_count in ((page, 2), (fragment, 1)):
        parser = Elements()
        parser.feed(html)
        assert parser.tags == {"div", "p", "span", "progress"}
        assert parser.texts.count(text) == expected_count
    assert fetch_document(job)["title"] == text
    assert Client().get(job.status_url)["Content-Type"] == "application/json"


# Arbitrary input

ODD = some.text(some.characters(codec="utf-8"), max_size=60) | some.sampled_from(
    [
        "",
        "0",
        "-1",
        "x" * 5000,
        "1:2:3",
        "\0",
        "٣",
        "9" * 5000,
        "é:é",
        ":",
        "::",
        "1xVn:",
        "None",
        "[1]",
        "%",
        "%zz",
    ]
)


class Fuzz(TestCase):
    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(
        query=some.dictionaries(some.sampled_from(["t", "v", "s", "a", "p", "x"]), ODD),
        good=some.booleans(),
    )
    @example(query={"t": "1:2:3"}, good=False)
    @example(query={"v": "x", "s": "9" * 11, "p": "é", "a": "\0"}, good=True)
    def test_no_query_string_causes_an_error(self, query, good):
        job = make(status="O")
        query = {**query, "t": links.token(job)} if good else query
        document, fragment = (Client().get(url, query) for url in plain_urls(job))
        expected = 200 if good else 404
        assert document.status_code == expected
        assert fragment.status_code in {200, 204}
        prefix = query.get("p", "")
        if not prefix.isascii():
            assert prefix not in document.content.decode()
            assert prefix not in fragment.content.decode()

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(raw=some.binary(max_size=40).map(lambda data: data.replace(b"#", b"")))
    @example(raw=b"t=%00&t=%ff&&;=;%")
    def test_no_bytes_in_the_query_string_cause_an_error(self, raw):
        job = make(status="O")
        query = raw.decode("latin-1")
        document, fragment = (Client().get(url, QUERY_STRING=query) for url in plain_urls(job))
        assert document.status_code == 404
        assert fragment.status_code == 200


# Mounting


def use_urls(settings: Any, monkeypatch: pytest.MonkeyPatch, *patterns: Any) -> None:
    module = ModuleType("tests.site_urls")
    module.urlpatterns = list(patterns)
    monkeypatch.setitem(sys.modules, "tests.site_urls", module)
    settings.ROOT_URLCONF = "tests.site_urls"


def poll_again(url: str) -> str:
    response = Client().get(url)
    assert response.status_code == 200
    return poll_url(response)


def test_the_status_urls_can_be_mounted_alone(settings, monkeypatch):
    use_urls(settings, monkeypatch, path("shop-jobs/", include("peasy_jobs.status_urls")))
    job = make(status="O")
    assert job.status_url.startswith(f"/shop-jobs/jobs/{job.pk}.json?t=")
    staff = client_of(create_user(is_staff=True, is_superuser=True))
    assert "url" not in fetch_document(job, staff, f"/shop-jobs/jobs/{job.pk}.json")
    assert poll_again(job.progress_url).startswith(f"/shop-jobs/jobs/{job.pk}/progress/?t=")
    with pytest.raises(NoReverseMatch):
        reverse("peasy_jobs:dashboard")


def test_without_mounted_urls_the_widget_does_not_poll(settings, monkeypatch):
    use_urls(settings, monkeypatch)
    html = (
        engines["django"]
        .from_string(WIDGET)
        .render({"job": make(status="O", extra={"progress": 5})})
    )
    assert 'value="5"' in html
    assert "hx-get" not in html


# The tags


def render(template: str, **context: Any) -> str:
    request = context.pop("request", None)
    return (
        engines["django"].from_string("{% load peasy_jobs %}" + template).render(context, request)
    )


def test_the_widget_is_the_same_as_a_tag_and_as_an_include(monkeypatch):
    now = time.time()  # both name the second in which they are drawn
    monkeypatch.setattr("django.core.signing.time", SimpleNamespace(time=lambda: now))
    monkeypatch.setattr(widget, "time", lambda: now)
    job = make(status="O", title="a & b")
    tag = render("{% peasy_progress job %}", job=job)
    assert tag == render('{% include "peasy_jobs/_progress.html" with job=job %}', job=job)
    assert tag == render('{% include "peasy_jobs/_progress.html" with job=job only %}', job=job)
    assert "a &amp; b" in tag
    assert 'hx-disinherit="*"' in tag


def test_the_widget_snippet_of_the_manual_works():
    html = render(block("html", "{% load peasy_jobs %}\n{% peasy_assets"), job=make(status="O"))
    assert "htmx-2.min.js" in html
    assert "data-peasy-poll" in html


def test_every_custom_property_is_documented():
    sheet = ROOT.joinpath("peasy_jobs/static/peasy_jobs/peasy.css").read_text()
    assert all(f"`{name}`" in MANUAL for name in re.findall(r"--peasy-\w+", sheet))


def test_a_widget_can_have_a_label_and_a_prefix():
    html = render(
        '{% peasy_progress job label=label prefix="x-" %}', job=make(status="O"), label="<b>"
    )
    assert "&lt;b&gt;" in html
    assert html.count('id="x-peasy-job-') == 4
    assert "p=x-" in html
    with pytest.raises(ValueError, match="Use up to 32 letters"):
        render('{% peasy_progress job prefix="a b" %}', job=make())


def test_a_widget_without_a_job_says_it_is_no_longer_available():
    html = render("{% peasy_progress job %}", job=None)
    assert "This job is no longer available." in html
    assert "hx-get" not in html


def test_numbers_for_machines_do_not_depend_on_the_locale(settings):
    settings.USE_THOUSAND_SEPARATOR = True
    settings.LANGUAGE_CODE = "de"
    job = make(pk=1234567, status="O", extra={"progress": 12.5})
    for html in (
        render("{% peasy_progress job %}", job=job),
        Client().get(job.progress_url).content.decode(),
    ):
        assert "1.234" not in html
        assert "12,5" not in html
        assert f'id="peasy-job-{job.pk}-body"' in html
        assert 'value="12"' in html


@pytest.mark.skipif(not conf.uses_time_zones(), reason="Times are shown as they are then.")
def test_a_widget_leaves_out_a_time_that_is_out_of_range(settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    job = jobs.nothing.using(run_after=datetime.max.replace(tzinfo=UTC))()
    page = Client().get(job.progress_url).content.decode()
    assert "Scheduled" in page
    assert "<time" not in page


def shown_time(job: PeasyJobQueue) -> str:
    found = re.search(r"<time[^>]*>(.*?)</time>", Client().get(job.progress_url).content.decode())
    assert found is not None
    return unescape(found[1])


@pytest.mark.parametrize("minutes", [-70, -50, 0, 0.1, 50, 70, 60 * 24])
def test_a_scheduled_time_within_an_hour_is_shown_to_the_second(minutes):
    after = (timezone.now() + timedelta(minutes=minutes)).replace(microsecond=0)
    local = timezone.localtime(after) if timezone.is_aware(after) else after
    to_the_second = local.strftime("%-I:%M:%S ") + ("a.m." if local.hour < 12 else "p.m.")
    with_the_date = date_format(local, "DATETIME_FORMAT")
    expected = to_the_second if abs(minutes) < 60 else with_the_date
    assert shown_time(make(status="S", run_after=after)).startswith(expected)
    ongoing = make(status="O", run_after=after)
    assert "<time" not in Client().get(ongoing.progress_url).content.decode()


def test_a_widget_is_updated_once_when_its_scheduled_time_comes_near(monkeypatch):
    job = make(status="S", run_after=timezone.now() + timedelta(minutes=30))
    monkeypatch.setattr(widget, "TIME_ALONE", timedelta(minutes=20))
    url = poll_url(Client().get(job.progress_url))
    assert Client().get(url).status_code == 204
    monkeypatch.setattr(widget, "TIME_ALONE", timedelta(minutes=40))
    url = poll_again(url)
    assert Client().get(url).status_code == 204


def test_a_time_with_seconds_follows_the_language():
    written = {"en": "6:20:04 p.m.", "de": "18:20:04", "fi": "18.20.04", "ko": "오후 6:20:04"}
    for language, text in written.items():
        with translation.override(language):
            assert formatting.clock(datetime(2026, 6, 1, 18, 20, 4)) == text


def test_templates_have_no_invalid_variable(settings):
    options = settings.TEMPLATES[0]["OPTIONS"]
    settings.TEMPLATES = [
        {**settings.TEMPLATES[0], "OPTIONS": {**options, "string_if_invalid": "INVALID"}}
    ]
    job = make(status="O")
    for url in (job.progress_url, plain_urls(job)[1]):
        assert "INVALID" not in Client().get(url).content.decode()
    for template in (
        "{% peasy_progress job %}",
        '{% include "peasy_jobs/_progress.html" with job=job %}',
    ):
        assert "INVALID" not in render(template, job=job)
    assert "INVALID" not in render("{% peasy_progress job %}", job=None)


def test_the_assets_include_htmx_only_on_request():
    html = render("{% peasy_assets %}")
    assert re.findall(r'(?:src|href)="([^"]+)"', html) == [
        "/static/peasy_jobs/peasy.css",
        "/static/peasy_jobs/peasy.js",
    ]
    assert "htmx-config" not in html
    html = render("{% peasy_assets htmx=True %}")
    assert "/static/django_htmx/htmx-2.min.js" in html
    assert html.index("htmx-config") < html.index("htmx-2")


def test_the_address_of_htmx_is_escaped_once(monkeypatch):
    monkeypatch.setattr(
        "django_htmx.jinja.static", lambda path: f"https://cdn.example/{path}?a=1&b=2"
    )
    assert 'src="https://cdn.example/django_htmx/htmx-2.min.js?a=1&amp;b=2"' in render(
        "{% peasy_assets htmx=True %}"
    )


def test_debug_adds_no_script_that_replaces_the_page(settings):
    settings.DEBUG = True
    assert "django-htmx.js" not in render("{% peasy_assets htmx=True %}")


def test_every_asset_tag_has_the_csp_nonce():
    request = RequestFactory().get("/")
    assert "nonce" not in render("{% peasy_assets htmx=True %}", request=request)
    assert render("{% peasy_assets htmx=True %}", csp_nonce="n1").count(' nonce="n1"') == 3
    request.csp_nonce = "n2"
    assert render("{% peasy_assets htmx=True %}", request=request).count(' nonce="n2"') == 3
