"""The dashboard in a browser: mouse, keyboard, without JavaScript, dark, on a phone."""

from collections.abc import Callable
from typing import Any

import django
import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from django.db import connection
from playwright.sync_api import Browser, Page, expect

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import CANCELLED, ENQUEUED, FAILED, ONGOING
from peasy_jobs.store.clock import as_field, database_now
from tests import jobs
from tests.e2e import urls
from tests.e2e.conftest import log_in, separate_server
from tests.e2e.site import PageClock, add, create_busy_site, row

pytestmark = pytest.mark.django_db(transaction=True)

# Its answer comes when a box has been ticked meanwhile.
POLL_SENT_BEFORE = (
    "htmx.ajax('GET', document.querySelector('#peasy-live').getAttribute('hx-get'),"
    " {target: '#peasy-live', swap: 'outerHTML', source: document.body})"
)
# Whether a list of jobs is wider than its box
CUT_OFF = (
    "[...document.querySelectorAll('.peasy-jobs')].some(box => box.scrollWidth > box.clientWidth)"
)


def table(page: Page) -> Any:
    return page.get_by_role("table")


def test_the_list_updates_itself(staff_page: Page, run_peasy: Callable[..., Any]) -> None:
    job = jobs.nothing()
    staff_page.goto("/peasy/")
    expect(row(staff_page, job)).to_contain_text("Enqueued")
    expect(staff_page.get_by_text("1 job waiting since")).to_be_visible()
    run_peasy()
    expect(row(staff_page, job)).to_contain_text("Completed", timeout=15000)
    expect(staff_page.get_by_text("waiting since")).to_have_count(0)
    expect(staff_page.get_by_text("1 runner alive")).to_be_visible()


def test_an_unchanged_list_is_not_replaced(staff_page: Page) -> None:
    create_busy_site()
    staff_page.goto("/peasy/")
    node = staff_page.locator("#peasy-live").element_handle()
    for _ in range(2):
        with staff_page.expect_response("**/live/**") as answer:
            pass
        assert answer.value.status == 204
    assert node.evaluate("node => node.isConnected")


def test_selected_rows_pause_polling_and_stay_selected(staff_page: Page) -> None:
    first, second = add("first"), add("second")
    clock = PageClock(staff_page)
    staff_page.goto("/peasy/")
    clock.pause()
    clock.assert_polling()
    box = staff_page.get_by_role("checkbox", name=f"Select first, job {first.pk}")
    note = staff_page.get_by_text("Paused while rows are selected")
    expect(note).to_be_hidden()
    box.check()
    expect(note).to_be_visible()
    PeasyJobQueue.objects.filter(pk=second.pk).update(title="renamed")
    assert clock.count_polls(60) == 0
    staff_page.evaluate(POLL_SENT_BEFORE)
    expect(row(staff_page, second)).to_contain_text("renamed")
    clock.resume()
    expect(box).to_be_checked()
    box.uncheck()
    staff_page.locator("h2").first.click()
    PeasyJobQueue.objects.filter(pk=second.pk).update(title="renamed again")
    expect(row(staff_page, second)).to_contain_text("renamed again")
    expect(note).to_be_hidden()


def test_selected_text_pauses_polling(staff_page: Page) -> None:
    job = add("first")
    clock = PageClock(staff_page)
    staff_page.goto("/peasy/")
    clock.pause()
    clock.assert_polling()
    staff_page.evaluate("getSelection().selectAllChildren(document.querySelector('.peasy-title'))")
    PeasyJobQueue.objects.filter(pk=job.pk).update(title="renamed")
    assert clock.count_polls(60) == 0
    expect(row(staff_page, job)).to_contain_text("first")
    staff_page.evaluate("getSelection().removeAllRanges()")
    clock.resume()
    expect(row(staff_page, job)).to_contain_text("renamed")


def test_a_hidden_tab_stops_polling_and_updates_when_shown(staff_page: Page) -> None:
    job = add("first")
    clock = PageClock(staff_page)
    staff_page.goto("/peasy/")
    clock.pause()
    clock.assert_polling()
    show = "hidden => {"
    show += "Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
    show += " document.dispatchEvent(new Event('visibilitychange')) }"
    staff_page.evaluate(show, True)
    assert clock.count_polls(60) == 0
    PeasyJobQueue.objects.filter(pk=job.pk).update(title="renamed")
    staff_page.evaluate(show, False)
    expect(row(staff_page, job)).to_contain_text("renamed")


def test_live_updates_stay_off_once_switched_off(staff_page: Page) -> None:
    add("first")
    clock = PageClock(staff_page)
    staff_page.goto("/peasy/")
    staff_page.get_by_role("checkbox", name="Live updates").uncheck()
    staff_page.reload()
    expect(staff_page.get_by_role("checkbox", name="Live updates")).not_to_be_checked()
    clock.pause()
    assert clock.count_polls(60) == 0
    second = add("second")
    staff_page.get_by_role("link", name="Refresh").click()
    expect(row(staff_page, second)).to_be_visible()
    third = add("third")
    staff_page.get_by_role("checkbox", name="Live updates").check()
    expect(row(staff_page, third)).to_be_visible()


@pytest.mark.parametrize("page_of", ["list", "job"])
def test_a_page_survives_a_server_outage(
    closed_pages: None, page: Page, staff: User, base_url: str, page_of: str
) -> None:
    job = add("first", ONGOING)
    log_in(page.context, staff, base_url)
    page.goto("/peasy/" if page_of == "list" else f"/peasy/jobs/{job.pk}/")
    for answer in (
        lambda route: route.fulfill(
            status=500, content_type="text/html", body="<h1>Server Error (500)</h1>"
        ),
        lambda route: route.abort(),
    ):
        page.route("**/live/**", answer)
        for _ in range(2):
            with page.expect_event("request", lambda request: "/live/" in request.url):
                pass
        expect(page.locator("main")).to_contain_text("Ongoing")
        expect(page.get_by_text("Server Error")).to_have_count(0)
        page.unroute("**/live/**")
    PeasyJobQueue.objects.filter(pk=job.pk).update(status=FAILED, completed=job.created)
    expect(page.locator("main [data-status=failed]").first).to_contain_text("Failed")


def test_jobs_can_be_cancelled_by_keyboard(staff_page: Page) -> None:
    waiting = [add("one"), add("two"), add("three")]
    staff_page.goto("/peasy/")
    keys = staff_page.keyboard
    keys.press("Tab")
    expect(staff_page.get_by_role("link", name="Skip to the content")).to_be_focused()
    keys.press("Enter")

    def tab_to(selector: str, key: str = "Tab") -> None:
        for _ in range(40):
            if staff_page.evaluate(
                "selector => document.activeElement.matches(selector)", selector
            ):
                return
            keys.press(key)
        raise AssertionError(f"{selector} is not reached with {key}")

    for job in waiting[:0:-1]:
        tab_to(f"#peasy-pk-{job.pk}")
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert staff_page.evaluate(outline) != "none", "the focus is seen"
        keys.press("Space")
    tab_to("#peasy-cancel", "Shift+Tab")
    keys.press("Enter")
    expect(staff_page.get_by_text("2 jobs cancelled.")).to_be_visible()
    assert [PeasyJobQueue.objects.get(pk=job.pk).status for job in waiting] == [
        ENQUEUED,
        CANCELLED,
        CANCELLED,
    ]


@pytest.mark.parametrize("width", [320, 1280])
def test_one_checkbox_selects_all_rows(staff_page: Page, width: int) -> None:
    add("one"), add("two")
    staff_page.set_viewport_size({"width": width, "height": 800})
    clock = PageClock(staff_page)
    staff_page.goto("/peasy/")
    clock.pause()
    clock.assert_polling()  # none comes between the two halves of the click
    box = staff_page.get_by_role("checkbox", name="Select all jobs on this page")
    box.check()
    PeasyJobQueue.objects.filter(title="one").update(title="renamed")
    staff_page.evaluate(POLL_SENT_BEFORE)
    expect(staff_page.get_by_role("link", name="renamed #")).to_be_visible()
    expect(box).to_be_checked()
    clock.resume()
    staff_page.get_by_role("button", name="Delete…").click()
    expect(staff_page.get_by_role("heading", name="Delete these 2 jobs?")).to_be_visible()
    staff_page.get_by_role("link", name="Keep").click()
    expect(row(staff_page, PeasyJobQueue.objects.get(title="two"))).to_be_visible()
    assert PeasyJobQueue.objects.count() == 2


def test_the_traceback_and_the_retry_are_two_clicks_away(staff_page: Page) -> None:
    job = create_busy_site()["failed"]
    staff_page.goto("/peasy/")
    row(staff_page, job).get_by_role("link").first.click()
    expect(staff_page.get_by_text("Traceback (most recent call last)").first).to_be_visible()
    staff_page.get_by_role("button", name="Retry").click()
    expect(staff_page.get_by_text("1 job enqueued again.")).to_be_visible()
    assert PeasyJobQueue.objects.get(pk=job.pk).status == ENQUEUED


def test_an_open_traceback_stays_open_during_updates(staff_page: Page) -> None:
    job = create_busy_site()["scheduled"]
    staff_page.goto(f"/peasy/jobs/{job.pk}/")
    details = staff_page.locator("details").first
    details.locator("summary").click()
    expect(details).not_to_have_attribute("open", "")
    PeasyJobQueue.objects.filter(pk=job.pk).update(status_msg="news")
    expect(staff_page.get_by_text("news")).to_be_visible()
    expect(details).not_to_have_attribute("open", "")


def test_an_expired_session_leads_to_the_login(
    page: Page, staff: User, base_url: str, settings: Any
) -> None:
    settings.LOGIN_URL = "admin:login"
    log_in(page.context, staff, base_url)
    page.goto("/peasy/")
    page.context.clear_cookies()
    page.wait_for_url("**/admin/login/?next=/peasy/")


def test_everything_works_without_javascript(browser: Browser, staff: User, base_url: str) -> None:
    for n in range(55):
        add(f"job {n}")
    broken = add("broken", FAILED, completed=as_field(database_now(connection)))
    context = browser.new_context(java_script_enabled=False, base_url=base_url)
    log_in(context, staff, base_url)
    page = context.new_page()
    try:
        page.goto("/peasy/")
        expect(page.get_by_label("Live updates")).to_be_hidden()
        page.get_by_role("link", name="Older").click()
        expect(page.get_by_role("link", name="job 0 #")).to_be_visible()
        page.get_by_role("link", name="Newer").click()
        page.get_by_role("link", name="Failed").click()
        expect(table(page).get_by_role("row")).to_have_count(2)
        page.get_by_role("checkbox", name="Select broken").check()
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_text("1 job enqueued again.")).to_be_visible()
        page.get_by_role("link", name="All", exact=True).click()
        page.get_by_role("searchbox").fill("broken")
        page.get_by_role("button", name="Search").click()
        page.get_by_role("link", name=f"broken #{broken.pk}").click()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("1 job cancelled.")).to_be_visible()
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("button", name="Delete").click()
        expect(page.get_by_text("1 job deleted.")).to_be_visible()
    finally:
        context.close()
    assert not PeasyJobQueue.objects.filter(pk=broken.pk).exists()


def test_no_page_has_an_accessibility_violation_or_scrolls_sideways(staff_page: Page) -> None:
    axe = Axe()

    def check_page(state: str) -> None:
        for scheme in ("light", "dark"):
            staff_page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            for width in (320, 768, 1280, 1920):
                staff_page.set_viewport_size({"width": width, "height": 800})
                fits = staff_page.evaluate(FITS)
                assert fits, f"{state} at {width} px"
                assert not staff_page.evaluate(CUT_OFF), f"{state} at {width} px"
                small = staff_page.evaluate(SMALL_TARGETS)
                assert small == [], f"{state} at {width} px"
            staff_page.set_viewport_size(
                {"width": 320 if scheme == "dark" else 1280, "height": 800}
            )
            found = axe.run(staff_page)
            assert found.violations_count == 0, f"{state}, {scheme}: {found.generate_report()}"

    staff_page.goto("/peasy/")
    check_page("no jobs")
    staff_page.goto("/peasy/statistics/")
    check_page("statistics")
    add("waits")
    staff_page.goto("/peasy/")
    check_page("no runner")
    site = create_busy_site()
    for state in ("?", "?status=failed", "?q=nothing&queue=mail", "?before=5"):
        staff_page.goto(f"/peasy/{state}")
        check_page(state)
    for state, job in site.items():
        staff_page.goto(f"/peasy/jobs/{job.pk}/")
        check_page(state)
    staff_page.goto("/peasy/")
    staff_page.locator(f"#peasy-pk-{site['failed'].pk}").check()
    check_page("selected")
    staff_page.get_by_role("button", name="Delete…").click()
    check_page("asked")
    staff_page.get_by_role("button", name="Delete").click()
    check_page("told")


# A busy browser says how wide it is before it has drawn that: it is given ten frames for it.
FITS = """async () => {
    for (let frame = 0; frame < 10; frame++) {
        if (document.documentElement.scrollWidth <= innerWidth) return true;
        await new Promise(requestAnimationFrame);
    }
    return false;
}"""
# Links inside a sentence are exempt, as WCAG 2.5.8 has it.
SMALL_TARGETS = """[...document.querySelectorAll('button, summary, label:has(input), a')]
    .filter(element => element.offsetParent)
    .filter(element => !element.matches('.peasy-skip, p:not(.peasy-back):not(.peasy-filters) > a'))
    .map(element => [element.outerHTML.slice(0, 80), element.getBoundingClientRect()])
    .filter(([html, box]) => box.width < 23.9 || box.height < 23.9).map(([html]) => html)"""


class StrictPolicy:
    """Middleware: scripts and styles need a nonce, which is offered as django-csp does it."""

    def __init__(self, get_response: Callable[..., Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.csp_nonce = "bm9uY2U"
        response = self.get_response(request)
        response["Content-Security-Policy"] = (
            "default-src 'none'; script-src 'nonce-bm9uY2U';"
            " style-src 'nonce-bm9uY2U'; connect-src 'self';"
            " img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        return response


POLICIES = [f"{__name__}.StrictPolicy"]
if django.VERSION >= (6, 0):
    POLICIES.append("django.middleware.csp.ContentSecurityPolicyMiddleware")


@pytest.mark.parametrize("policy", POLICIES)
def test_pages_comply_with_a_strict_content_security_policy(
    browser: Browser, staff: User, live_server: Any, settings: Any, policy: str
) -> None:

    settings.MIDDLEWARE = [policy, *settings.MIDDLEWARE]
    settings.SECURE_CSP = {**urls.SECURE_CSP, "form-action": ["'self'"], "base-uri": ["'none'"]}
    with separate_server(browser, staff) as page:
        site = create_busy_site()
        assert "'nonce-" in page.goto("/peasy/").headers["content-security-policy"]
        expect(page.locator("svg")).to_have_count(4)
        added = add("added later")
        expect(row(page, added)).to_be_visible()
        row(page, added).get_by_role("checkbox").check()
        page.get_by_role("button", name="Delete…").click()
        page.get_by_role("link", name="Keep").click()
        page.get_by_role("link", name="Statistics").click()
        expect(page.locator("svg")).to_have_count(4)
        page.goto(f"/peasy/jobs/{site['ongoing'].pk}/")
        PeasyJobQueue.objects.filter(pk=site["ongoing"].pk).update(status_msg="news")
        expect(page.get_by_text("news")).to_be_visible()
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("1 job cancelled.")).to_be_visible()
