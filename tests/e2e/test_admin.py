"""Jobs and runners in Django's admin, in a browser: mouse, keyboard, dark, on a phone."""

from typing import Any

import django
import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import Browser, Page, expect

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import CANCELLED, ENQUEUED
from tests.e2e.conftest import separate_server
from tests.e2e.site import add, create_busy_site

pytestmark = pytest.mark.django_db(transaction=True)

# The parts of these pages that are not Django's.
OURS = ("#result_list", ".peasy-in-admin", ".readonly", "#changelist-filter", ".paginator")
JOBS, RUNNERS = "/admin/peasy_jobs/peasyjobqueue/", "/admin/peasy_jobs/peasyrunner/"


@pytest.fixture(autouse=True)
def with_an_icon(settings: Any) -> None:
    # Browsers ask for a favicon, and the admin of Django 5.2 names none.
    settings.ROOT_URLCONF = "tests.e2e.urls"


def test_a_failed_job_can_be_found_read_and_retried(staff_page: Page) -> None:
    job = create_busy_site()["failed"]
    staff_page.goto("/admin/")
    staff_page.get_by_role("link", name="Jobs", exact=True).first.click()
    staff_page.get_by_role("link", name="Failed", exact=True).click()
    staff_page.get_by_role("link", name=f"#{job.pk}").click()
    expect(staff_page.get_by_text("Traceback (most recent call last)").first).to_be_visible()
    staff_page.get_by_role("button", name="Retry").click()
    expect(staff_page.get_by_text("1 job enqueued again.")).to_be_visible()
    assert PeasyJobQueue.objects.get(pk=job.pk).status == ENQUEUED
    staff_page.get_by_role("link", name="View on site").click()
    expect(staff_page).to_have_url(f"{staff_page.url.partition('/peasy/')[0]}/peasy/jobs/{job.pk}/")


def test_jobs_can_be_cancelled_and_deleted_by_keyboard(staff_page: Page) -> None:
    jobs = [add("one"), add("two"), add("three")]
    keys = staff_page.keyboard

    def tab_to(selector: str, key: str = "Tab") -> None:
        for _ in range(60):
            if staff_page.evaluate(
                "selector => document.activeElement.matches(selector)", selector
            ):
                return
            keys.press(key)
        raise AssertionError(f"{selector} is not reached with {key}")

    def do(action: str) -> None:
        staff_page.goto(JOBS)
        for job in jobs[:0:-1]:
            tab_to(f"input[name=_selected_action][value='{job.pk}']")
            keys.press("Space")
        tab_to("select[name=action]", "Shift+Tab")
        keys.type(action)
        tab_to("button[name=index]")
        keys.press("Enter")

    do("Cancel")
    expect(staff_page.get_by_text("2 jobs cancelled.")).to_be_visible()
    assert [PeasyJobQueue.objects.get(pk=job.pk).status for job in jobs] == [
        ENQUEUED,
        CANCELLED,
        CANCELLED,
    ]
    do("Delete")
    expect(staff_page.get_by_text("Are you sure")).to_be_visible()
    tab_to("input[type=submit]")
    keys.press("Enter")
    expect(staff_page.get_by_text("2 jobs deleted.")).to_be_visible()
    assert PeasyJobQueue.objects.count() == 1


def test_pages_have_no_accessibility_violation_in_light_and_dark(staff_page: Page) -> None:
    site, axe = create_busy_site(), Axe()
    runner = site["ongoing"].runner_id
    addresses = [
        JOBS,
        RUNNERS,
        f"{RUNNERS}{runner}/change/",
        *(f"{JOBS}{job.pk}/change/" for job in site.values()),
    ]
    for scheme in ("light", "dark"):
        staff_page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for address in addresses:
            staff_page.goto(
                address
            )  # after the scheme: the admin's links take their new colour slowly
            for width in (320, 1280):
                staff_page.set_viewport_size({"width": width, "height": 800})
                assert not staff_page.evaluate(
                    "document.documentElement.scrollWidth > innerWidth"
                ), (address, width)
                found = axe.run(staff_page, context=[[ours] for ours in OURS]).response[
                    "violations"
                ]
                nodes = [
                    (violation["id"], [node["html"] for node in violation["nodes"]])
                    for violation in found
                ]
                assert nodes == [], (address, scheme, width)


def test_the_list_of_jobs_fits_a_small_screen_beside_navigation_and_filters(
    staff_page: Page, staff: User
) -> None:
    create_busy_site()
    names = {
        "job_name": "shop.fulfilment.tasks.send_the_confirmation_to_the_customer",
        "queue_name": "confirmations",
    }
    message = "SMTPServerDisconnected: Connection unexpectedly closed"
    PeasyJobQueue.objects.update(**names, user=staff, status_msg=message)
    staff_page.set_viewport_size({"width": 1280, "height": 800})
    staff_page.goto(JOBS)
    width, room = staff_page.locator(".results").evaluate(
        "node => [node.scrollWidth, node.clientWidth]"
    )
    assert width <= room


@pytest.mark.skipif(
    django.VERSION < (6, 1),
    reason="The admin puts nonces on its own from Django 6.1 on: goes when 5.2 and 6.0 do.",
)
def test_pages_comply_with_a_policy_of_nonces_only(
    browser: Browser, staff: User, live_server: Any, settings: Any
) -> None:
    from django.utils.csp import CSP

    settings.MIDDLEWARE = [
        "django.middleware.csp.ContentSecurityPolicyMiddleware",
        *settings.MIDDLEWARE,
    ]
    settings.SECURE_CSP = {
        "default-src": [CSP.NONE],
        **{name: [CSP.NONCE] for name in ("script-src", "style-src")},
        **{name: [CSP.SELF] for name in ("img-src", "form-action", "connect-src")},
    }
    processors = settings.TEMPLATES[0]["OPTIONS"]["context_processors"]
    options = {"context_processors": [*processors, "django.template.context_processors.csp"]}
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "OPTIONS": options}]
    with separate_server(browser, staff) as page:
        job = create_busy_site()["failed"]
        for address in (RUNNERS, JOBS, f"{JOBS}{job.pk}/change/"):
            page.goto(address)
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_text("1 job enqueued again.")).to_be_visible()
