"""The Chromium of the browser tests: the system's if there is one, otherwise Playwright's own.

Run as a module it prints in one line why none starts; with `install` it first tries to install one.
"""

import os
import shutil
import subprocess
import sys
from typing import Any

from playwright.sync_api import Error, sync_playwright

REMEDY = (
    "install the system's package `chromium`,"
    " or run `.venv/bin/python -m playwright install --with-deps chromium`"
)


def options() -> dict[str, Any]:
    """Return the options with which Playwright starts Chromium."""
    system = (os.environ.get("PEASY_CHROMIUM"), *map(shutil.which, ("chromium", "google-chrome")))
    found = next(filter(None, system), None)
    return {"executable_path": found, "args": ["--disable-dev-shm-usage"]} if found else {}


def missing() -> str:
    """Return why no Chromium starts, or an empty string."""
    with sync_playwright() as playwright:
        try:
            playwright.chromium.launch(**options()).close()
        except Error as error:
            return f"No Chromium starts here ({error.message.splitlines()[0]}): {REMEDY}."
    return ""


def install() -> None:
    """Install Chromium without asking. Only root can install the system libraries it needs."""
    root = os.geteuid() == 0
    ways = [[sys.executable, "-m", "playwright", "install", *["--with-deps"] * root, "chromium"]]
    if root and shutil.which("apt-get"):
        ways.append(["apt-get", "install", "-y", "--no-install-recommends", "chromium"])
    for way in ways:
        print(f"{'browser':9}| {' '.join(way[-4:])}", flush=True)
        try:
            done = (
                subprocess.run(
                    way, stdin=subprocess.DEVNULL, capture_output=True, timeout=600
                ).returncode
                == 0
            )
        except subprocess.TimeoutExpired:
            done = False
        if done:
            return


if __name__ == "__main__":
    if sys.argv[1:] == ["install"] and missing():
        install()
    sys.exit(missing() or None)
