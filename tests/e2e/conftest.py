"""The browser: a Chromium of the system or of Playwright. Without one, tests are skipped."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as site
from django.contrib.auth.models import User
from django.test import Client
from playwright.sync_api import Browser, BrowserContext, Error, Page, expect

from tests import browser

# Playwright keeps an event loop running in this thread, which makes Django expect async code.
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
# Playwright's 5 s are too short while the suites of three databases run on the same machine.
expect.set_options(timeout=20_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if site.TEST_DATABASE != "sqlite":
        mark = pytest.mark.skip(
            reason="Pages are the same on every database. Browser tests run with SQLite."
        )
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(mark)


@pytest.fixture(scope="session")
def browser_type_launch_args(
    browser_type_launch_args: dict[str, Any], playwright: Any
) -> dict[str, Any]:
    chosen = browser.options()
    if not Path(chosen.get("executable_path", playwright.chromium.executable_path)).exists():
        if os.environ.get("PEASY_TEST_REQUIRE_BROWSER") == "1":
            pytest.fail(
                f"Chromium is missing, and PEASY_TEST_REQUIRE_BROWSER is 1: {browser.REMEDY}."
            )
        pytest.skip(f"Chromium is missing: {browser.REMEDY}.")
    return {**browser_type_launch_args, **chosen}


@pytest.fixture(scope="session")
def base_url(live_server: Any) -> str:
    return live_server.url


@pytest.fixture(autouse=True)
def quick_polls(settings: Any) -> None:
    settings.PEASY_DASHBOARD_POLL = 1


@pytest.fixture
def no_process_left() -> Iterator[None]:
    """Replace the check for remaining processes: Chromium starts and ends its own at any time."""
    yield


@pytest.fixture
def closed_pages(live_server: Any, context: BrowserContext) -> Iterator[None]:
    """Close all pages before the tables are emptied, so that no late poll fails."""
    yield
    with suppress(Error):
        context.close()


@pytest.fixture
def staff(transactional_db: None) -> User:
    return User.objects.create_superuser("staff", password="staff")


def log_in(context: BrowserContext, user: User, base_url: str) -> None:
    client = Client()
    client.force_login(user)
    context.add_cookies(
        [{"name": "sessionid", "value": client.cookies["sessionid"].value, "url": base_url}]
    )


@pytest.fixture
def staff_page(closed_pages: None, page: Page, staff: User, base_url: str) -> Iterator[Page]:
    """A page of a superuser. Fails on console messages, except those about failed requests."""
    log_in(page.context, staff, base_url)
    with silent(page):
        yield page


@contextmanager
def silent(page: Page) -> Iterator[None]:
    """Fails when the console says anything meanwhile."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield
    assert said == []


@contextmanager
def separate_server(browser: Browser, staff: User) -> Iterator[Page]:
    """A silent page of a server that has read the settings as they are now, middleware included."""
    from pytest_django.live_server_helper import LiveServer

    server = LiveServer("localhost")
    context = browser.new_context(base_url=server.url)
    try:
        log_in(context, staff, server.url)
        page = context.new_page()
        with silent(page):
            yield page
    finally:
        context.close()
        server.stop()
