"""All pages, actions, widgets and links work wherever a site mounts the URLs."""

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


def page_with_widget(request: HttpRequest) -> HttpResponse:
    template = "{% load peasy_jobs %}{% peasy_progress job %}"
    job = PeasyJobQueue.objects.get()
    return HttpResponse(engines["django"].from_string(template).render({"job": job}, request))


def pages_at(prefix: str, **options: Any) -> Any:
    return path(prefix, include("peasy_jobs.urls", **options))


def status_urls_at(prefix: str, **options: Any) -> Any:
    return path(prefix, include("peasy_jobs.status_urls", **options))


def app_at(prefix: str, name: str, *patterns: Any) -> Any:
    return path(prefix, include(([*patterns, path("page/", page_with_widget)], name)))


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
    """Return the addresses in a page, except those of static files."""
    found = re.findall(r'(?:href|action|hx-get|value)="(/[^"]*)"', response.content.decode())
    return [
        link.replace("&amp;", "&")
        for link in found
        if not link.startswith(("/static/", "/shop/static/"))
    ]


def assert_all_pages_work(staff: Client, prefix: str, job: PeasyJobQueue) -> None:
    """Assert that every page answers, and that all its links are below the prefix and answer."""
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
        assert named, named
        assert all(link.startswith(prefix) for link in named), named
        for link in named:
            expected = {405} if link == f"{prefix}jobs/actions/" else {200, 204}
            assert staff.get(link).status_code in expected, link
    asked = staff.post(f"{prefix}jobs/actions/", {"action": "delete", "pk": job.pk})
    assert prefix in links(asked)
    assert all(link.startswith(prefix) for link in links(asked))
    assert (
        staff.post(f"{prefix}jobs/actions/", {"action": "retry", "pk": job.pk})["Location"]
        == prefix
    )
    assert staff.get(f"{prefix}jobs/{job.pk}.json").json()["url"] == f"{prefix}jobs/{job.pk}/"


LAYOUTS = {
    "at the root": (pages_at(""), "/"),
    "under a deep prefix": (pages_at("deep/er/"), "/deep/er/"),
    "with a namespace": (pages_at("x/", namespace="jobs"), "/x/"),
    "inside another app": (app_at("ops/", "ops", pages_at("queue/")), "/ops/queue/"),
    "inside another app, with a namespace": (
        app_at("ops/", "ops", pages_at("", namespace="jobs")),
        "/ops/",
    ),
    "inside two apps": (app_at("a/", "a", app_at("b/", "b", pages_at("c/"))), "/a/b/c/"),
    "inside a plain include": (path("a/", include([pages_at("b/")])), "/a/b/"),
    "inside an app of the same name": (app_at("a/", "peasy_jobs", pages_at("b/")), "/a/b/"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_pages_work_in_any_layout(
    layout: str, mount: Any, staff: Client, job: PeasyJobQueue
) -> None:
    pattern, prefix = LAYOUTS[layout]
    mount(pattern)
    assert_all_pages_work(staff, prefix, job)
    for link, start in (
        (job.status_url, f"jobs/{job.pk}.json?t="),
        (job.progress_url, f"jobs/{job.pk}/progress/?t="),
    ):
        assert link.startswith(prefix + start)
        assert Client().get(link).status_code == 200


@pytest.mark.parametrize("outer", [None, "ops"])
def test_each_of_two_copies_links_to_itself(
    mount: Any, staff: Client, job: PeasyJobQueue, outer: str | None
) -> None:
    copies = pages_at("one/", namespace="one"), pages_at("two/", namespace="two")
    mount(*([app_at("ops/", outer, *copies)] if outer else copies))
    for name in ("one", "two"):
        assert_all_pages_work(staff, f"/ops/{name}/" if outer else f"/{name}/", job)


BOTH = {
    "pages first": [pages_at("staff/"), status_urls_at("shop-jobs/", namespace="visitors")],
    "pages last": [status_urls_at("shop-jobs/", namespace="visitors"), pages_at("staff/")],
    "no default namespace": [
        status_urls_at("shop-jobs/", namespace="b"),
        pages_at("staff/", namespace="a"),
        status_urls_at("again/", namespace="c"),
    ],
    "in an app": [
        app_at("staff/", "ops", pages_at("")),
        app_at("shop-jobs/", "shop", status_urls_at("", namespace="visitors")),
    ],
}


@pytest.mark.parametrize("both", BOTH)
def test_pages_and_status_urls_find_each_other(
    mount: Any, staff: Client, job: PeasyJobQueue, both: str
) -> None:
    mount(*BOTH[both])
    assert_all_pages_work(staff, "/staff/", job)
    document = staff.get(f"/shop-jobs/jobs/{job.pk}.json").json()
    assert document["url"] == f"/staff/jobs/{job.pk}/"
    widget = Client().get(f"/shop-jobs/jobs/{job.pk}/progress/", {"t": token(job)})
    assert links(widget)[0].startswith(f"/shop-jobs/jobs/{job.pk}/progress/")
    assert Client().get(job.status_url).json()["id"] == str(job.pk)


def test_a_widget_uses_the_copy_nearest_to_its_page(mount: Any, job: PeasyJobQueue) -> None:
    mount(
        pages_at("peasy/"),
        path("page/", page_with_widget),
        app_at("ops/", "ops", status_urls_at("jobs/")),
    )
    assert links(Client().get("/page/"))[0].startswith("/peasy/jobs/")
    assert links(Client().get("/ops/page/"))[0].startswith("/ops/jobs/jobs/")


def test_current_app_selects_the_copy(mount: Any) -> None:
    mount(pages_at("one/", namespace="one"), pages_at("two/", namespace="two"))
    request = RequestFactory().get("/")
    request.resolver_match = SimpleNamespace(namespace="one")
    assert address("dashboard", request=request) == "/one/"
    request.current_app = "two"
    assert address("dashboard", request=request) == "/two/"


def test_links_keep_the_language_of_the_page(
    mount: Any, staff: Client, job: PeasyJobQueue, settings: Any
) -> None:
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.middleware.locale.LocaleMiddleware"]
    mount(*i18n_patterns(pages_at("peasy/")))
    for language in ("en", "de"):
        with translation.override(language):  # the middleware does not put back what it sets
            assert_all_pages_work(staff, f"/{language}/peasy/", job)
            assert job.status_url.startswith(f"/{language}/peasy/jobs/{job.pk}.json?t=")


def test_links_include_the_script_prefix(mount: Any, staff: Client, job: Any) -> None:
    mount(app_at("ops/", "ops", pages_at("queue/")))
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
            assert named
            assert all(link.startswith("/shop/ops/queue/") for link in named)
        assert (
            staff.post("/ops/queue/jobs/actions/", {"action": "cancel"})["Location"]
            == "/shop/ops/queue/"
        )


def test_a_view_that_is_not_mounted_raises_no_reverse_match(mount: Any, job: PeasyJobQueue) -> None:
    mount(status_urls_at("jobs/"))
    assert job.progress_url
    with pytest.raises(
        NoReverseMatch, match="'dashboard' is mounted nowhere: include peasy_jobs.urls"
    ):
        address("dashboard")
    mount()
    with pytest.raises(NoReverseMatch):
        job.status_url  # noqa: B018


def test_a_missing_django_htmx_is_reported_in_any_layout(mount: Any, settings: Any) -> None:
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "django_htmx"]
    mount(app_at("ops/", "ops", pages_at("queue/")))
    assert [message.id for message in run_checks(tags=["peasy_jobs"])] == ["peasy_jobs.W004"]
