"""Reading the dashboard: screen reader, colour schemes, reduced motion, hostile texts."""

import pytest
from django.db import connection
from playwright.sync_api import Page, expect

from peasy_jobs.models import PeasyMinute
from peasy_jobs.statuses import COMPLETED, FAILED, ONGOING
from peasy_jobs.store.clock import database_now
from tests.e2e.site import add, change, create_busy_site, row
from tests.e2e.test_widget import PAYLOADS

pytestmark = pytest.mark.django_db(transaction=True)


# The height of a chart's letters in pixels of the screen, and which texts it cuts off.
CHART_LABELS = """chart => {
    const scale = chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;
    const texts = [...chart.querySelectorAll("text")];
    const inside = ({ x, width }) => x >= 0 && x + width <= 320;
    return [scale * parseFloat(getComputedStyle(texts[0]).fontSize),
        texts.filter(text => !inside(text.getBBox())).map(text => text.textContent)];
}"""


# What a screen reader meets


# What a screen reader finds: the list with one job, and the page of a failed job.
LIST = """
- link "Skip to the content"
- banner:
  - link "Jobs"
  - checkbox "Live updates" [checked]
  - link "Statistics"
  - link "Refresh"
- main:
  - heading "Jobs" [level=1]
  - search:
    - searchbox "Search by number, title, function or message"
    - button "Search"
  - status
  - navigation "Status":
    - list:
      - listitem:
        - link "All"
      - listitem:
        - link "Enqueued 1"
      - listitem:
        - link "Scheduled 0"
      - listitem:
        - link "Ongoing 0"
      - listitem:
        - link "Completed 0"
      - listitem:
        - link "Failed 0"
      - listitem:
        - link "Cancelled 0"
    - link "0 runners alive"
  - group "Selected jobs":
    - button "Cancel"
    - button "Retry"
    - button "Delete…"
  - table "Jobs, newest first":
    - caption: Jobs, newest first
    - rowgroup:
      - row:
        - columnheader "Select Select all jobs on this page":
          - checkbox "Select all jobs on this page"
        - columnheader "Status"
        - columnheader "Job"
        - columnheader "Queue"
        - columnheader "Progress"
        - columnheader "Message"
        - columnheader "Attempts"
        - columnheader "Duration"
        - columnheader "Created"
    - rowgroup:
      - row:
        - cell:
          - checkbox "Select resize, job {pk}"
        - cell "Enqueued"
        - cell:
          - 'link "resize #{pk}"'
        - cell:
          - 'link "Queue default: show only its jobs"'
        - cell:
          - progressbar "Progress of resize"
        - cell "40 of 100"
        - cell
        - cell
        - cell
  - region "Runners":
    - heading "Runners" [level=2]
  - region "Statistics"
"""
FAILED_JOB = """
- paragraph:
  - link "← All jobs"
- heading /a title that is rather long/ [level=1]
- paragraph
- status
- paragraph: /Failed/
- paragraph: broken
- button "Retry"
- button "Delete…"
- region "Failed attempts":
  - heading "Failed attempts" [level=2]
  - group:
    - strong: shop.Broken
    - group "Traceback 2"
  - group:
    - strong: shop.Broken
- region "Timeline":
  - heading "Timeline" [level=2]
  - list:
    - listitem:
      - text: Created
    - listitem:
      - text: Failed attempt
    - listitem:
      - text: Started
    - listitem:
      - text: Failed
- region "Facts":
  - heading "Facts" [level=2]
- region "Arguments":
  - heading "Arguments" [level=2]
  - term: password
  - definition:
    - group "password": ••••••
  - term: rows
  - definition:
    - group "rows"
"""


def test_the_list_is_a_table_with_names_and_the_filters_are_links(staff_page: Page) -> None:
    job = add("resize", extra={"progress": 40}, status_msg="40 of 100")
    staff_page.goto("/peasy/?status=enqueued")
    expect(staff_page.locator("body")).to_match_aria_snapshot(LIST.format(pk=job.pk))
    assert staff_page.locator("th:not([scope=col])").count() == 0
    current = staff_page.locator("[aria-current=page]")
    assert current.evaluate_all("tabs => tabs.map(tab => tab.id)") == ["peasy-tab-enqueued"]


def test_a_job_has_a_heading_for_each_part(staff_page: Page) -> None:
    site = create_busy_site()
    staff_page.goto(f"/peasy/jobs/{site['failed'].pk}/")
    expect(staff_page.get_by_role("main")).to_match_aria_snapshot(FAILED_JOB)


def test_the_page_of_an_ongoing_job_has_a_progress_bar(staff_page: Page) -> None:
    site = create_busy_site()
    bar = staff_page.get_by_role("progressbar", name="Progress")
    staff_page.goto(f"/peasy/jobs/{site['ongoing'].pk}/")
    expect(bar).to_have_js_property("value", 40)
    staff_page.goto(f"/peasy/jobs/{site['without progress'].pk}/")
    expect(bar).to_have_js_property("position", -1)


def test_confirmation_and_result_of_an_action_are_read_out(staff_page: Page) -> None:
    job = add("resize")
    staff_page.goto(f"/peasy/jobs/{job.pk}/")
    staff_page.get_by_role("button", name="Delete…").click()
    expect(staff_page.get_by_role("main")).to_match_aria_snapshot(f"""
        - heading "Delete this job?" [level=1]
        - paragraph
        - list:
          - listitem: "resize #{job.pk}, Enqueued"
        - button "Delete"
        - link "Keep"
    """)
    staff_page.get_by_role("button", name="Delete").click()
    expect(staff_page.get_by_role("status").first).to_have_text("1 job deleted.")


def test_charts_have_accessible_names(staff_page: Page) -> None:
    staff_page.goto("/peasy/statistics/")
    names = ["Jobs per minute in the last {}", "Time waited and run in the last {}"]
    expect(staff_page.get_by_role("heading", level=1)).to_have_text("Statistics")
    for span in ("hour", "day"):
        for name in names:
            expect(staff_page.get_by_role("img", name=name.format(span))).to_be_visible()


def test_the_list_announces_only_new_failures(staff_page: Page) -> None:
    first, second = add("first"), add("second")
    staff_page.goto("/peasy/")
    spoken = staff_page.locator("#peasy-announcement")
    change(first, status=ONGOING, status_msg="at it")
    expect(row(staff_page, first)).to_contain_text("at it")
    expect(spoken).to_be_empty()
    change(second, status=FAILED, completed=second.created)
    expect(spoken).to_have_text("1 new failure")


def test_a_job_announces_its_status_and_each_quarter_of_the_way(staff_page: Page) -> None:
    job = add("resize", ONGOING, extra={"progress": 30})
    staff_page.goto(f"/peasy/jobs/{job.pk}/")
    spoken = staff_page.locator("#peasy-announcement")
    change(job, extra={"progress": 40}, status_msg="40 of 100")
    expect(staff_page.get_by_text("40 of 100")).to_be_visible()
    expect(spoken).to_be_empty()
    change(job, extra={"progress": 50}, status_msg="50 of 100")
    expect(spoken).to_have_text("Ongoing, 50 %")
    change(job, status=COMPLETED, completed=job.created)
    expect(spoken).to_have_text("Completed")


@pytest.mark.parametrize("selector", ["#peasy-job-link-{}", "#peasy-tab-failed", "#peasy-pulse"])
def test_the_focus_stays_in_place_while_the_list_updates(staff_page: Page, selector: str) -> None:
    job = add("first")
    staff_page.goto("/peasy/")
    focused = staff_page.locator(selector.format(job.pk))
    focused.focus()
    change(job, title="renamed")
    expect(row(staff_page, job)).to_contain_text("renamed")
    expect(focused).to_be_focused()


def test_the_focus_stays_in_place_when_a_job_ends(staff_page: Page) -> None:
    job = create_busy_site()["scheduled"]
    staff_page.goto(f"/peasy/jobs/{job.pk}/")
    for selector in ("summary", "pre"):
        focused = staff_page.locator(selector).first
        focused.focus()
        change(job, status_msg=f"{selector} has it")
        expect(staff_page.get_by_text(f"{selector} has it")).to_be_visible()
        expect(focused).to_be_focused()
    change(job, status=FAILED, completed=job.created)
    expect(staff_page.locator("[data-peasy-poll]")).to_have_count(0)
    expect(focused).to_be_focused()


# How it looks


def test_title_and_number_of_a_job_are_one_link(staff_page: Page) -> None:
    short, long = add("first"), add("a title that is rather long " * 9)
    for width in (320, 1280):
        staff_page.set_viewport_size({"width": width, "height": 800})
        for job in (short, long):
            staff_page.goto("/peasy/")
            row(staff_page, job).get_by_text(f"#{job.pk}", exact=True).click()
            expect(staff_page.get_by_role("heading", level=1)).to_contain_text(f"#{job.pk}")


def test_chart_labels_are_legible_at_any_width(staff_page: Page) -> None:
    minute = int(database_now(connection).timestamp()) // 60
    PeasyMinute.objects.bulk_create(
        [PeasyMinute(minute=minute - n, completed=5000, w0=1, r11=1) for n in range(1, 9)]
    )
    staff_page.goto("/peasy/statistics/")
    for width in (320, 360, 420, 480, 560, 640, 700, 760, 1000, 1280, 1920):
        staff_page.set_viewport_size({"width": width, "height": 800})
        for chart in staff_page.locator(".peasy-chart").all():
            size, outside = chart.evaluate(CHART_LABELS)
            assert 12 <= size <= 17, (width, size, outside)
            assert not outside, (width, size, outside)


def test_pages_follow_the_systems_colour_scheme(staff_page: Page) -> None:
    staff_page.goto("/peasy/")
    for scheme, page, text in (
        ("light", "rgb(245, 246, 248)", "rgb(28, 32, 36)"),
        ("dark", "rgb(18, 21, 25)", "rgb(230, 232, 235)"),
    ):
        staff_page.emulate_media(color_scheme=scheme)
        expect(staff_page.locator("body")).to_have_css("background-color", page)
        expect(staff_page.locator("body")).to_have_css("color", text)


def test_reduced_motion_is_respected(staff_page: Page) -> None:
    job = add("count", ONGOING)
    staff_page.emulate_media(reduced_motion="reduce")
    staff_page.goto(f"/peasy/jobs/{job.pk}/")
    assert staff_page.evaluate("document.getAnimations().length") == 0
    expect(staff_page.get_by_role("progressbar")).to_have_css("appearance", "none")


def test_active_tab_and_selected_rows_are_visible_in_forced_colours(
    staff_page: Page,
) -> None:
    job = add("first")
    staff_page.emulate_media(forced_colors="active")
    staff_page.goto("/peasy/?status=enqueued")
    row(staff_page, job).get_by_role("checkbox").check()
    expect(row(staff_page, job)).to_have_css("outline-style", "solid")
    borders = staff_page.locator(".peasy-tabs a").evaluate_all(
        "tabs => tabs.map(tab =>"
        " [tab.hasAttribute('aria-current'), getComputedStyle(tab).borderColor])"
    )
    active = {colour for current, colour in borders if current}
    assert len(active) == 1
    assert active.isdisjoint(colour for current, colour in borders if not current)


# Odd texts


def test_texts_of_a_job_cannot_inject_into_the_dashboard(staff_page: Page) -> None:
    ran: list[str] = []
    staff_page.expose_function("hacked", lambda: ran.append("hacked"))
    text = "".join(PAYLOADS)
    error = dict.fromkeys(("at", "where", "exception", "message", "traceback"), text)
    texts = {
        "title": text[:255],
        "queue_name": text[:64],
        "status_msg": text[:255],
        "extra": {text: text},
    }
    made = [add(status=status, **texts, errors=[error]) for status in (ONGOING, FAILED)]
    made += [
        add(payload, ONGOING, status_msg=payload, extra={"progress": payload})
        for payload in PAYLOADS
    ]
    job = made[0]
    pages = {
        "/peasy/": made,
        "/peasy/?q=hacked": made,
        f"/peasy/?queue={texts['queue_name']}".replace("#", ""): made,
    }
    for number, page in enumerate((*pages, f"/peasy/jobs/{job.pk}/")):
        staff_page.goto(page)
        change(job, status_msg=f"{number} {text}"[:255])
        expect(staff_page.locator("main")).to_contain_text(f"{number} <script>hacked()")
        expect(
            staff_page.get_by_role("main").locator("script, img, svg[onload], main b, template")
        ).to_have_count(0)
    staff_page.get_by_role("button", name="Cancel").click()
    staff_page.goto("/peasy/")
    staff_page.get_by_role("checkbox", name="Select all jobs on this page").check()
    staff_page.get_by_role("button", name="Delete…").click()
    expect(staff_page.get_by_role("listitem")).to_have_count(len(made))
    assert ran == []
