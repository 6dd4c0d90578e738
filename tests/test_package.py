"""Tests of the wheel, and of the README's quickstart in an empty environment.

They need a package registry, as a new user does.
"""

import fcntl
import http.cookiejar
import os
import re
import shlex
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest
from django.conf import settings

from tests.manual import FENCE, PAGES, README, ROOT
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(settings.TEST_DATABASE != "sqlite", reason="The quickstart runs on SQLite."),
    pytest.mark.timeout(600),
]

SERVERS = ("runserver", "run_peasy")
LOGIN = {"username": "anna", "password": "a long enough one"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build the wheel once for all xdist workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "wheel"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            build_wheel(folder)
    (built,) = folder.glob("*.whl")
    return built


def build_wheel(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "-q", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", folder, ROOT], check=True)


def test_the_wheel_contains_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    files = {path.relative_to(ROOT) for path in ROOT.glob("peasy_jobs/**/*") if path.is_file()}
    package = {str(path) for path in files if "__pycache__" not in path.parts}
    suffixes = {Path(name).suffix for name in package}
    assert suffixes == {".py", ".html", ".css", ".js", ".svg", ".typed"}
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == package
    assert {Path(name).name for name in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE"}


def test_the_wheel_describes_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        metadata = message_from_bytes(archive.read(name))
    classifiers = metadata.get_all("Classifier")
    pythons = re.findall(r"Python (\d\.\d+) to \d\.(\d+)", README.read_text())
    assert pythons == [("3.11", "14")]
    assert metadata["Requires-Python"] == ">=3.11"
    for minor in range(11, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    for version in ("5.2", "6.0", "6.1"):
        assert f"Framework :: Django :: {version}" in classifiers
    assert set(metadata.get_all("Provides-Extra")) == {"postgres", "mysql", "test"}
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert "## Quickstart" in metadata.get_payload()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Newcomer:
    """A new user with an empty directory, who does what the README says."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.folder, self.wheel = folder, wheel
        self.port = free_port()
        self.servers: list[subprocess.Popen[bytes]] = []
        ours = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "VIRTUAL_ENV")
        self.environment = {name: value for name, value in os.environ.items() if name not in ours}
        self.environment |= {
            "PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}",
            **{f"DJANGO_SUPERUSER_{name.upper()}": value for name, value in LOGIN.items()},
            "DJANGO_SUPERUSER_EMAIL": "anna@example.com",
        }
        cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        self.browser = urllib.request.build_opener(cookies)

    def follow(self, quickstart: str) -> None:
        for language, code in FENCE.findall(quickstart):
            named = re.match(r"(?:# |<!-- )([\w/]+\.(?:py|html))(, at the end)?", code)
            if language == "console":
                for line in code.splitlines():
                    self.type(line)
            elif named:
                path = self.folder / named[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                before = path.read_text() if named[2] else ""
                path.write_text(before + code)

    def type(self, line: str) -> None:
        if line.startswith(". "):
            return  # activates .venv; PATH has it already
        if line.startswith("("):  # several commands at the same time
            for part in re.findall(r"python manage\.py \w+", line):
                self.type(part)
            return
        words = shlex.split(line.replace("path/to/the/clone", f"-q {shlex.quote(str(self.wheel))}"))
        words[0] = {"python3": sys.executable}.get(words[0], words[0])
        if "createsuperuser" in words:
            words.append("--noinput")
        if "runserver" in words:
            words += ["--noreload", f"127.0.0.1:{self.port}"]
        if any(name in words for name in SERVERS):
            self.servers.append(subprocess.Popen(words, cwd=self.folder, env=self.environment))
        else:
            subprocess.run(
                words, cwd=self.folder, env=self.environment, check=True, stdout=subprocess.DEVNULL
            )

    def open(self, path: str, **form: str) -> str:
        url = f"http://127.0.0.1:{self.port}{path}"
        data = urllib.parse.urlencode(form).encode() if form else None
        with self.browser.open(urllib.request.Request(url, data, {"Referer": url})) as response:
            return response.read().decode()

    def submit(self, path: str, page: str, **form: str) -> str:
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
        return self.open(path, csrfmiddlewaretoken=token, **form)

    def answers(self) -> bool:
        assert all(server.poll() is None for server in self.servers)
        try:
            return bool(self.open("/"))
        except OSError:
            return False

    def stop_servers(self) -> None:
        for server in self.servers:
            server.terminate()
        for server in self.servers:
            server.wait()


@pytest.fixture
def newcomer(tmp_path: Path, wheel: Path) -> Iterator[Newcomer]:
    someone = Newcomer(tmp_path, wheel)
    yield someone
    someone.stop_servers()


def test_the_quickstart_ends_with_a_completed_export(newcomer):
    newcomer.follow(PAGES[README].partition("\n## Quickstart\n")[2].partition("\n## ")[0])
    assert len(newcomer.servers) == len(SERVERS)
    wait_until(newcomer.answers)

    page = newcomer.submit("/", newcomer.open("/"))
    script, sheet = (
        re.search(r'src="([^"]+/peasy\.js)"', page)[1],
        re.search(r'href="([^"]+/peasy\.css)"', page)[1],
    )
    assert newcomer.open(script) and newcomer.open(sheet)
    widget = re.search(r'hx-get="([^"?]+)\?([^"]*)"', page)
    token = re.search(r"\bt=([^&\"]+)", widget[2])[1]

    seen: list[str] = []

    def has_moved_to_the_end() -> bool:
        seen.append(newcomer.open(f"{widget[1]}?t={token}"))
        return "Completed" in seen[-1]

    wait_until(has_moved_to_the_end, 60)
    assert any(re.search(r"Exporting rows: [1-9] of 10", body) for body in seen)

    login = newcomer.open("/peasy/")
    assert 'name="password"' in login
    dashboard = newcomer.submit("/admin/login/?next=/peasy/", login, next="/peasy/", **LOGIN)
    assert "export data to s3" in dashboard and "Completed" in dashboard
