"""The example site in a browser: `make demo` in its own processes, without a login."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests import processes
from tests.example import SAMPLE, Demo, free_port

PATIENCE = (
    90_000  # milliseconds: six million distances take long on a machine that does other things too
)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, free_port(), pause=0.2)
    try:
        yield demo.ready()
        assert demo.ctrl_c() == 0
        assert "Traceback" not in demo.output()
    finally:
        processes.kill(demo.processes())
        demo.process.wait()


@pytest.fixture
def visitor(demo: Demo, browser: Browser) -> Iterator[Page]:
    """A page without a login. Fails on console messages, except that the login has no icon."""
    context = browser.new_context(base_url=demo.url)
    page = context.new_page()
    said: list[str] = []
    page.on(
        "console",
        lambda message: (
            message.location["url"].endswith("favicon.ico") or said.append(message.text)
        ),
    )
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert said == []


def check_page(page: Page) -> None:
    """No violation of accessibility and no scrolling sideways, light or dark, narrow or wide."""
    for scheme in ("light", "dark"):
        for width in (320, 1280):
            page.emulate_media(color_scheme=scheme)
            page.set_viewport_size({"width": width, "height": 800})
            assert not page.evaluate("document.documentElement.scrollWidth > innerWidth"), (
                page.url,
                width,
            )
            found = Axe().run(page)
            assert found.violations_count == 0, (page.url, scheme, width, found.generate_report())


def click(page: Page, button: str) -> None:
    page.get_by_role("button", name=button).click()


@pytest.mark.timeout(300)
def test_a_visitor_can_start_jobs_and_follow_them(
    visitor: Page, browser: Browser, demo: Demo
) -> None:
    visitor.goto("/distance/")
    expect(visitor.get_by_text("too few airports")).to_be_visible()
    visitor.goto("/")
    check_page(visitor)
    import_airports(visitor)
    address = export_airports(visitor)
    stranger = browser.new_context(base_url=demo.url)
    assert stranger.request.get(address).status == 404
    stranger.close()
    call_the_tower(visitor)
    find_the_longest_distance(visitor)
    visitor.goto("/")
    expect(visitor.get_by_text("Completed")).to_have_count(3)
    check_page(visitor)


def import_airports(visitor: Page) -> None:
    visitor.get_by_label("CSV file").set_input_files(SAMPLE)
    click(visitor, "Upload and import")
    bar = visitor.get_by_role("progressbar")
    expect(bar).to_have_attribute("value", re.compile(r"^[1-9]\d?$"))
    value = bar.evaluate("bar => bar.value")
    visitor.wait_for_function(
        "value => value < document.querySelector('progress').value", arg=value
    )
    refused = visitor.get_by_text("Correct them and import the file again")
    expect(refused).to_be_visible(timeout=PATIENCE)
    expect(visitor.get_by_text("3,445")).to_be_visible()
    check_page(visitor)


def export_airports(visitor: Page) -> str:
    """Return the address of the exported file."""
    visitor.goto("/")
    click(visitor, "Export all airports")
    link = visitor.get_by_role("link", name="Download 3,445 airports")
    with visitor.expect_download() as download:
        link.click(timeout=PATIENCE)
    with Path(download.value.path()).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3445
    check_page(visitor)
    address = link.get_attribute("href")
    assert address is not None
    return address


def call_the_tower(visitor: Page) -> None:
    visitor.goto("/")
    click(visitor, "Call the tower")
    failed_attempt = visitor.get_by_text(re.compile("Attempt [12] of 4: nobody answers"))
    expect(failed_attempt).to_be_visible(timeout=PATIENCE)
    expect(visitor.locator(".peasy-job-status")).to_contain_text("Scheduled", timeout=PATIENCE)
    expect(visitor.get_by_text("2 attempts failed")).to_be_visible(timeout=PATIENCE)
    expect(visitor.get_by_text("Attempt 3 of 4")).to_be_visible()
    check_page(visitor)


def find_the_longest_distance(visitor: Page) -> None:
    visitor.goto("/distance/")
    check_page(visitor)
    click(visitor, "Find out")
    visitor.wait_for_function("0 < document.querySelector('progress').value")
    answer = visitor.get_by_text("ATU Casco Cove")
    expect(answer).to_contain_text("16,150\u00a0km", timeout=PATIENCE)
    check_page(visitor)


def test_only_a_waiting_job_asks_for_a_runner(visitor: Page, demo: Demo) -> None:
    runner = demo.find("run_peasy")
    runner.suspend()
    visitor.goto("/")
    click(visitor, "Call the tower")
    hint = visitor.get_by_text("no runner is free")
    expect(hint).to_be_hidden()
    expect(hint).to_be_visible()
    check_page(visitor)
    runner.resume()
    expect(visitor.get_by_text("Attempt 1 of 4")).to_be_visible(timeout=PATIENCE)
    expect(hint).to_be_hidden()


def test_the_demo_login_opens_the_dashboard(visitor: Page, demo: Demo) -> None:
    visitor.goto("/")
    click(visitor, "Call the tower")
    visitor.get_by_role("link", name="Dashboard").click()
    username = visitor.get_by_label("Username")
    # Django's login focuses the field. Chromium logs a message if it has the focus already.
    expect(username).to_be_focused()
    username.fill("demo")
    visitor.get_by_label("Password").fill(demo.password())
    click(visitor, "Log in")
    expect(visitor.get_by_role("link", name="Call the tower")).to_be_visible()
