"""The progress widget and the JSON document in a browser, on hostile pages and in outages."""

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import django
import pytest
from axe_playwright_python.sync_playwright import Axe
from django.utils import timezone
from playwright.sync_api import Locator, Page, Request, expect

from peasy_jobs import conf
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.web import widget
from tests import jobs
from tests.e2e import urls
from tests.e2e.site import change
from tests.manual import blocks
from tests.rows import finished, row, running
from tests.waiting import DEADLINE

pytestmark = pytest.mark.django_db(transaction=True)

SOON = 0.1  # seconds between two polls here, where a real widget takes 2
STATES: dict[str, dict[str, Any]] = {
    "enqueued": {"status": "Q"},
    "scheduled": {"status": "S", "run_after": timezone.now() + timedelta(hours=3)},
    "ongoing": {
        "status": "O",
        "extra": {"progress": 40},
        "status_msg": "Exporting rows: 40 of 100",
    },
    "indeterminate": {"status": "O", "status_msg": "Counting"},
    "completed": {
        "status": "C",
        "extra": {"progress": 100},
        "status_msg": "Exporting rows: 100 of 100",
    },
    "failed": {"status": "F", "status_msg": "Exporting rows: 40 of 100", "extra": {"progress": 40}},
    "cancelled": {"status": "X"},
}


def make(**columns: Any) -> PeasyJobQueue:
    return PeasyJobQueue.objects.create(
        **{"title": "Export 17", "job_name": "shop.jobs.export", **columns}
    )


def address(name: str, *jobs: PeasyJobQueue) -> str:
    return f"/page/{name}/?{'&'.join(f'job={job.pk}' for job in jobs)}"


def body(page: Page, job: PeasyJobQueue, prefix: str = "") -> Locator:
    return page.locator(f"#{prefix}peasy-job-{job.pk}-body")


def refresh(page: Page) -> None:
    """Let every widget poll now."""
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")


def hide(page: Page, hidden: bool) -> None:
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", {value: hidden, configurable: true});
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


class Polls(list[Request]):
    """The polls of a page, in order, as soon as they are answered."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self.page, self.sent = page, 0
        page.on("request", self.count)
        page.on(
            "requestfinished", lambda request: "/progress/" in request.url and self.append(request)
        )
        page.on(
            "requestfailed", lambda request: "/progress/" in request.url and self.append(request)
        )

    def count(self, request: Request) -> None:
        self.sent += "/progress/" in request.url

    def wait(self, more: int) -> None:
        wanted, deadline = len(self) + more, time.monotonic() + DEADLINE
        while len(self) < wanted:
            assert time.monotonic() < deadline, f"{len(self)} of {wanted} polls"
            self.page.wait_for_timeout(10)

    def assert_none(self) -> None:
        """Assert that no poll is sent in the time of five."""
        self.page.wait_for_timeout(1000 * SOON)
        deadline = time.monotonic() + DEADLINE
        while self.sent > len(self):  # one is being answered
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(10)
        before = self.sent
        self.page.wait_for_timeout(1000 * SOON * 5)
        assert self.sent == before


@pytest.fixture(autouse=True)
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.ROOT_URLCONF = "tests.e2e.urls"
    settings.SECURE_CSP = urls.SECURE_CSP
    monkeypatch.setattr(widget, "POLL_STEPS", (widget.PollStep(float("inf"), SOON),))


@pytest.fixture
def console(page: Page) -> list[str]:
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    return messages


@pytest.fixture
def polls(page: Page) -> Iterator[Polls]:
    yield Polls(page)
    page.goto("about:blank")  # nothing polls while the tables are emptied


@pytest.mark.parametrize("name", ["plain", "include", "hostile", "htmx4", "strict"])
def test_a_widget_follows_its_job_to_the_end_and_stops(page, polls, console, name):
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    job = make(status="Q")
    page.goto(address(name, job))
    bar = page.get_by_role("progressbar", name="Export 17")
    expect(body(page, job)).to_contain_text("Enqueued")
    change(job, status="O", extra={"progress": 50}, status_msg="half")
    expect(bar).to_have_js_property("value", 50)
    expect(body(page, job)).to_contain_text("Ongoing 50 %")
    expect(page.locator(f"#peasy-job-{job.pk}-live")).to_have_text("Export 17: Ongoing, 50 %")
    change(job, status="C", status_msg="all")
    expect(body(page, job)).to_contain_text("Completed")
    expect(bar).to_have_js_property("value", 100)
    expect(page.get_by_role("status")).to_have_text("Export 17: Completed")
    polls.assert_none()
    assert dialogs == []
    assert console == []
    expect(page).to_have_url(re.compile(f"/page/{name}/"))
    expect(page.get_by_role("heading", name="A shop")).to_be_visible()


@pytest.mark.parametrize("name", ["plain", "htmx4"])
@pytest.mark.parametrize(
    ("columns", "text"),
    [({"status": "F"}, "Failed"), ({"status": "X"}, "Cancelled"), (None, "no longer available")],
)
def test_a_widget_stops_polling_however_its_job_ends(page, polls, name, columns, text):
    job = make(status="O", extra={"progress": 40})
    page.goto(address(name, job))
    polls.wait(1)
    change(job, **columns) if columns else PeasyJobQueue.objects.all().delete()
    expect(body(page, job)).to_contain_text(text)
    expect(page.get_by_role("status")).to_contain_text(text)
    expect(page.get_by_role("progressbar")).to_have_count(0)
    polls.assert_none()


def test_a_widget_polls_until_a_cancelled_job_has_stopped(page, polls):
    job = make(status="X", runner_id=1)
    page.goto(address("plain", job))
    polls.wait(2)
    change(job, runner_id=None)
    expect(page.locator("[data-peasy-poll]")).to_have_count(0)
    polls.assert_none()


def test_a_widget_stops_polling_when_its_link_expires(page, polls, monkeypatch):
    job = make(status="O")
    page.goto(address("plain", job))
    polls.wait(1)
    tomorrow = time.time() + conf.get().token_max_age + 1
    monkeypatch.setattr("django.core.signing.time", SimpleNamespace(time=lambda: tomorrow))
    expect(body(page, job)).to_contain_text("This job is no longer available.")
    polls.assert_none()


@pytest.mark.parametrize("name", ["plain", "htmx4"])
def test_an_unchanged_widget_is_not_replaced(page, polls, name):
    job = make(status="O", extra={"progress": 40})
    page.goto(address(name, job))
    before = body(page, job).element_handle()
    polls.wait(3)
    assert {request.response().status for request in polls} == {204}
    assert before.evaluate("node => node.isConnected")
    assert page.get_by_role("status").inner_text() == ""


@pytest.mark.parametrize("name", ["plain", "htmx4"])
def test_a_hidden_tab_stops_polling(page, polls, name):
    job = make(status="O")
    page.goto(address(name, job))
    polls.wait(1)
    hide(page, True)
    polls.assert_none()


@pytest.mark.parametrize("name", ["plain", "htmx4"])
def test_a_tab_updates_at_once_when_shown_again(page, polls, monkeypatch, name):
    monkeypatch.setattr(widget, "POLL_STEPS", (widget.PollStep(float("inf"), 3600),))
    job = make(status="O")
    page.goto(address(name, job))
    hide(page, True)
    change(job, status="C")
    hide(page, False)
    expect(body(page, job)).to_contain_text("Completed")
    assert polls.sent == 1


def test_a_widget_polls_less_often_the_longer_nothing_changes(page, polls, monkeypatch):
    # With the real intervals. Browser and server have the same clock, which the test sets.
    monkeypatch.undo()
    begun, passed = time.time(), [0.0]
    monkeypatch.setattr(widget, "time", lambda: begun + passed[0])
    job = make(status="O")
    page.clock.install(time=begun)
    page.goto(address("plain", job))
    page.clock.pause_at(begun + 60)  # in the future when the call arrives
    seen: dict[int, int] = {}
    for minute in (0, 5, 30, 90):
        passed[0] = 60.0 * minute
        with page.expect_response(lambda response: "/progress/" in response.url):
            refresh(page)
        trigger = body(page, job)
        expect(trigger).to_have_attribute(
            "hx-trigger", re.compile(f"every {widget._interval(60 * minute)}s")
        )
        before = len(polls)
        for _ in range(60):
            page.clock.run_for(1000)
            while polls.sent > len(polls):
                page.wait_for_timeout(2)
        seen[minute] = len(polls) - before
    assert seen[0] >= 20, seen
    assert 9 <= seen[5] <= 13, seen
    assert 3 <= seen[30] <= 5, seen
    assert seen[90] <= 2, seen


@pytest.mark.parametrize("name", ["plain", "swaps_errors", "htmx4"])
def test_a_widget_survives_a_server_outage(page, polls, name):
    job = make(status="O", extra={"progress": 40})
    page.goto(address(name, job))
    for answer in (
        lambda route: route.fulfill(
            status=500, content_type="text/html", body="<h1>Server Error (500)</h1>"
        ),
        lambda route: route.fulfill(
            status=404, content_type="text/html", body="<h1>Not Found</h1>"
        ),
        lambda route: route.abort(),
    ):
        page.route("**/progress/**", answer)
        polls.wait(2)
        expect(body(page, job)).to_contain_text("Ongoing 40 %")
        expect(page.get_by_role("heading")).to_have_text("A shop")
        page.unroute("**/progress/**")
    change(job, status="C")
    expect(body(page, job)).to_contain_text("Completed")
    polls.assert_none()


def test_several_widgets_on_a_page_are_independent(page, polls):
    first, second = make(status="O", title="First"), make(status="O", title="Second")
    page.goto(address("twice", first, second))
    change(first, status="O", extra={"progress": 25}, status_msg="x")
    change(second, status="C")
    expect(body(page, first)).to_contain_text("Ongoing 25 %")
    expect(body(page, first, "b-")).to_contain_text("Ongoing 25 %")
    expect(body(page, second)).to_contain_text("Completed")
    expect(page.locator(f"#b-peasy-job-{first.pk}-live")).to_have_text("First: Ongoing, 25 %")
    ids = page.locator("[id]").evaluate_all("nodes => nodes.map((node) => node.id)")
    assert len(ids) == len(set(ids))
    polls.wait(4)
    assert {request.url.split("/jobs/")[1].split("/")[0] for request in polls[-3:]} == {
        str(first.pk)
    }
    expect(page.locator(".peasy-job")).to_have_count(3)


def test_each_quarter_of_the_progress_is_read_out(page):
    job = make(status="O", extra={"progress": 26})
    page.goto(address("plain", job))
    live = page.get_by_role("status")
    for percent in (27, 40):
        change(job, extra={"progress": percent})
        expect(body(page, job)).to_contain_text(f"Ongoing {percent} %")
        assert live.inner_text() == ""
    change(job, extra={"progress": 51})
    expect(live).to_have_text("Export 17: Ongoing, 51 %")


def test_a_page_receives_an_event_when_the_job_ends(page):
    job = make(status="O")
    page.goto(address("plain", job))
    page.evaluate(
        "document.addEventListener('peasy:done', (event) => { window.ended = event.detail })"
    )
    change(job, status="F")
    page.wait_for_function("window.ended")
    assert page.evaluate("[window.ended.id, window.ended.status]") == [str(job.pk), "failed"]


PAYLOADS = [
    "<script>hacked()</script>",
    "</p></section><img src=x onerror=hacked()>",
    '"><svg onload=hacked()>',
    "' autofocus onfocus=hacked() x='",
    "<b hx-get=/start/1/ hx-trigger=load hx-on::load=hacked()>",
    "<div hx-swap-oob='innerHTML:h1'>hacked</div>",
    "{{ 7|add:7 }}{% debug %}javascript:hacked()",
    "\u2028<!--<script>",
    "<template shadowrootmode=open><script>hacked()</script></template>",
]


@pytest.mark.parametrize("name", ["plain", "htmx4"])
def test_texts_of_a_job_cannot_inject_into_the_page(page, polls, name):
    ran: list[str] = []
    page.expose_function("hacked", lambda: ran.append("hacked"))
    text = "".join(PAYLOADS)[:255]
    made = [make(title=text, status="O", status_msg="at first", extra={"progress": text})]
    made += [
        make(title=payload, status="O", status_msg=payload, extra={payload: payload})
        for payload in PAYLOADS
    ]
    page.goto(address(name, *made))
    for job in made[1:]:
        change(job, status_msg=job.status_msg + " ")
    change(made[0], status="C", status_msg=text)
    expect(body(page, made[0])).to_contain_text("Completed")
    polls.wait(10)
    for job in made:
        message = body(page, job).locator(".peasy-job-message").text_content()
        assert message.strip() == job.status_msg.replace("at first", text).strip()
        assert page.locator(f"#peasy-job-{job.pk}-label").text_content() == job.title
    assert page.locator("main img, main svg, main script, main b, main template").count() == 0
    assert ran == []
    assert page.get_by_role("heading").all_inner_texts() == ["A shop"]


@pytest.mark.parametrize("state", STATES)
def test_a_widget_is_accessible_in_every_state(page, state):
    job = make(**STATES[state])
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(address("plain", job))
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()


def test_a_widget_is_accessible_without_its_job_and_when_shown_twice(page):
    gone, twice = make(status="O"), make(status="O")
    page.goto(address("twice", twice, gone))
    gone_pk = gone.pk
    gone.delete()
    expect(page.locator(f"#peasy-job-{gone_pk}-body")).to_contain_text("no longer")
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_a_screen_reader_finds_name_status_and_progress_bar(page):
    page.goto(
        address("plain", make(**STATES["ongoing"]), make(title="Import 4", **STATES["failed"]))
    )
    expect(page.get_by_role("main")).to_match_aria_snapshot("""
        - heading "A shop" [level=1]
        - group "Export 17":
          - paragraph: Export 17
          - status
          - paragraph: Ongoing 40 %
          - progressbar "Export 17"
          - paragraph: "Exporting rows: 40 of 100"
        - group "Import 4":
          - paragraph: Import 4
          - status
          - paragraph: Failed
          - paragraph: "Exporting rows: 40 of 100"
    """)


def test_a_job_without_progress_has_an_indeterminate_bar(page):
    page.goto(address("plain", make(**STATES["indeterminate"])))
    expect(page.get_by_role("progressbar")).to_have_js_property("position", -1)


def test_a_widget_follows_the_colour_scheme_of_the_page(page):
    page.goto(address("plain", make(**STATES["ongoing"])))
    seen = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen[scheme] = page.locator(".peasy-job").evaluate(
            "node => getComputedStyle(node).backgroundColor"
        )
    assert seen == {"light": "rgb(255, 255, 255)", "dark": "rgb(27, 31, 36)"}
    page.evaluate("document.querySelector('meta[name=color-scheme]').content = 'light'")
    expect(page.locator(".peasy-job")).to_have_css("background-color", "rgb(255, 255, 255)")
    page.evaluate("document.documentElement.style.setProperty('--peasy-surface', 'rgb(1, 2, 3)')")
    expect(page.locator(".peasy-job")).to_have_css("background-color", "rgb(1, 2, 3)")


def test_a_widget_has_margins_unless_the_site_removes_them(page):
    page.goto(address("plain", make(), make()))
    page.evaluate(
        "for (const where of ['prepend', 'append'])"
        " document.querySelector('main')[where]("
        "Object.assign(document.createElement('div'), {textContent: 'text'}))"
    )
    page.locator("h1").evaluate("node => node.remove()")
    boxes = (
        "nodes => nodes.map(node => node.getBoundingClientRect())"
        ".map(({ top, bottom }) => [top, bottom])"
    )

    def gaps() -> list[float]:
        parts = page.locator("main > *").evaluate_all(boxes)
        return [after[0] - before[1] for before, after in pairwise(parts)]

    assert gaps() == [16, 16, 16]
    page.locator("head").evaluate(
        "node => node.insertAdjacentHTML('afterbegin', '<style>div { margin: 0 }</style>')"
    )
    assert gaps() == [0, 0, 0]


@pytest.mark.parametrize("colours", ["none", "active"])
def test_reduced_motion_is_respected(page, colours):
    page.emulate_media(reduced_motion="reduce", forced_colors=colours)
    page.goto(address("plain", make(**STATES["indeterminate"]), make(**STATES["enqueued"])))
    bar, empty = page.get_by_role("progressbar").all()
    assert page.evaluate("document.getAnimations().length") == 0
    expect(bar).to_have_css("appearance", "none")
    # Drawn over the empty one, to compare what is painted and nothing else.
    empty.evaluate(
        "(node, bar) => node.replaceWith(Object.assign(bar.cloneNode(), { value: 0 }))",
        bar.element_handle(),
    )
    assert bar.screenshot() != page.get_by_role("progressbar").nth(1).screenshot()


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "gone"])
def test_the_layout_does_not_shift_from_first_state_to_last(page, end):
    job = make(status="Q")
    page.goto(address("plain", job))
    heights = []
    for state in ("scheduled", "ongoing", "indeterminate", end):
        drawn = body(page, job).element_handle()
        if state == "gone":
            PeasyJobQueue.objects.all().delete()
        else:
            change(job, **{"extra": None, "status_msg": "", **STATES[state]})
        page.wait_for_function("node => !node.isConnected", arg=drawn)
        heights.append(round(page.locator(".peasy-job").bounding_box()["height"]))
    assert len(set(heights)) == 1, heights


def test_a_finished_widget_takes_only_the_space_it_needs(page):
    heights = []
    for state in ("ongoing", "completed", "failed", "cancelled"):
        page.goto(address("plain", make(**STATES[state])))
        heights.append(round(page.locator(".peasy-job").bounding_box()["height"]))
    assert heights[0] == heights[1] > heights[2] > heights[3], heights


@pytest.mark.parametrize("width", [320, 1920])
def test_a_widget_fits_narrow_and_wide_pages(page, width):
    page.set_viewport_size({"width": width, "height": 600})
    word = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft"
    page.goto(
        address("plain", make(title=word, status="O", status_msg=word * 2, extra={"progress": 7}))
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".peasy-job").bounding_box()["width"] <= 640


@pytest.mark.skipif(
    django.VERSION < (6, 0),
    reason="Django has a content security policy of its own from 6.0 on: goes with 5.2.",
)
def test_the_test_policy_matches_djangos(page):
    response = page.goto(address("strict", make(status="O")))
    assert "'nonce-" in response.headers["content-security-policy"]


def snippet() -> str:
    (code,) = blocks("js")
    return code


def watch(page: Page, job: PeasyJobQueue) -> Callable[[], Any]:
    """Start the loop of the manual; what is returned says what it has shown and how it ended."""
    page.goto(address("empty"))
    page.add_script_tag(content=snippet())
    page.evaluate(
        """async (start) => {
            window.shown = [];
            const begun = await (await fetch(start)).json();
            watch(begun, (job) => shown.push([job.status, job.progress]))
                .then((end) => { window.end = end });
        }""",
        f"/start/{job.pk}/",
    )
    return lambda: page.evaluate("[shown, window.end?.status ?? window.end]")


def test_the_polling_loop_of_the_manual_is_short():
    assert len(snippet().splitlines()) <= 15


def test_the_polling_loop_of_the_manual_follows_a_job_to_its_end(page):
    job = make(status="O", extra={"progress": 40})
    asked: list[Request] = []
    page.on("request", lambda request: ".json" in request.url and asked.append(request))
    state = watch(page, job)
    page.wait_for_function("shown.length > 2")
    change(job, status="C")
    page.wait_for_function("window.end")
    shown, end = state()
    assert shown[0] == ["ongoing", 40]
    assert shown[-1] == ["completed", 100]
    assert end == "completed"
    page.wait_for_timeout(1000 * SOON * 3)
    assert len(asked) == len(shown)


def test_the_polling_loop_of_the_manual_obeys_retry_after(page, monkeypatch):
    monkeypatch.setattr(widget, "POLL_STEPS", (widget.PollStep(float("inf"), 3600),))
    page.clock.install()
    job = make(status="O")
    state = watch(page, job)
    page.wait_for_function("shown.length == 1")
    page.clock.fast_forward("59:00")
    page.wait_for_timeout(200)
    assert len(state()[0]) == 1
    page.clock.fast_forward("02:00")
    page.wait_for_function("shown.length == 2")


def test_the_polling_loop_of_the_manual_survives_errors_and_ends_without_the_job(page):
    job = make(status="O")
    page.clock.install()
    state = watch(page, job)
    for answer in (
        lambda route: route.abort(),
        lambda route: route.fulfill(status=502, body="<h1>Bad Gateway</h1>"),
    ):
        page.wait_for_function("shown.length > 0")
        page.route("**/*.json*", answer)
        with page.expect_request("**/*.json*"):
            page.clock.run_for(10000)
        page.unroute("**/*.json*")
        page.evaluate("shown.length = 0")
        page.clock.run_for(10000)
    page.wait_for_function("shown.length > 0")
    job.delete()
    page.clock.run_for(10000)
    page.wait_for_function("window.end === null")
    assert state()[1] is None


@pytest.mark.parametrize("name", ["plain", "htmx4"])
def test_a_widget_follows_a_job_of_a_real_runner(page, polls, run_peasy, tmp_path, name):
    job = jobs.progress_then_wait(str(tmp_path / "go"))
    page.goto(address(name, job))
    expect(body(page, job)).to_contain_text("Enqueued")
    run_peasy("--worker-type", "thread")
    running(job)
    expect(body(page, job)).to_contain_text("Ongoing 50 %")
    expect(body(page, job)).to_contain_text("half way")
    (tmp_path / "go").touch()
    finished(job)
    expect(body(page, job)).to_contain_text("Completed")
    expect(page.get_by_role("progressbar")).to_have_js_property("value", 100)
    polls.assert_none()
    assert row(job).status == PeasyJobQueue.COMPLETED
