"""Jobs and runners in Django's admin, without a browser: lists, cost, access, actions."""

import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core import checks
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import path

from peasy_jobs.admin import JobAdmin
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import BY_WORD, CANCELLED, COMPLETED, ENQUEUED, FAILED, ONGOING, SCHEDULED
from peasy_jobs.store.clock import as_field, database_now
from peasy_jobs.web import actions, listing
from tests.conftest import user
from tests.test_dashboard import XSS, add, add_runner

pytestmark = pytest.mark.django_db

# Of `XSS`; the pages have pictures and comments of their own.
AS_MARKUP = re.compile("""<script>|<img src=x|<svg/|<!--<|' onmouseover='|href=.javascript:""")
JOBS, RUNNERS = "/admin/peasy_jobs/peasyjobqueue/", "/admin/peasy_jobs/peasyrunner/"


def page_of(job: PeasyJobQueue) -> str:
    return f"{JOBS}{job.pk}/change/"


def titles(response: Any) -> list[str]:
    return [job.title for job in response.context["cl"].result_list]


def act(client: Client, action: str, *jobs: PeasyJobQueue, query: str = "", **sent: Any) -> Any:
    sent = {
        "action": f"{action}_selected",
        "_selected_action": [job.pk for job in jobs],
        "index": 0,
        **sent,
    }
    return client.post(f"{JOBS}{query}", sent, follow=True)


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def statuses_by_title() -> dict[str, str]:
    return dict(PeasyJobQueue.objects.values_list("title", "status"))


def one_of_each() -> dict[str, PeasyJobQueue]:
    runner = add_runner()
    return {
        "enqueued": add("enqueued"),
        "scheduled": add("scheduled", SCHEDULED),
        "ongoing": add("ongoing", ONGOING, runner_id=runner.pk, started=runner.started),
        "completed": add("completed", COMPLETED),
        "failed": add("failed", FAILED),
        "cancelled": add("cancelled", CANCELLED),
    }


# The list


def test_each_status_has_an_icon_and_a_label(staff: Client) -> None:
    one_of_each()
    text = staff.get(JOBS).content.decode()
    for word in ("Enqueued", "Scheduled", "Ongoing", "Completed", "Failed", "Cancelled"):
        assert re.search(
            f'data-status="{word.lower()}">'
            f'<span class="peasy-icon" aria-hidden="true"></span> {word}<',
            text,
        )
    assert "peasy_jobs/admin.css" in text


def test_the_list_shows_job_queue_user_duration_and_progress(staff: Client) -> None:
    anna = User.objects.create(username="anna")
    started = as_field(database_now(connection)) - timedelta(seconds=65)
    columns = {
        "runner_id": add_runner().pk,
        "started": started,
        "status_msg": "40 of 100",
        "queue_name": "slow",
    }
    add("resize", ONGOING, user=anna, extra={"progress": 40.2}, **columns)
    add("broken", FAILED, errors=[{"message": "no such file"}])
    text = staff.get(JOBS).content.decode()
    for shown in (
        "shop<wbr>.jobs<wbr>.export</code>",
        "slow",
        "anna",
        "1 min 5 s",
        "40 of 100",
        "no such file",
    ):
        assert shown in text
    assert (
        'max="100" value="40" aria-label="Progress of resize"></progress> 40 %<br>40 of 100' in text
    )


def test_the_list_is_always_newest_first_and_has_pages(staff: Client) -> None:
    PeasyJobQueue.objects.bulk_create(
        [PeasyJobQueue(title=f"{n}", job_name="x.y") for n in range(120)]
    )
    for query in ("?", "?status=enqueued&", "?o=5&", "?o=7.-1&"):
        seen = [titles(staff.get(f"{JOBS}{query}p={n}")) for n in (1, 2, 3)]
        assert [title for some in seen for title in some] == [f"{n}" for n in reversed(range(120))]
        assert [len(some) for some in seen] == [50, 50, 20]
    for query in ("?p=4", "?p=0", "?p=-1"):
        assert staff.get(JOBS + query)["Location"] == f"{JOBS}?e=1"
    assert len(titles(staff.get(f"{JOBS}?all="))) == 50


def test_a_list_that_is_cut_says_so(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "WINDOW", 3)
    old = add("old", FAILED, queue_name="rare")
    for n in range(3):
        add(f"{n}")
    note = "There are more: the newest 10,000 are listed."
    assert any(sql.endswith("LIMIT 4") for sql in queries(staff, JOBS))
    page = staff.get(JOBS)
    assert titles(page) == ["2", "1", "0"]
    assert page.context["cl"].result_count == 3
    assert note in page.content.decode()
    assert "3 results" not in page.content.decode()
    assert titles(staff.get(f"{JOBS}?status=failed")) == ["old"], "the newest of its status"
    for query in ("queue=rare", "q=ol", "q=ol&created=day"):
        page = staff.get(f"{JOBS}?status=failed&{query}")
        assert titles(page) == ["old"]
        assert "Among the newest 10,000 jobs of this status." in page.content.decode()
    assert titles(staff.get(f"{JOBS}?status=failed&q=%20")) == ["old"]
    assert titles(staff.get(f"{JOBS}?q={old.pk}")) == ["old"]
    for query in ("?queue=rare", "?job=shop.jobs.export", "?created=day", "?q=o"):
        page = staff.get(JOBS + query)
        assert "old" not in titles(page)
        assert "Among the newest 10,000 jobs." in page.content.decode()
    old.delete()
    assert note not in staff.get(JOBS).content.decode()
    add("3"), add("4")
    page = staff.get(f"{JOBS}?status=enqueued")
    assert titles(page) == ["4", "3", "2"]
    assert page.context["cl"].result_count == 3
    assert note in page.content.decode()


@pytest.mark.parametrize(
    "query", ["", "?status=enqueued", "?queue=default", "?q=e", "?status=enqueued&q=e"]
)
def test_a_subclass_can_leave_jobs_out(
    staff: Client, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    add("hers"), add("theirs")
    everything = JobAdmin.get_queryset
    monkeypatch.setattr(
        JobAdmin, "get_queryset", lambda *args: everything(*args).exclude(title="theirs")
    )
    assert titles(staff.get(JOBS + query)) == ["hers"]


def test_every_filter_finds_its_jobs(staff: Client) -> None:
    one_of_each()
    for word in BY_WORD:
        assert titles(staff.get(f"{JOBS}?status={word}")) == [word]
    add("letter", queue_name="post", job_name="shop.letters.print_it")
    add("stopped", CANCELLED, completed=None)
    assert titles(staff.get(f"{JOBS}?status=cancelled")) == ["stopped", "cancelled"]
    assert titles(staff.get(f"{JOBS}?queue=post")) == ["letter"]
    assert titles(staff.get(f"{JOBS}?job=shop.letters.print_it&status=enqueued")) == ["letter"]
    now = as_field(database_now(connection))
    for title, age in (("enqueued", 0.5), ("scheduled", 2), ("ongoing", 30), ("completed", 24 * 6)):
        PeasyJobQueue.objects.filter(title=title).update(created=now - timedelta(hours=age))
    PeasyJobQueue.objects.exclude(
        title__in=["enqueued", "scheduled", "ongoing", "completed"]
    ).delete()
    assert titles(staff.get(f"{JOBS}?created=hour")) == ["enqueued"]
    assert titles(staff.get(f"{JOBS}?created=day")) == ["scheduled", "enqueued"]
    assert titles(staff.get(f"{JOBS}?created=week")) == [
        "completed",
        "ongoing",
        "scheduled",
        "enqueued",
    ]
    assert titles(staff.get(f"{JOBS}?created=day&status=scheduled")) == ["scheduled"]


def test_filters_offer_queues_and_jobs_and_keep_the_selected_one(staff: Client) -> None:
    add(), add()
    assert "?queue=" not in staff.get(JOBS).content.decode(), "one queue is no choice"
    add(queue_name="post")
    text = staff.get(f"{JOBS}?job=gone.away").content.decode()
    assert "queue=default" in text
    assert "queue=post" in text
    assert "gone.away" in text


def test_search_covers_titles_jobs_and_messages(staff: Client) -> None:
    letter = add("Send a letter")
    add("other", job_name="shop.letters.print_it")
    add("third", status_msg="100% of LETTERS")
    add("fourth")
    assert titles(staff.get(f"{JOBS}?q=letter")) == ["third", "other", "Send a letter"]
    assert titles(staff.get(f"{JOBS}?q=100%25")) == ["third"]
    assert titles(staff.get(f"{JOBS}?q={letter.pk}")) == ["Send a letter"]


@pytest.mark.parametrize("value", ["", "x", "\0", "²", "9" * 40, "-1", "'", "<b>"])
@pytest.mark.parametrize("name", ["status", "queue", "job", "created", "q", "p", "o"])
def test_no_query_string_causes_an_error(staff: Client, name: str, value: str) -> None:
    add()
    assert staff.get(JOBS, {name: value}).status_code in (200, 302)


# Cost


def queries(client: Client, url: str) -> list[str]:
    with CaptureQueriesContext(connection) as captured:
        assert client.get(url).status_code == 200
    found = [
        query["sql"]
        for query in captured
        if not re.search("FROM .(django_session|auth_permission)", query["sql"])
    ]
    found.remove(
        next(sql for sql in found if re.search("FROM .auth_user", sql))
    )  # whose request it is
    return found


@pytest.mark.parametrize(
    "query",
    [
        "",
        "?p=2",
        *(f"?status={word}" for word in BY_WORD),
        "?q=job",
        "?queue=a&job=x.y&created=day&q=j",
    ],
)
def test_the_list_takes_few_queries_and_reads_no_arguments(staff: Client, query: str) -> None:
    one_of_each()
    for n in range(60):
        add(
            queue_name="a" if n % 2 else "b",
            job_name="x.y",
            user=User.objects.get(),
            args=["x" * 1000],
        )
    found = queries(staff, JOBS + query)
    assert len(found) < 6
    assert not [sql for sql in found if "args_data" in sql or "result_data" in sql]


def test_the_other_pages_take_few_queries(staff: Client) -> None:
    jobs = one_of_each()
    for n in range(3):
        add(status=ONGOING, runner_id=add_runner(f"web-{n}").pk)
    staff.force_login(User.objects.create_superuser("root"))
    runner = jobs["ongoing"].runner
    for url in (
        page_of(jobs["ongoing"]),
        f"{JOBS}{jobs['failed'].pk}/delete/",
        RUNNERS,
        f"{RUNNERS}{runner.pk}/change/",
    ):
        assert len(queries(staff, url)) < 6, url


# The page of a job


def test_the_page_of_a_job_shows_all_its_facts_and_masks_secrets(staff: Client) -> None:
    error = {
        "at": "2026-06-01T04:00:00+00:00",
        "where": "web-1",
        "exception": "shop.Broken",
        "message": "it broke",
    }
    job = add(
        "resize",
        FAILED,
        errors=[{**error, "traceback": "Traceback (most recent call last)"}, error],
        args=[7],
        kwargs={"password": "hush", "rows": {"n": 1}},
        result={"token": "hush", "made": 3},
        extra={"progress": 40},
        runner_id=None,
    )
    text = staff.get(page_of(job)).content.decode()
    assert "hush" not in text
    for shown in (
        "resize",
        "Failed",
        "shop.jobs.export",
        "shop.Broken",
        "it broke",
        "Traceback (most",
        "web-1",
    ):
        assert shown in text
    for shown in (
        "&quot;n&quot;: 1",
        "&quot;made&quot;: 3",
        "&quot;progress&quot;: 40",
        "Timeline",
        "Arguments",
    ):
        assert shown in text
    assert f'href="/peasy/jobs/{job.pk}/"' in text
    assert "View on site" in text


@pytest.mark.parametrize("status", [ENQUEUED, ONGOING, COMPLETED, FAILED])
def test_the_message_is_shown_once_after_a_failed_attempt(staff: Client, status: str) -> None:
    error = {"at": "2026-06-01T04:00:00+00:00", "exception": "shop.Broken", "message": "it broke"}
    job = add("resize", status, errors=[error], status_msg="3 of 10")
    for page in (page_of(job), f"/peasy/jobs/{job.pk}/"):
        text = staff.get(page).content.decode()
        assert text.count("3 of 10") == 1
        assert text.count('class="peasy-error">it broke<') == (status == FAILED)


def test_a_pickle_is_not_loaded(staff: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add(args=[{1, 2}], status=COMPLETED, result={3})
    monkeypatch.setattr("pickle.loads", lambda *args: pytest.fail("loaded"))
    assert staff.get(page_of(job)).content.decode().count("stored as a pickle") == 2
    assert staff.get(JOBS).status_code == 200


@pytest.mark.parametrize("payload", XSS)
def test_texts_of_jobs_and_runners_are_escaped(staff: Client, payload: str) -> None:
    error = dict.fromkeys(("at", "where", "exception", "message", "traceback"), payload)
    runner = add_runner(host=payload, queues=[payload], worker_type="thread")
    columns = {
        "status_msg": payload,
        "extra": {payload: payload},
        "queue_name": payload,
        "job_name": f"x.{payload}",
    }
    arguments = {"args": [payload], "kwargs": {payload: payload}, "result": payload}
    job = add(payload, FAILED, errors=[error], **columns, **arguments)
    add(
        payload,
        ONGOING,
        runner_id=runner.pk,
        started=runner.started,
        **{**columns, "extra": {"progress": 3}},
    )
    staff.force_login(User.objects.create_superuser("root"))
    pages = [
        staff.get(JOBS),
        staff.get(JOBS, {"q": payload, "queue": payload, "job": payload, "status": payload}),
        staff.get(page_of(job)),
        staff.get(f"{JOBS}{job.pk}/delete/"),
        act(staff, "delete", job),
        staff.get(RUNNERS),
        staff.get(f"{RUNNERS}{runner.pk}/change/"),
    ]
    for page in pages:
        assert page.status_code == 200
        assert not AS_MARKUP.search(page.content.decode())


def test_pages_have_no_inline_style_or_script(staff: Client) -> None:
    jobs = one_of_each()
    own = r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)"
    for url in (JOBS, page_of(jobs["failed"]), RUNNERS):
        assert not re.search(own, staff.get(url).content.decode())


def test_without_the_dashboard_no_page_links_to_it(staff: Client) -> None:
    job = add(status=FAILED)
    with override_settings(ROOT_URLCONF=__name__):
        page = staff.get(page_of(job))
        assert page.status_code == 200
        assert "View on site" not in page.content.decode()
        assert staff.post(page_of(job), {"action": "retry"}).status_code == 302


def test_no_field_is_editable_and_nothing_is_added(staff: Client) -> None:
    staff.force_login(User.objects.create_superuser("root"))
    job, runner = add("as it was"), add_runner("web-1")
    before = PeasyJobQueue.objects.values().get()
    for url in (page_of(job), f"{RUNNERS}{runner.pk}/change/"):
        text = staff.get(url).content.decode()
        assert not re.search(r'<(select|textarea)|type="(text|number)"|name="_save"', text)
        sent = {
            "title": "new",
            "status": COMPLETED,
            "status_msg": "new",
            "host": "new",
            "_save": "Save",
        }
        assert staff.post(url, sent).status_code == 403
    for url in (JOBS, RUNNERS):
        assert staff.get(f"{url}add/").status_code == 403
        assert staff.post(f"{url}add/", {"title": "x"}).status_code == 403
        assert f'href="{url}add/"' not in staff.get(url).content.decode()
    assert PeasyJobQueue.objects.values().get() == before


def test_a_missing_job_redirects_to_the_index(staff: Client) -> None:
    for pk in ("999", "x", "9" * 40):
        assert staff.get(f"{JOBS}{pk}/change/")["Location"] == "/admin/"


# Actions


def test_actions_change_the_selected_jobs_and_report_the_result(staff: Client) -> None:
    jobs = one_of_each()
    page = act(staff, "cancel", *jobs.values())
    assert messages_of(page) == ["3 jobs cancelled.", "3 jobs had already finished."]
    assert [statuses_by_title()[word] for word in ("enqueued", "scheduled", "ongoing")] == [
        CANCELLED
    ] * 3
    page = act(staff, "retry", *jobs.values())
    assert messages_of(page)[0] == "4 jobs enqueued again."
    assert messages_of(page)[1].startswith("2 jobs were not retried")
    assert statuses_by_title() == {
        **dict.fromkeys(jobs, ENQUEUED),
        "completed": COMPLETED,
        "ongoing": CANCELLED,
    }
    asked = act(staff, "delete", *jobs.values())
    assert "Are you sure" in asked.content.decode()
    assert "Jobs: 6" in asked.content.decode()
    assert PeasyJobQueue.objects.count() == 6
    page = act(staff, "delete", *jobs.values(), post="yes")
    assert messages_of(page) == [
        "5 jobs deleted.",
        "1 job was not deleted: it is running or no longer exists. Cancel a running job first.",
    ]
    assert list(statuses_by_title()) == ["ongoing"], "it names a runner, which is stopping it"
    assert {entry.object_repr for entry in LogEntry.objects.all()} == {
        str(job) for job in jobs.values() if job.title != "ongoing"
    }


def test_an_action_applies_to_a_job_that_has_left_the_list(staff: Client) -> None:
    job = add("claimed meanwhile", ONGOING, runner_id=add_runner().pk)
    assert messages_of(act(staff, "cancel", job, query="?status=enqueued")) == ["1 job cancelled."]


def test_all_jobs_of_a_list_can_be_selected_up_to_a_limit(
    staff: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "MAX_SELECTED", 60)
    for n in range(60):
        add(f"{n}", FAILED)
    first, other = add("first", FAILED), add("other")
    page = act(staff, "retry", first, query="?status=failed", select_across=1)
    assert messages_of(page) == ["Select at most 60 jobs."]
    first.delete()
    page = act(staff, "retry", other, query="?status=failed", select_across=1)
    assert messages_of(page) == ["60 jobs enqueued again."]


def test_the_page_of_a_job_has_the_buttons_for_its_status(staff: Client) -> None:
    jobs = one_of_each()

    def buttons(job: PeasyJobQueue) -> set[str]:
        text = staff.get(page_of(job)).content.decode()
        return {
            *re.findall('name="action" value="(.*?)"', text),
            *re.findall('class="(deletelink)"', text),
        }

    assert {word: buttons(job) for word, job in jobs.items()} == {
        "enqueued": {"cancel", "deletelink"},
        "scheduled": {"cancel", "deletelink"},
        "ongoing": {"cancel"},
        "completed": {"deletelink"},
        "failed": {"retry", "deletelink"},
        "cancelled": {"retry", "deletelink"},
    }
    page = staff.post(page_of(jobs["ongoing"]), {"action": "cancel"}, follow=True)
    assert messages_of(page) == ["1 job cancelled."]
    assert page.request["PATH_INFO"] == page_of(jobs["ongoing"])
    assert "Cancelled, still stopping" in page.content.decode()
    assert not buttons(jobs["ongoing"])
    assert messages_of(staff.post(page_of(jobs["failed"]), {"action": "retry"}, follow=True)) == [
        "1 job enqueued again."
    ]
    for action in ("", "delete", "explode"):
        assert staff.post(page_of(jobs["failed"]), {"action": action}).status_code == 403


def test_the_delete_page_never_deletes_a_running_job(staff: Client) -> None:
    jobs = one_of_each()
    for job in jobs.values():
        assert "Are you sure" in staff.get(f"{JOBS}{job.pk}/delete/").content.decode()
    page = staff.post(f"{JOBS}{jobs['failed'].pk}/delete/", {"post": "yes"}, follow=True)
    assert messages_of(page) == ["1 job deleted."]
    assert page.request["PATH_INFO"] == JOBS
    assert LogEntry.objects.get().object_repr == str(jobs["failed"])
    page = staff.post(f"{JOBS}{jobs['ongoing'].pk}/delete/", {"post": "yes"}, follow=True)
    assert messages_of(page) == [
        "1 job was not deleted: it is running or no longer exists. Cancel a running job first."
    ]
    assert set(statuses_by_title()) == {*jobs} - {"failed"}
    assert LogEntry.objects.count() == 1


def test_the_admin_api_never_deletes_a_running_job(rf: Any) -> None:
    jobs = one_of_each()
    site = admin.site.get_model_admin(PeasyJobQueue)
    site.delete_model(rf.get("/"), jobs["ongoing"])
    site.delete_queryset(rf.get("/"), PeasyJobQueue.objects.all())
    assert list(statuses_by_title()) == ["ongoing"]


# Access


@pytest.mark.parametrize("granted", [(), ("change",), ("delete",), ("change", "delete")])
def test_each_action_needs_its_permission(client: Client, granted: Any) -> None:
    client.force_login(user("view", *granted))
    allowed = {
        "cancel": "change" in granted,
        "retry": "change" in granted,
        "delete": "delete" in granted,
    }
    jobs = {"cancel": add("one"), "retry": add("two", FAILED), "delete": add("three", FAILED)}
    text = client.get(JOBS).content.decode()
    assert {action: f'value="{action}_selected"' in text for action in allowed} == allowed
    pages = "".join(client.get(page_of(job)).content.decode() for job in jobs.values())
    markup = {"cancel": 'value="cancel"', "retry": 'value="retry"', "delete": "deletelink"}
    assert {action: text in pages for action, text in markup.items()} == allowed
    if not granted:
        before = statuses_by_title()
        for action, job in jobs.items():
            act(client, action, job, post="yes")
        assert statuses_by_title() == before
    expected = {action: 302 if is_allowed else 403 for action, is_allowed in allowed.items()}
    for action in ("cancel", "retry"):
        sent = client.post(page_of(jobs[action]), {"action": action})
        assert sent.status_code == expected[action], action
    sent = client.post(f"{JOBS}{jobs['delete'].pk}/delete/", {"post": "yes"})
    assert sent.status_code == expected["delete"]
    assert ("three" in statuses_by_title()) != allowed["delete"]


def test_a_user_without_permission_sees_nothing(client: Client) -> None:
    job, runner = add("a secret title"), add_runner()
    client.force_login(user())
    for url in (
        JOBS,
        page_of(job),
        f"{JOBS}{job.pk}/delete/",
        RUNNERS,
        f"{RUNNERS}{runner.pk}/change/",
    ):
        assert client.get(url).status_code == 403
    assert "peasy" not in client.get("/admin/").content.decode()
    client.force_login(user("view", "change", "delete", staff=False))
    assert client.get(JOBS).status_code == 302


def test_an_action_needs_a_csrf_token(settings: Any) -> None:
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if "Csrf" not in name]
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(user("view", "change", "delete"))
    job = add(status=FAILED)
    sent = {"action": "retry_selected", "_selected_action": job.pk, "index": 0}
    assert strict.post(JOBS, sent).status_code == 403
    assert strict.post(page_of(job), {"action": "retry"}).status_code == 403
    assert strict.post(f"{JOBS}{job.pk}/delete/", {"post": "yes"}).status_code == 403
    assert list(statuses_by_title().values()) == [FAILED]


# Runners


def test_runners_are_listed_with_their_facts_and_jobs(client: Client) -> None:
    runner = add_runner("web-1", queues=["post", "slow"], pid=1234567)
    add_runner("web-2", lease=-1)
    started = as_field(database_now(connection)) - timedelta(seconds=65)
    job = add("resize", ONGOING, runner_id=runner.pk, started=started)
    add("claimed ahead", ONGOING, runner_id=runner.pk)
    client.force_login(User.objects.create_superuser("root"))
    for url in (RUNNERS, f"{RUNNERS}{runner.pk}/change/"):
        text = client.get(url).content.decode()
        for shown in (
            "alive",
            "web-1",
            "1234567",
            "2 × process",
            "post, slow",
            "1 min 5 s",
            "1 more job claimed",
        ):
            assert shown in text
        assert f'<a href="{page_of(job)}">resize #{job.pk}</a>' in text
    assert "web-2" in client.get(RUNNERS).content.decode()
    assert "dead" in client.get(RUNNERS).content.decode()
    assert client.post(f"{RUNNERS}{runner.pk}/delete/", {"post": "yes"}).status_code == 403


def test_jobs_of_a_runner_need_the_permission_to_view_jobs(client: Client) -> None:
    runner = add_runner()
    add("a secret title", ONGOING, runner_id=runner.pk, started=runner.started)
    person = user()
    person.user_permissions.add(Permission.objects.get(codename="view_peasyrunner"))
    client.force_login(person)
    for url in (RUNNERS, f"{RUNNERS}{runner.pk}/change/"):
        page = client.get(url)
        assert page.status_code == 200
        assert "a secret title" not in page.content.decode()


def test_djangos_admin_checks_pass() -> None:
    ids = [found.id or "" for found in checks.run_checks()]
    assert [name for name in ids if name.startswith("admin.")] == []


urlpatterns = [path("admin/", admin.site.urls)]
