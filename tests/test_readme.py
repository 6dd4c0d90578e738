"""The manual is true: its snippets run, its links lead somewhere, and what the package has is in it."""

import ast
import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
from dataclasses import fields
from datetime import timedelta
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import get_commands, load_command_class
from django.db import connection, connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.utils import load_backend
from django.template import engines
from django.test import RequestFactory
from django.utils import timezone

from peasy_jobs import conf, execution, status, status_urls, urls
from peasy_jobs.claims import Ending
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import Job, Peasy, peasy
from peasy_jobs.templatetags.peasy_jobs import register
from tests.manual import BLOCKS, MANUAL, PAGES, README, ROOT, block, blocks

REFERENCE = PAGES[ROOT / "docs" / "settings.md"]
HOOKS = dict(re.findall(r'settings\.py: (\w+) = "([\w.]+)"', MANUAL))
GRACE = int(conf.Conf().shutdown_timeout) + 10  # seconds that whatever stops a runner should give it


def snippet(text):
    return block("python", text)


@pytest.fixture
def shop(monkeypatch):
    """The app of the quickstart."""
    module = types.ModuleType("shop.jobs")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.jobs", module)
    exec(compile(snippet("export data to s3"), "shop/jobs.py", "exec"), vars(module))
    return module


def run_next(job):
    """What a runner does with a job, without one."""
    (claim,) = PeasyJobQueue.objects.claim(1, 1, [], job.created)
    reports = []
    outcome = execution.run(claim.run(), reports.append)
    status = PeasyJobQueue.FAILED if outcome.error else PeasyJobQueue.COMPLETED
    columns = {"result": outcome.result, "status_msg": reports[-1].status_msg, "extra": reports[-1].extra}
    PeasyJobQueue.objects.end(1, [Ending(claim=claim, status=status, **columns)], job.created)


@pytest.mark.django_db
def test_the_quickstart_does_what_it_says(shop):
    names = {}
    run_next(shop.export_data(17))
    watch = snippet("job.result")
    exec(watch, names)
    comments = dict(re.findall(r"^(job\.\S+)  # (.+)$", watch, re.MULTILINE))
    assert names["job"].status == PeasyJobQueue.COMPLETED
    assert {code: eval(code, names) for code in comments} == {
        'job.extra["progress"]': 100,
        "job.status_msg": "Exporting rows: 10 of 10",
        "job.result": {"exported": 17},
    }
    assert {code: ast.literal_eval(comment) for code, comment in comments.items()} == {
        code: eval(code, names) for code in comments
    }


@pytest.mark.django_db
def test_the_ways_to_call_work(shop):
    user = User.objects.create(username="anna")
    names = {"request": SimpleNamespace(user=user), "export_data": shop.export_data}
    exec(snippet("timedelta(minutes=10)"), names)
    job = PeasyJobQueue.objects.get(status=PeasyJobQueue.SCHEDULED)
    assert (job.user, job.priority, job.queue_name, job.args) == (user, 5, "slow", (17,))
    mapped = PeasyJobQueue.objects.filter(status=PeasyJobQueue.ENQUEUED).order_by("pk")
    assert [job.args for job in mapped] == [(17,), (18,), (19,)]


@pytest.mark.django_db
def test_a_site_can_test_what_it_enqueues(shop, monkeypatch):
    ran, names = [], {"__name__": "shop.tests"}
    monkeypatch.setattr(shop.export_data, "function", lambda pk, job_pk: ran.append(pk) or {"exported": pk})
    exec(snippet("class ExportTests"), names)
    tests = names["ExportTests"]()
    tests.client = SimpleNamespace(post=lambda path: shop.export_data(17))
    tests.test_the_button_enqueues()
    assert ran == [17]
    tests.test_the_export()
    shop.export_data(shop_pk=17)
    job = PeasyJobQueue.objects.latest("pk")
    assert (job.args, job.kwargs) == ((), {"shop_pk": 17})


@pytest.mark.django_db
def test_cron_can_enqueue(shop):
    exec(re.search(r'shell -v 0 -c "(.+)"', block("text", "crontab"))[1], {})
    assert PeasyJobQueue.objects.get().args == (17,)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("ready", "subscribers", "status"),
    [(False, 1, "S"), (True, 0, "F"), (True, 1, "C")],
    ids=["later", "failed", "delivered"],
)
def test_a_job_may_come_back_later_or_fail_at_once(monkeypatch, ready, subscribers, status):
    module = types.ModuleType("shop.mail")
    module.is_ready, module.subscribers, module.deliver = lambda n: ready, lambda n: subscribers, lambda n: None
    monkeypatch.setitem(sys.modules, "shop.mail", module)
    exec(compile(snippet("send the newsletter"), "shop/mail.py", "exec"), vars(module))
    job = module.send_newsletter(7)
    (claim,) = PeasyJobQueue.objects.claim(1, 1, [], job.created)
    assert execution.run(claim.run(), lambda report: None).status == status
    assert claim.timeout == 120


@pytest.mark.django_db
def test_progress_and_cancelling_work(shop):
    job = shop.export_data(17)
    names = {"peasy": peasy, "PeasyJobQueue": PeasyJobQueue, "job": job, "job_pk": job.pk}
    exec(snippet("peasy.update_status(job_pk"), names)
    exec(snippet(".update(status=PeasyJobQueue.CANCELLED)"), names)
    job.refresh_from_db()
    assert (job.status, job.extra) == (PeasyJobQueue.CANCELLED, {"progress": 50})
    assert job.status_msg == "Data gathered. Uploading."


def test_every_setting_is_shown_with_its_default():
    shown = {}
    exec(snippet("PEASY_MAX_COMPLETED"), shown)
    defaults = {f"PEASY_{field.name.upper()}": field.default for field in fields(conf.Conf)}
    assert {name: value for name, value in shown.items() if name.startswith("PEASY_")} == defaults


@pytest.mark.django_db
def test_the_sqlite_settings_are_those_that_django_takes(tmp_path):
    names = {"BASE_DIR": tmp_path}
    exec(snippet('"ENGINE": "django.db.backends.sqlite3"'), names)
    quick = {"INSTALLED_APPS": [], "DATABASES": {"default": {}}}
    exec(snippet("django_htmx"), quick)
    assert quick["DATABASES"]["default"]["OPTIONS"] == names["DATABASES"]["default"]["OPTIONS"]
    connection = DatabaseWrapper({**connections.settings["default"], **names["DATABASES"]["default"]}, "other")
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.django_db
def test_the_hook_of_the_dashboard_lets_operators_in(client, settings, monkeypatch):
    module = types.ModuleType("shop.access")
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.access", module)
    exec(snippet("def may(request"), vars(module))
    settings.PEASY_DASHBOARD_PERMISSION = HOOKS["PEASY_DASHBOARD_PERMISSION"]
    operator = User.objects.create(username="anna")
    client.force_login(operator)
    assert client.get("/peasy/").status_code == 403
    operator.groups.create(name="operators")
    assert client.get("/peasy/").status_code == 200


@pytest.mark.django_db
def test_the_other_hooks_do_what_their_names_say(rf):
    names = {}
    for text in ("def can_view(", "def without_extra(", "def masked("):
        exec(snippet(text), names)
    request = rf.get("/")
    request.user = User(username="anna")
    public, private = PeasyJobQueue(queue_name="public"), PeasyJobQueue()
    assert names["can_view"](request, public) and not names["can_view"](request, private)
    request.user = AnonymousUser()
    assert not names["can_view"](request, public)
    assert names["without_extra"](request, public, {"id": "1", "extra": {"a": 1}}) == {"id": "1"}
    assert names["masked"]("iban") and not names["masked"]("name")


def test_each_hook_is_shown_with_the_setting_that_names_it():
    assert set(HOOKS) == {f"PEASY_{name.upper()}" for name, rule in conf.RULES.items() if rule.hint == conf.HOOK}
    for path in HOOKS.values():
        module, _, name = path.rpartition(".")
        assert snippet(f"def {name}(").startswith(f"# {module.replace('.', '/')}.py; ")


@pytest.mark.django_db
def test_a_page_of_its_own_may_start_a_job(shop, rf):
    names = {}
    exec(snippet("def start_export("), names)
    response = names["start_export"](rf.post("/"), 17)
    assert (response.status_code, list(json.loads(response.content))) == (202, ["status"])


def test_a_renamed_job_function_is_found_under_its_old_name(shop):
    exec(snippet("# until no job is waiting under this name"), vars(shop))
    assert execution.find("shop.jobs.export") is shop.export_data


@pytest.mark.django_db
def test_old_jobs_are_deleted_by_hand(shop):
    for days, runner in ((40, None), (40, 1), (2, None), (None, None)):
        completed = None if days is None else timezone.now() - timedelta(days=days)
        PeasyJobQueue.objects.filter(pk=shop.export_data(17).pk).update(completed=completed, runner=runner)
    exec(snippet("a_month_ago"), {})
    assert PeasyJobQueue.objects.count() == 3


def test_the_port_of_a_runner_may_differ(monkeypatch):
    names = {"os": os, "DATABASES": {"default": {}}}
    exec(snippet("DATABASE_PORT"), names)
    assert names["DATABASES"]["default"]["PORT"] == "6432"
    monkeypatch.setenv("DATABASE_PORT", "5432")
    exec(snippet("DATABASE_PORT"), names)
    assert names["DATABASES"]["default"]["PORT"] == "5432"


def test_the_log_goes_where_the_manual_sends_it():
    names = {}
    exec(snippet("LOGGING = {"), names)
    script = (
        "import logging, logging.config, sys\n"
        "logging.config.dictConfig(eval(sys.argv[1]))\n"
        "logging.getLogger('peasy_jobs').info('export (job 1) completed')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, repr(names["LOGGING"])], capture_output=True, text=True, check=True
    )
    assert done.stderr.endswith(" INFO export (job 1) completed\n")


# Blocks that are not Python


def test_every_block_is_of_a_kind_that_is_looked_at():
    known = {"python", "html", "js", "json", "console", "ini", "yaml", "dockerfile", "sql", "text"}
    assert {language for _, language, _ in BLOCKS} == known
    assert all(text.count("```") == 2 * sum(b.page == path.name for b in BLOCKS) for path, text in PAGES.items())


def test_every_python_block_is_python():
    for code in blocks("python"):
        compile(code, "<manual>", "exec")


@pytest.mark.django_db
def test_every_template_can_be_drawn(rf):
    job = PeasyJobQueue.objects.create(title="export", job_name="shop.jobs.export_data")
    for code in blocks("html"):
        html = engines["django"].from_string(code).render({"job": job}, RequestFactory().get("/"))
        assert f"peasy-job-{job.pk}" in html


def test_the_scripts_are_javascript(tmp_path):
    # They are run in a browser by tests/e2e.
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed")
    for code in blocks("js"):
        path = tmp_path / "snippet.js"
        path.write_text(code)
        subprocess.run([node, "--check", path], check=True)


@pytest.mark.django_db
def test_the_json_document_has_these_keys(rf):
    (shown,) = map(json.loads, blocks("json"))
    job = PeasyJobQueue.objects.create(title="export", job_name="shop.jobs.export_data", status=PeasyJobQueue.ONGOING)
    request = rf.get("/", {"t": "token"})
    assert list(shown) == list(status.document(request, job))


@pytest.mark.django_db
def test_the_statements_are_sql():
    if connection.vendor != "postgresql":
        pytest.skip("They are for PostgreSQL.")
    with connection.cursor() as cursor:
        for code in blocks("sql"):
            cursor.execute(code)


def check_manage(name, arguments):
    command = load_command_class(get_commands()[name], name)
    known = command.create_parser("manage.py", name)._option_string_actions
    assert all(argument in known for argument in arguments if argument.startswith("--"))


def check_command(words):
    match words:
        case ["make", target, *_]:
            assert f"\n{target}:" in ROOT.joinpath("Makefile").read_text()
        case ["python" | "python3", "manage.py", name, *arguments]:
            check_manage(name, arguments)
        case ["django-admin", name, *arguments]:
            check_manage(name, arguments)
        case ["python" | "python3", "-m", module, *_]:
            assert find_spec(module)
        case ["docker", "compose", "run", "--rm", "web", *command]:
            check_command(command)
        case ["docker", "compose", command, *_]:
            assert command == "up"
        case _:
            known = ("pip", ".", "wait", "systemctl", "journalctl", "sqlite3", "useradd", "gunicorn")
            assert words[0] in known, words


def test_every_command_is_one():
    for line in "".join(blocks("console")).splitlines():
        for part in re.split(r" & |; ", line.strip("()")):
            check_command(shlex.split(part))
    for name, arguments in re.findall(r"manage\.py (\w+)((?: --[\w-]+)*)", MANUAL):
        check_manage(name, arguments.split())


def test_the_unit_gives_the_runner_its_time():
    (text,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(text)
    assert list(unit) == ["DEFAULT", "Unit", "Service", "Install"]
    assert unit["Service"]["KillMode"] == "mixed" and int(unit["Service"]["TimeoutStopSec"]) >= GRACE
    python, manage, *words = shlex.split(unit["Service"]["ExecStart"])
    assert python.startswith("/") and manage == "manage.py"
    check_manage(words[0], words[1:])


def test_containers_give_the_runner_its_time():
    compose, deployment = blocks("yaml")
    for code in (compose, deployment):
        for line in code.splitlines():
            # A test dependency less: what is printed uses only this much of YAML.
            assert re.fullmatch(r"#.*|( {2})*(- )?([\w./<-]+:( \S.*)?|[\w./:\"-]+)(  # .*)?", line), line
        for command in re.findall(r"command: (\[.*\])", code):
            check_command(json.loads(command))
    assert "init: true" in compose and "stop_signal: SIGINT" in compose
    assert int(re.search(r"stop_grace_period: (\d+)s", compose)[1]) >= GRACE
    assert int(re.search(r"terminationGracePeriodSeconds: (\d+)", deployment)[1]) >= GRACE
    assert "livenessProbe" not in deployment


def test_the_image_is_made_by_commands_that_exist_and_does_not_run_as_root():
    *lines, last = "".join(blocks("dockerfile")).splitlines()
    for line in lines:
        if line.startswith("RUN "):
            check_command(shlex.split(line)[1:])
    assert re.fullmatch(r"USER [1-9]\d*", last)


def test_the_containers_have_what_their_settings_read(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "environ", {})
    site = {"BASE_DIR": tmp_path, "MIDDLEWARE": ["django.middleware.security.SecurityMiddleware", "another"]}
    exec(snippet("PGHOST"), site)  # at home, and where the image is made
    assert site["STATIC_ROOT"].parent == tmp_path and "DATABASES" not in site
    site_of_all = block("yaml", "x-site").partition("services:")[0]
    os.environ.update(re.findall(r"^    ([A-Z_]+): (.+)$", site_of_all, re.MULTILINE))
    exec(snippet("PGHOST"), site)
    assert load_backend(site["DATABASES"]["default"]["ENGINE"]).DatabaseWrapper.vendor == "postgresql"
    assert (site["DEBUG"], site["SECRET_KEY"], site["ALLOWED_HOSTS"]) == (False, "change-me-too", ["localhost"])
    assert site["MIDDLEWARE"].index("whitenoise.middleware.WhiteNoiseMiddleware") == 1


# The pages


def anchors(text):
    for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield re.sub(r"[^\w -]", "", title).lower().replace(" ", "-")


def test_every_link_leads_somewhere():
    for page, text in {**PAGES, ROOT / "CHANGELOG.md": ROOT.joinpath("CHANGELOG.md").read_text()}.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.is_file(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name} links to {link}"


def test_every_page_is_linked_and_opens_with_one_sentence():
    for page, text in PAGES.items():
        title, sentence = text.split("\n\n")[:2]
        assert page == README or f"]({page.relative_to(ROOT)})" in PAGES[README]
        assert title.startswith("# ") and (page == README or re.fullmatch(r"[^.]+(\.\w[^.]*)*\.", sentence)), page
    assert len(PAGES[README].splitlines()) <= 200


# What the package has


def test_every_check_is_documented():
    for name in re.findall(r"peasy_jobs\.[EW]\d+", ROOT.joinpath("peasy_jobs/checks.py").read_text()):
        assert f"`{name}`" in REFERENCE
    ranges = re.findall(r"`(?:peasy_jobs\.)?E(\d+)` … `E(\d+)`", REFERENCE)
    shown = {f"E{number:03}" for low, high in ranges for number in range(int(low), int(high) + 1)}
    assert shown == {rule.id for rule in conf.RULES.values()}


def test_every_option_is_documented():
    parser = load_command_class("peasy_jobs", "run_peasy").create_parser("manage.py", "run_peasy")
    others = load_command_class("django.core", "check").create_parser("manage.py", "check")
    ours = set(parser._option_string_actions) - set(others._option_string_actions)
    assert {"--queue", "--check"} <= ours
    assert all(f"| `{option}" in REFERENCE for option in ours - {"--skip-checks"})


def test_every_status_is_documented():
    for value, _ in PeasyJobQueue.STATUS_CHOICES:
        name = next(name for name, constant in vars(PeasyJobQueue).items() if constant == value and name.isupper())
        assert f"| `{name}` | {value} | {status.WORDS[value]} |" in REFERENCE


def test_every_url_name_and_template_tag_is_documented():
    for pattern in urls.urlpatterns:
        row = next(line for line in REFERENCE.splitlines() if f"`peasy_jobs:{pattern.name}`" in line)
        assert ("| both |" in row) == (pattern in status_urls.urlpatterns)
    assert all(f"`{{% {name} " in REFERENCE for name in register.tags)


def test_all_that_sites_may_use_is_documented():
    for owner in (Peasy, Job):
        for name in vars(owner):
            if not name.startswith("_") and name != "with_pk":
                assert re.search(rf"`(@?peasy)?\.{name}\b", REFERENCE), name
    for function in (Peasy.job, Job.using):
        for name in set(signature(function).parameters) - {"self", "title"}:
            assert f"`{name}`" in REFERENCE, name
    public = {name for name in vars(PeasyJobQueue) if isinstance(vars(PeasyJobQueue)[name], property)} - {"pk"}
    assert all(f"`{name}`" in REFERENCE for name in {*public, *PeasyJobQueue.USER_FIELDS})
