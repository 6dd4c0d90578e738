"""Where a site mounts our URLs, everything finds its way: pages, parts of pages, actions, widgets and links."""

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.conf.urls.i18n import i18n_patterns
from django.contrib.auth.models import User
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.templatetags.static import static
from django.test import Client, RequestFactory
from django.test.utils import override_script_prefix
from django.urls import NoReverseMatch, include, path
from django.utils import translation

from peasy_jobs.links import token
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.urlresolution import address

pytestmark = pytest.mark.django_db


def host_page(request: HttpRequest) -> HttpResponse:
    template = "{% load peasy_jobs %}{% peasy_progress job %}"
    job = PeasyJobQueue.objects.get()
    return HttpResponse(engines["django"].from_string(template).render({"job": job}, request))


def ours(prefix: str, **options: Any) -> Any:
    return path(prefix, include("peasy_jobs.urls", **options))


def for_visitors(prefix: str, **options: Any) -> Any:
    return path(prefix, include("peasy_jobs.status_urls", **options))


def another_app(prefix: str, name: str, *patterns: Any) -> Any:
    return path(prefix, include(([*patterns, path("page/", host_page)], name)))


@pytest.fixture
def mount(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(*patterns: Any) -> None:
        module = ModuleType("tests.mounted")
        module.urlpatterns = list(patterns)
        monkeypatch.setitem(sys.modules, "tests.mounted", module)
        settings.ROOT_URLCONF = "tests.mounted"

    return put


@pytest.fixture
def job() -> PeasyJobQueue:
    return PeasyJobQueue.objects.create(title="export", job_name="shop.jobs.export")


@pytest.fixture
def staff(client: Client) -> Client:
    client.force_login(User.objects.create_superuser("root"))
    return client


def links(response: HttpResponse) -> list[str]:
    """The addresses that a page names, without those of static files."""
    found = re.findall(r'(?:href|action|hx-get|value)="(/[^"]*)"', response.content.decode())
    return [
        link.replace("&amp;", "&")
        for link in found
        if not link.startswith(("/static/", "/shop/static/"))
    ]


def assert_all_is_there(staff: Client, prefix: str, job: PeasyJobQueue) -> None:
    """Every page answers, and names addresses that are below the prefix and answer too."""
    pages = [
        "",
        "?q=export&queue=default",
        "live/",
        "statistics/",
        f"jobs/{job.pk}/",
        f"jobs/{job.pk}/live/",
    ]
    for page in [*pages, f"jobs/{job.pk}/progress/?t={token(job)}"]:
        response = staff.get(prefix + page)
        assert response.status_code == 200, page
        named = links(response)
        assert named and all(link.startswith(prefix) for link in named), named
        for link in named:
            expected = 405 if link == f"{prefix}jobs/actions/" else (200, 204)
            assert staff.get(link).status_code in (
                expected if isinstance(expected, tuple) else (expected,)
            ), link
    asked = staff.post(f"{prefix}jobs/actions/", {"action": "delete", "pk": job.pk})
    assert prefix in links(asked) and all(link.startswith(prefix) for link in links(asked))
    assert (
        staff.post(f"{prefix}jobs/actions/", {"action": "retry", "pk": job.pk})["Location"]
        == prefix
    )
    assert staff.get(f"{prefix}jobs/{job.pk}.json").json()["url"] == f"{prefix}jobs/{job.pk}/"


LAYOUTS = {
    "at the root": (ours(""), "/"),
    "under a deep prefix": (ours("deep/er/"), "/deep/er/"),
    "with a namespace": (ours("x/", namespace="jobs"), "/x/"),
    "inside another app": (another_app("ops/", "ops", ours("queue/")), "/ops/queue/"),
    "inside another app, with a namespace": (
        another_app("ops/", "ops", ours("", namespace="jobs")),
        "/ops/",
    ),
    "inside two apps": (another_app("a/", "a", another_app("b/", "b", ours("c/"))), "/a/b/c/"),
    "inside a plain include": (path("a/", include([ours("b/")])), "/a/b/"),
    "inside an app of our name": (another_app("a/", "peasy_jobs", ours("b/")), "/a/b/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_everything_works_wherever_it_is_mounted(
    layout: str, mount: Any, staff: Client, job: PeasyJobQueue
) -> None:
    pattern, prefix = LAYOUTS[layout]
    mount(pattern)
    assert_all_is_there(staff, prefix, job)
    for link, start in (
        (job.status_url, f"jobs/{job.pk}.json?t="),
        (job.progress_url, f"jobs/{job.pk}/progress/?t="),
    ):
        assert link.startswith(prefix + start)
        assert Client().get(link).status_code == 200


@pytest.mark.parametrize("outer", [None, "ops"])
def test_each_of_two_copies_keeps_to_itself(
    mount: Any, staff: Client, job: PeasyJobQueue, outer: str | None
) -> None:
    copies = ours("one/", namespace="one"), ours("two/", namespace="two")
    mount(*([another_app("ops/", outer, *copies)] if outer else copies))
    for name in ("one", "two"):
        assert_all_is_there(staff, f"/ops/{name}/" if outer else f"/{name}/", job)


BOTH = {
    "pages first": [ours("staff/"), for_visitors("jobs-of-ours/", namespace="visitors")],
    "pages last": [for_visitors("jobs-of-ours/", namespace="visitors"), ours("staff/")],
    "none is named like us": [
        for_visitors("jobs-of-ours/", namespace="b"),
        ours("staff/", namespace="a"),
        for_visitors("again/", namespace="c"),
    ],
    "in an app": [
        another_app("staff/", "ops", ours("")),
        another_app("jobs-of-ours/", "shop", for_visitors("", namespace="visitors")),
    ],
}


@pytest.mark.parametrize("both", BOTH)
def test_both_urlconfs_at_once_find_each_other(
    mount: Any, staff: Client, job: PeasyJobQueue, both: str
) -> None:
    mount(*BOTH[both])
    assert_all_is_there(staff, "/staff/", job)
    document = staff.get(f"/jobs-of-ours/jobs/{job.pk}.json").json()
    assert document["url"] == f"/staff/jobs/{job.pk}/"
    widget = Client().get(f"/jobs-of-ours/jobs/{job.pk}/progress/", {"t": token(job)})
    assert links(widget)[0].startswith(f"/jobs-of-ours/jobs/{job.pk}/progress/")
    assert Client().get(job.status_url).json()["id"] == str(job.pk)


def test_a_widget_takes_the_copy_that_is_nearest_to_its_page(
    mount: Any, job: PeasyJobQueue
) -> None:
    mount(
        ours("peasy/"), path("page/", host_page), another_app("ops/", "ops", for_visitors("jobs/"))
    )
    assert links(Client().get("/page/"))[0].startswith("/peasy/jobs/")
    assert links(Client().get("/ops/page/"))[0].startswith("/ops/jobs/jobs/")


def test_a_request_may_name_the_copy(mount: Any) -> None:
    mount(ours("one/", namespace="one"), ours("two/", namespace="two"))
    request = RequestFactory().get("/")
    request.resolver_match = SimpleNamespace(namespace="one")
    assert address("dashboard", request=request) == "/one/"
    request.current_app = "two"
    assert address("dashboard", request=request) == "/two/"


def test_a_site_of_several_languages_keeps_to_the_one_that_is_shown(
    mount: Any, staff: Client, job: PeasyJobQueue, settings: Any
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    mount(*i18n_patterns(ours("peasy/")))
    for language in ("en", "de"):
        with translation.override(language):  # the middleware does not put back what it sets
            assert_all_is_there(staff, f"/{language}/peasy/", job)
            assert job.status_url.startswith(f"/{language}/peasy/jobs/{job.pk}.json?t=")


def test_a_site_under_a_path_of_its_server_has_it_in_every_address(
    mount: Any, staff: Client, job: Any
) -> None:
    mount(another_app("ops/", "ops", ours("queue/")))
    static("")  # the storage keeps the prefix that it meets first
    with override_script_prefix("/shop/"):
        assert job.status_url.startswith(f"/shop/ops/queue/jobs/{job.pk}.json?t=")
        for page in (
            "",
            "live/",
            "statistics/",
            f"jobs/{job.pk}/",
            f"jobs/{job.pk}/progress/?t={token(job)}",
        ):
            named = links(staff.get(f"/ops/queue/{page}"))
            assert named and all(link.startswith("/shop/ops/queue/") for link in named)
        assert (
            staff.post("/ops/queue/jobs/actions/", {"action": "cancel"})["Location"]
            == "/shop/ops/queue/"
        )


def test_what_is_mounted_nowhere_has_no_address(mount: Any, job: PeasyJobQueue) -> None:
    mount(for_visitors("jobs/"))
    assert job.progress_url
    with pytest.raises(
        NoReverseMatch, match="'dashboard' is mounted nowhere: include peasy_jobs.urls"
    ):
        address("dashboard")
    mount()
    with pytest.raises(NoReverseMatch):
        job.status_url  # noqa: B018


def test_a_missing_django_htmx_is_warned_of_wherever_the_pages_are(
    mount: Any, settings: Any
) -> None:
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_htmx"]
    mount(another_app("ops/", "ops", ours("queue/")))
    assert [message.id for message in run_checks(tags=["peasy_jobs"])] == ["peasy_jobs.W004"]
