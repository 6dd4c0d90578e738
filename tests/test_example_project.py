"""Tests of the example site, which runs in separate processes with its own settings."""

import csv
import functools
import http.cookiejar
import itertools
import re
import signal
import socket
import string
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from django.conf import settings

from tests import processes
from tests.example import HEADER, SAMPLE, Demo, Site, free_port
from tests.manual import block
from tests.waiting import DEADLINE, wait_until

pytestmark = pytest.mark.skipif(
    settings.TEST_DATABASE != "sqlite", reason="The example site runs on SQLite."
)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "data")


def test_the_admin_of_the_site_shows_its_jobs(site: Site) -> None:
    pages = site.ask(
        """
from django.contrib.auth.models import User
visitor().post("/sample/")
admin = visitor()
admin.force_login(User.objects.create_superuser("anna"))
addresses = ["/admin/", "/admin/peasy_jobs/peasyjobqueue/", "/admin/peasy_jobs/peasyrunner/"]
[admin.get(address).content.decode() for address in addresses]
"""
    )
    index, job_list, runner_list = pages
    assert "/admin/airports/airport/" in index
    assert "/admin/peasy_jobs/peasyjobqueue/" in index
    assert "airports<wbr>.jobs<wbr>.import_airports" in job_list
    assert "0 runners" in runner_list


def test_the_sample_is_imported_and_its_invalid_rows_are_reported_by_line(site: Site) -> None:
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        without_city = [
            line for line, row in enumerate(csv.DictReader(file), start=2) if not row["city"]
        ]
        rows = line_count(SAMPLE) - 1
    assert rows > 3000
    assert 0 < len(without_city) < 100

    url = site.ask('visitor().post("/sample/").url')
    site.manage("run_peasy", "--exit-on-empty")

    job = site.ask(
        """
job = PeasyJobQueue.objects.get()
{"url": f"/jobs/{job.pk}/", "status": job.status, "extra": job.extra, "result": job.result}
"""
    )
    assert job == {
        "url": url,
        "status": "C",
        "extra": {"progress": 100},
        "result": {
            "rows": rows,
            "imported": rows - len(without_city),
            "bad_count": len(without_city),
            "bad": [
                {"line": line, "error": "city: This field is required."} for line in without_city
            ],
        },
    }
    assert site.ask("Airport.objects.count()") == rows - len(without_city)


def test_an_import_whose_runner_is_killed_halfway_is_finished_by_the_next(
    site: Site, tmp_path: Path
) -> None:
    all_codes = map("".join, itertools.product(string.ascii_uppercase, repeat=3))
    codes = itertools.islice(all_codes, 8000)
    text = HEADER + "".join(f"{code},Name,City,US,1,2,3\n" for code in codes)
    site.ask(
        'import_airports(Upload.objects.create(name="large.csv", content=args[0]).pk).pk', text
    )
    command = functools.partial(
        processes.Command, ("run_peasy",), tmp_path, tmp_path, {}, site.environment
    )

    killed = command()
    wait_until(lambda: site.count("airports_airport") > 0, message=killed.output)
    killed.kill()
    wait_until(lambda: not killed.processes(), message=killed.describe)
    assert site.count("peasy_jobs_peasyjobqueue", "status = 'C'") == 0

    second = command()
    wait_until(
        lambda: site.count("peasy_jobs_peasyjobqueue", "status = 'C'"), message=second.output
    )
    second.signal(signal.SIGINT)
    assert second.wait() == 0
    second.clean_up()
    result = site.ask("PeasyJobQueue.objects.get().result")
    assert result == {"rows": 8000, "imported": 8000, "bad_count": 0, "bad": []}
    assert site.count("airports_airport") == 8000


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_every_kind_of_invalid_row_is_reported_and_the_other_rows_are_imported(site: Site) -> None:
    text = HEADER + (
        "JFK,John F Kennedy,New York,US,40.6,-73.8,13\n"
        "jfk,lower case,New York,US,40.6,-73.8,13\n"
        "AAA,no number,City,US,north,nan,13\n"
        "BBB,out of range,City,US,90.1,-181,13\n"
        "CCC,too short,City\n"
        "DDD,too long,City,US,1,2,3,4\n"
        "\n"
        "JFK,again,New York,US,40.6,-73.8,13\n"
        'EEE,"two\nlines",City,US,1,2,3\n'
    )
    code = """
upload = Upload.objects.create(name="bad.csv", content=args[0])
[import_airports.call(upload.pk), list(Airport.objects.values_list("code", flat=True))]
"""
    result, codes = site.ask(code, text)

    assert codes == ["EEE", "JFK"]
    assert result["rows"] == 8
    assert result["imported"] == 2
    assert result["bad_count"] == 6
    assert {row["line"]: row["error"] for row in result["bad"]} == {
        3: "code: Use three capital letters.",
        4: "latitude: Enter a number. longitude: Enter a number.",
        5: "latitude: Ensure this value is less than or equal to 90. "
        "longitude: Ensure this value is greater than or equal to -180.",
        6: "country: This field is required. latitude: This field is required. "
        "longitude: This field is required. elevation: This field is required.",
        7: "This row has more values than columns.",
        9: "JFK is on line 2 already.",
    }


def test_an_import_that_runs_again_updates_and_never_duplicates(site: Site) -> None:
    row = "JFK,{},New York,US,40.6,-73.8,13\n"
    code = """
for content in args:
    upload = Upload.objects.create(name="again.csv", content=content)
    result = import_airports.call(upload.pk)
[result["imported"], list(Airport.objects.values_list("name", flat=True))]
"""
    assert site.ask(code, HEADER + row.format("Idlewild"), HEADER + row.format("Kennedy")) == [
        1,
        ["Kennedy"],
    ]


def test_an_invalid_file_is_refused_with_the_reason(site: Site) -> None:
    good = HEADER + "JFK,Kennedy,New York,US,40.6,-73.8,13\n"
    cases = [
        (b"", "The submitted file is empty."),
        (HEADER.encode(), "There are no rows below the line with the column names."),
        (b"code,name\nJFK,Kennedy\n", "Missing: city, country, latitude, longitude, elevation."),
        (good.encode() + b" " * 5_000_000, "the limit is 5 MB."),
        (good.replace("Kennedy", "Évora").encode("latin-1"), "This is not a UTF-8 text file."),
        (good.encode("utf-16"), "This is not a UTF-8 text file."),
        (good.replace("Kennedy", "\0").encode(), "This is not a UTF-8 text file."),
        (HEADER.encode() + b'"' + b"x\n" * 100_000, "is not CSV: field larger than field limit"),
    ]
    code = """
from django.core.files.uploadedfile import SimpleUploadedFile
def upload(content):
    page = visitor().post("/", {"file": SimpleUploadedFile("airports.csv", content)})
    return [page.status_code, page.content.decode() if page.status_code == 200 else page.url]
[[upload(content) for content in args[0]], PeasyJobQueue.objects.count()]
"""
    pages, jobs = site.ask(code, [content for content, _ in cases])

    for (_, reason), (status, page) in zip(cases, pages, strict=True):
        assert status == 200
        assert reason in page
    assert jobs == 0


def test_a_file_in_the_format_of_spreadsheets_is_accepted(site: Site) -> None:
    text = "\ufeff" + HEADER.upper().replace(",", " , ") + "JFK,Kennedy,New York,US,40.6,-73.8,13\n"
    code = """
from django.core.files.uploadedfile import SimpleUploadedFile
status = visitor().post("/", {"file": SimpleUploadedFile("airports.csv", args[0])}).status_code
[status, import_airports.call(Upload.objects.get().pk)["imported"]]
"""
    assert site.ask(code, text.replace("\n", "\r\n").encode()) == [302, 1]


def test_only_the_visitor_who_started_an_import_can_see_it(site: Site) -> None:
    code = """
owner, other = visitor(), visitor()
url = owner.post("/sample/").url
other.post("/sample/")
pages = [owner.get(url), other.get(url), other.get("/jobs/9/")]
[[page.status_code, "no such job" in page.content.decode()] for page in pages]
"""
    assert site.ask(code) == [[200, False], [404, True], [404, True]]


def test_the_page_of_an_unfinished_import_updates_itself_with_and_without_a_script(
    site: Site,
) -> None:
    code = """
client = visitor()
client.post("/sample/", follow=True).content.decode()
"""
    page = site.ask(code)
    assert '<noscript><meta http-equiv="refresh"' in page
    assert "data-peasy-poll" in page
    assert "Enqueued" in page
    assert "run_peasy" in page


def test_only_staff_see_the_error_of_a_failed_import(site: Site) -> None:
    code = """
from django.contrib.auth.models import User
from django.core.management import call_command
client = visitor()
url = client.post("/sample/").url
Upload.objects.all().delete()
call_command("run_peasy", "--exit-on-empty", "--worker-type=thread")
pages = [client.get(url).content.decode()]
client.force_login(User.objects.create_superuser("staff"))
pages.append(client.get(url).content.decode())
pages
"""
    seen_by_visitor, seen_by_staff = site.ask(code)
    for page in (seen_by_visitor, seen_by_staff):
        assert "Failed" in page
        assert "It is safe to start it again" in page
        assert "refresh" not in page
    assert "matching query" not in seen_by_visitor
    assert "Upload matching query does not exist" in seen_by_staff


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    demos: list[Demo] = []

    def start(port: str | None = None) -> Demo:
        demos.append(Demo(tmp_path, free_port() if port is None else port))
        return demos[-1]

    yield start
    for demo in demos:
        processes.kill(demo.processes())
        demo.process.wait()
        print(demo.output())


def test_only_the_visitor_who_started_an_export_can_download_it_when_it_is_complete(
    site: Site,
) -> None:
    code = """
from django.core.management import call_command
owner, other = visitor(), visitor()
upload = Upload.objects.create(name="one.csv", content=args[0])
import_airports.call(upload.pk)
url = owner.post("/export/").url + "download/"
codes = {"too early": owner.get(url).status_code}
call_command("run_peasy", "--exit-on-empty", "--worker-type=thread")
page = owner.get(url)
codes["complete"] = page.status_code
other.post("/call/")
codes["job of another visitor"] = other.get(url).status_code
call = other.post("/call/").url
codes["job without a file"] = other.get(call + "download/").status_code
[codes, page.headers["Content-Disposition"], b"".join(page).decode()]
"""
    text = HEADER + "JFK,Kennedy,New York,US,40.6,-73.8,13.0\n"
    codes, disposition, file = site.ask(code, text)
    assert codes == {
        "too early": 404,
        "complete": 200,
        "job of another visitor": 404,
        "job without a file": 404,
    }
    assert disposition == 'attachment; filename="airports.csv"'
    assert file.replace("\r\n", "\n") == text


def test_a_call_fails_twice_before_it_succeeds(site: Site) -> None:
    code = """
from django.core.management import call_command
from django.utils import timezone
client = visitor()
url = client.post("/call/").url
seen = []
for _ in range(3):
    PeasyJobQueue.objects.filter(status="S").update(run_after=timezone.now())
    call_command("run_peasy", "--exit-on-empty", "--worker-type=thread")
    job = PeasyJobQueue.objects.get()
    seen.append([job.status, job.status_msg])
[seen, "2 attempts failed" in client.get(url).content.decode()]
"""
    seen, failures_are_shown = site.ask(code)
    assert seen == [
        ["S", "Attempt 1 of 4: nobody answers."],
        ["S", "Attempt 2 of 4: nobody answers."],
        ["C", "Attempt 3 of 4: the tower answers."],
    ]
    assert failures_are_shown


def test_the_farthest_airports_are_found_with_their_distance(site: Site) -> None:
    text = (
        HEADER
        + "JFK,Kennedy,New York,US,40.64,-73.78,13\nLAX,Angeles,Los Angeles,US,33.94,-118.41,1\n"
    )
    code = """
from airports.jobs import find_farthest
for content in args:
    import_airports.call(Upload.objects.create(name="a.csv", content=content).pk)
find_farthest.call()
"""
    near = HEADER + "LGA,La Guardia,New York,US,40.78,-73.87,20\n"
    found = site.ask(code, text, near)
    assert found["airports"] == ["JFK Kennedy", "LAX Angeles"]
    assert found["km"] == pytest.approx(3975, rel=0.01)


def test_the_manual_shows_the_loop_that_the_example_uses() -> None:
    loop = block("js", "async function watch")
    script = (SAMPLE.parent.parent / "static" / "airports" / "distance.js").read_text()
    assert loop[loop.index("async function") :] in script


class Browser:
    """A visitor without JavaScript, who keeps cookies."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
            urllib.request.ProxyHandler({}),
        )

    def get(self, path: str) -> str:
        with self.opener.open(urllib.parse.urljoin(self.base, path), timeout=DEADLINE) as response:
            self.url = response.url
            return response.read().decode()

    def post(self, path: str, fields: dict[str, str], file: tuple[str, bytes] | None = None) -> str:
        """Send a form of the page at `path`, with its CSRF token. Return the resulting page."""
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.get(path))[1]
        parts = [
            f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in {"csrfmiddlewaretoken": token, **fields}.items()
        ]
        if file:
            name, content = file
            parts.append(
                f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
                + content
            )
        body = (
            b"".join(b"--part\r\n" + part.rstrip(b"\r\n") + b"\r\n" for part in parts)
            + b"--part--\r\n"
        )
        request = urllib.request.Request(
            urllib.parse.urljoin(self.base, path),
            body,
            {"Content-Type": "multipart/form-data; boundary=part"},
        )
        with self.opener.open(request, timeout=DEADLINE) as response:
            self.url = response.url
            return response.read().decode()


def test_the_demo_imports_an_upload_and_leaves_no_process_after_ctrl_c(
    start_demo: Callable[..., Demo],
) -> None:
    demo = start_demo().ready()
    browser = Browser(demo.url)
    content = HEADER + "JFK,Kennedy,New York,US,40.6,-73.8,13\nXXX,Nowhere,,US,0,0,0\n"

    browser.post("/", {}, ("two.csv", content.encode()))
    wait_until(lambda: "data-peasy-poll" not in browser.get(browser.url))
    page = browser.get(browser.url)

    assert "Import of two.csv" in page
    assert "Completed" in page
    assert re.findall(r"<dd>(\d+)</dd>", page) == ["2", "1", "1"]
    assert "<tr><td>3</td><td>city: This field is required.</td></tr>" in page
    assert demo.ctrl_c() == 0, demo.output()
    assert demo.processes() == []
    assert "Traceback" not in demo.output()


def test_the_demo_login_opens_the_admin_and_stays_the_same(start_demo: Callable[..., Demo]) -> None:
    passwords = []
    for _ in range(2):
        demo = start_demo().ready()
        passwords.append(demo.password())
        page = Browser(demo.url).post(
            "/admin/login/?next=/admin/",
            {"username": "demo", "password": demo.password(), "next": "/admin/"},
        )
        assert "Site administration" in page
        demo.ctrl_c()
    assert passwords[0] == passwords[1]


def test_the_demo_stops_on_sigterm(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo().ready()
    demo.process.send_signal(signal.SIGTERM)
    assert demo.wait() == 0
    assert demo.processes() == []


@pytest.mark.parametrize(("word", "name"), [("run_peasy", "runner"), ("runserver", "web server")])
def test_the_demo_stops_when_one_of_its_processes_dies(
    start_demo: Callable[..., Demo], word: str, name: str
) -> None:
    demo = start_demo().ready()
    demo.find(word).kill()
    assert demo.wait() == 1
    assert f"The {name} stopped by itself with exit code -9." in demo.output()
    wait_until(lambda: not demo.processes())


@pytest.mark.skipif(
    sys.platform != "linux", reason="Only Linux tells a child that its parent was killed."
)
def test_the_processes_of_a_killed_demo_end_too(start_demo: Callable[..., Demo]) -> None:
    demo = start_demo().ready()
    demo.process.kill()
    demo.wait()
    wait_until(lambda: not demo.processes())


def test_a_port_in_use_is_reported_before_anything_is_started(
    start_demo: Callable[..., Demo], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        demo = start_demo(port)
        assert demo.wait() == 1
    assert demo.output() == (
        f"Port {port} cannot be used: Address already in use. "
        "Choose another one: make demo PORT=8001\n"
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "80 80", "²"])
def test_an_invalid_port_is_reported(start_demo: Callable[..., Demo], port: str) -> None:
    demo = start_demo(port)
    assert demo.wait() == 1
    assert (
        demo.output() == f"PORT is {port!r}. Give a number from 1 to 65535: make demo PORT=8001\n"
    )
