"""Tests of the README and the manual: snippets run, links resolve, public names are documented."""

import ast
import configparser
import json
import os
import pkgutil
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from datetime import timedelta
from importlib.util import find_spec
from inspect import signature
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import AnonymousUser, User
from django.core.management import get_commands, load_command_class
from django.db import connection, connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.db.utils import load_backend
from django.template import engines
from django.test import RequestFactory
from django.utils import timezone

from peasy_jobs import conf, status_urls, statuses, urls
from peasy_jobs.job import Job
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import Peasy, peasy
from peasy_jobs.store.claiming import ClaimRequest
from peasy_jobs.store.values import JobUpdate
from peasy_jobs.templatetags.peasy_jobs import register
from peasy_jobs.web import status_document
from peasy_jobs.workers import execution
from tests.manual import BLOCKS, MANUAL, PAGES, README, ROOT, block, blocks

REFERENCE = PAGES[ROOT / "docs" / "settings.md"]
CHANGELOG = ROOT / "CHANGELOG.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
LANGUAGES = {
    "python",
    "html",
    "js",
    "json",
    "console",
    "ini",
    "yaml",
    "dockerfile",
    "sql",
    "text",
    "mermaid",
}
OTHER_COMMANDS = {"pip", ".", "wait", "systemctl", "journalctl", "sqlite3", "useradd", "gunicorn"}
# Settings that name a callable, with the path that the snippet of that callable gives.
HOOK_PATHS = dict(re.findall(r'settings\.py: (\w+) = "([\w.]+)"', MANUAL))
# Seconds that a process manager has to leave a runner for stopping.
STOP_SECONDS = int(conf.Conf().shutdown_timeout) + 10


def python_snippet(text):
    """Return the one Python snippet of the manual that contains this text."""
    return block("python", text)


def run_snippet(text, names=None):
    """Run a Python snippet in these global names, and return the names."""
    names = {} if names is None else names
    exec(python_snippet(text), names)
    return names


def import_snippet(monkeypatch, text, module_name):
    """Run a Python snippet as a module that can be imported by this name."""
    package_name, _, _ = module_name.rpartition(".")
    module = types.ModuleType(module_name)
    monkeypatch.setitem(sys.modules, package_name, types.ModuleType(package_name))
    monkeypatch.setitem(sys.modules, module_name, module)
    file_name = module_name.replace(".", "/") + ".py"
    exec(compile(python_snippet(text), file_name, "exec"), vars(module))
    return module


def claim_job(job):
    (claim,) = PeasyJobQueue.objects.claim(ClaimRequest(runner_id=1, limit=1, now=job.created))
    return claim


def run_job(job):
    """Claim a job, run it in this process and store its outcome, as a runner would."""
    claim = claim_job(job)
    reports = []
    outcome = execution.run(claim.run(), reports.append)
    update = JobUpdate(
        claim=claim,
        status=PeasyJobQueue.FAILED if outcome.error else PeasyJobQueue.COMPLETED,
        result=outcome.result,
        status_msg=reports[-1].status_msg,
        extra=reports[-1].extra,
    )
    PeasyJobQueue.objects.finish(1, [update], job.created)


@pytest.fixture
def shop_jobs(monkeypatch):
    """The module `shop.jobs` of the quickstart."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return import_snippet(monkeypatch, "export data to s3", "shop.jobs")


# Python snippets


def test_every_python_snippet_compiles():
    for code in blocks("python"):
        compile(code, "<manual>", "exec")


@pytest.mark.django_db
def test_the_quickstart_job_ends_with_the_values_shown_in_the_comments(shop_jobs):
    run_job(shop_jobs.export_data(17))
    names = run_snippet("job.result")
    comments = dict(re.findall(r"^(job\.\S+)  # (.+)$", python_snippet("job.result"), re.MULTILINE))
    values = {expression: eval(expression, names) for expression in comments}
    assert names["job"].status == PeasyJobQueue.COMPLETED
    assert values == {
        'job.extra["progress"]': 100,
        "job.status_msg": "Exporting rows: 10 of 10",
        "job.result": {"exported": 17},
    }
    assert {
        expression: ast.literal_eval(comment) for expression, comment in comments.items()
    } == values


@pytest.mark.django_db
def test_the_options_of_a_call_are_stored_with_the_job(shop_jobs):
    user = User.objects.create(username="anna")
    request = SimpleNamespace(user=user)
    run_snippet("timedelta(minutes=10)", {"request": request, "export_data": shop_jobs.export_data})
    job = PeasyJobQueue.objects.get(status=PeasyJobQueue.SCHEDULED)
    assert job.user == user
    assert job.priority == 5
    assert job.queue_name == "slow"
    assert job.args == (17,)


@pytest.mark.django_db
def test_map_enqueues_one_job_for_each_item(shop_jobs):
    request = SimpleNamespace(user=AnonymousUser())
    run_snippet("timedelta(minutes=10)", {"request": request, "export_data": shop_jobs.export_data})
    jobs = PeasyJobQueue.objects.filter(status=PeasyJobQueue.ENQUEUED).order_by("pk")
    assert [job.args for job in jobs] == [(17,), (18,), (19,)]


@pytest.mark.django_db
def test_the_tests_of_a_site_can_look_at_and_run_enqueued_jobs(shop_jobs, monkeypatch):
    exported = []

    def export(pk, job_pk):
        exported.append(pk)
        return {"exported": pk}

    monkeypatch.setattr(shop_jobs.export_data, "function", export)
    names = run_snippet("class ExportTests", {"__name__": "shop.tests"})
    tests = names["ExportTests"]()
    tests.client = SimpleNamespace(post=lambda path: shop_jobs.export_data(17))
    tests.test_the_button_enqueues()
    assert exported == [17]
    tests.test_the_export()


@pytest.mark.django_db
def test_arguments_are_stored_the_way_they_were_passed(shop_jobs):
    job = shop_jobs.export_data(shop_pk=17)
    assert job.args == ()
    assert job.kwargs == {"shop_pk": 17}


@pytest.mark.django_db
def test_the_crontab_command_enqueues_a_job(shop_jobs):
    exec(re.search(r'shell -v 0 -c "(.+)"', block("text", "crontab"))[1], {})
    assert PeasyJobQueue.objects.get().args == (17,)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("ready", "subscribers", "status"),
    [
        pytest.param(False, 1, PeasyJobQueue.SCHEDULED, id="not-ready"),
        pytest.param(True, 0, PeasyJobQueue.FAILED, id="no-subscribers"),
        pytest.param(True, 1, PeasyJobQueue.COMPLETED, id="delivered"),
    ],
)
def test_the_newsletter_job_runs_later_fails_at_once_or_completes(
    monkeypatch, ready, subscribers, status
):
    module = import_snippet(monkeypatch, "send the newsletter", "shop.mail")
    module.is_ready = lambda number: ready
    module.subscribers = lambda number: subscribers
    module.deliver = lambda number: None
    claim = claim_job(module.send_newsletter(7))
    assert claim.timeout == 120
    assert execution.run(claim.run(), lambda report: None).status == status


@pytest.mark.django_db
def test_update_status_stores_message_and_extra(shop_jobs):
    job = shop_jobs.export_data(17)
    run_snippet("peasy.update_status(job_pk", {"peasy": peasy, "job_pk": job.pk})
    job.refresh_from_db()
    assert job.status_msg == "Data gathered. Uploading."
    assert job.extra == {"progress": 50}


@pytest.mark.django_db
def test_updating_the_status_of_a_waiting_job_cancels_it(shop_jobs):
    job = shop_jobs.export_data(17)
    run_snippet(
        ".update(status=PeasyJobQueue.CANCELLED)", {"PeasyJobQueue": PeasyJobQueue, "job": job}
    )
    job.refresh_from_db()
    assert job.status == PeasyJobQueue.CANCELLED


def test_the_table_of_settings_matches_their_declarations():
    section = REFERENCE.partition("## Settings")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(PEASY_\w+)` \| `(.+?)` \| (.+?) \| (.+) \|$", section, re.MULTILINE)
    documented = [(name, eval(default), unit, text) for name, default, unit, text in rows]
    assert documented == [
        (setting.name, setting.default, setting.rule.unit, setting.description)
        for setting in conf.SETTINGS
    ]


def test_the_quickstart_and_the_deployment_page_show_the_same_sqlite_options(tmp_path):
    deployment = run_snippet('"ENGINE": "django.db.backends.sqlite3"', {"BASE_DIR": tmp_path})
    quickstart = run_snippet("django_htmx", {"INSTALLED_APPS": [], "DATABASES": {"default": {}}})
    options = quickstart["DATABASES"]["default"]["OPTIONS"]
    assert options == deployment["DATABASES"]["default"]["OPTIONS"]


@pytest.mark.django_db
def test_the_sqlite_options_turn_on_wal_mode(tmp_path):
    names = run_snippet('"ENGINE": "django.db.backends.sqlite3"', {"BASE_DIR": tmp_path})
    settings = {**connections.settings["default"], **names["DATABASES"]["default"]}
    connection = DatabaseWrapper(settings, "other")
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_every_callable_setting_is_shown_with_its_path():
    assert set(HOOK_PATHS) == {setting.name for setting in conf.CALLABLES}
    for path in HOOK_PATHS.values():
        module, _, name = path.rpartition(".")
        assert python_snippet(f"def {name}(").startswith(f"# {module.replace('.', '/')}.py; ")


@pytest.mark.django_db
def test_the_permission_callable_lets_operators_open_the_dashboard(client, settings, monkeypatch):
    import_snippet(monkeypatch, "def may(request", "shop.access")
    settings.PEASY_DASHBOARD_PERMISSION = HOOK_PATHS["PEASY_DASHBOARD_PERMISSION"]
    user = User.objects.create(username="anna")
    client.force_login(user)
    assert client.get("/peasy/").status_code == 403
    user.groups.create(name="operators")
    assert client.get("/peasy/").status_code == 200


def test_the_can_view_callable_shows_public_jobs_to_users(rf):
    can_view = run_snippet("def can_view(")["can_view"]
    public_job = PeasyJobQueue(queue_name="public")
    request = rf.get("/")
    request.user = User(username="anna")
    assert can_view(request, public_job)
    assert not can_view(request, PeasyJobQueue())
    request.user = AnonymousUser()
    assert not can_view(request, public_job)


def test_the_json_callable_removes_extra(rf):
    without_extra = run_snippet("def without_extra(")["without_extra"]
    document = {"id": "1", "extra": {"a": 1}}
    assert without_extra(rf.get("/"), PeasyJobQueue(), document) == {"id": "1"}


def test_the_mask_callable_masks_an_iban():
    masked = run_snippet("def masked(")["masked"]
    assert masked("iban")
    assert not masked("name")


@pytest.mark.django_db
def test_a_view_of_the_site_can_return_the_signed_link(shop_jobs, rf):
    names = run_snippet("def start_export(")
    response = names["start_export"](rf.post("/"), 17)
    assert response.status_code == 202
    assert list(json.loads(response.content)) == ["status"]


def test_a_renamed_job_function_is_found_under_its_old_name(shop_jobs):
    run_snippet("# until no job is waiting under this name", vars(shop_jobs))
    assert execution.find_job_function("shop.jobs.export") is shop_jobs.export_data


@pytest.mark.django_db
def test_the_deletion_snippet_deletes_only_jobs_that_ended_a_month_ago(shop_jobs):
    def create_job(completed, runner=None):
        job = shop_jobs.export_data(17)
        PeasyJobQueue.objects.filter(pk=job.pk).update(completed=completed, runner=runner)
        return job.pk

    now = timezone.now()
    create_job(completed=now - timedelta(days=40))
    still_running = create_job(completed=now - timedelta(days=40), runner=1)
    recent = create_job(completed=now - timedelta(days=2))
    waiting = create_job(completed=None)
    run_snippet("a_month_ago")
    kept = set(PeasyJobQueue.objects.values_list("pk", flat=True))
    assert kept == {still_running, recent, waiting}


def test_the_runner_can_use_another_port_than_the_web_servers(monkeypatch):
    names = {"os": os, "DATABASES": {"default": {}}}
    run_snippet("DATABASE_PORT", names)
    assert names["DATABASES"]["default"]["PORT"] == "6432"
    monkeypatch.setenv("DATABASE_PORT", "5432")
    run_snippet("DATABASE_PORT", names)
    assert names["DATABASES"]["default"]["PORT"] == "5432"


def test_the_logging_setting_writes_the_log_to_the_console():
    logging_setting = run_snippet("LOGGING = {")["LOGGING"]
    script = (
        "import logging, logging.config, sys\n"
        "logging.config.dictConfig(eval(sys.argv[1]))\n"
        "logging.getLogger('peasy_jobs').info('export (job 1) completed')"
    )
    command = [sys.executable, "-c", script, repr(logging_setting)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert finished.stderr.endswith(" INFO export (job 1) completed\n")


# Snippets in other languages


def test_every_snippet_is_in_a_language_that_is_tested():
    assert {snippet.language for snippet in BLOCKS} == LANGUAGES


def test_every_fence_is_read_as_a_snippet():
    for path, text in PAGES.items():
        snippets = [snippet for snippet in BLOCKS if snippet.page == path.name]
        assert text.count("```") == 2 * len(snippets), path.name


@pytest.mark.django_db
def test_every_template_snippet_shows_the_widget():
    job = PeasyJobQueue.objects.create(title="export", job_name="shop.jobs.export_data")
    for code in blocks("html"):
        request = RequestFactory().get("/")
        html = engines["django"].from_string(code).render({"job": job}, request)
        assert f"peasy-job-{job.pk}" in html


def test_every_javascript_snippet_is_valid(tmp_path):
    # tests/e2e runs them in a browser.
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for code in blocks("js"):
        path = tmp_path / "snippet.js"
        path.write_text(code)
        subprocess.run([node, "--check", path], check=True)


@pytest.mark.django_db
def test_the_json_snippet_has_the_keys_of_the_document(rf):
    (code,) = blocks("json")
    job = PeasyJobQueue.objects.create(
        title="export", job_name="shop.jobs.export_data", status=PeasyJobQueue.ONGOING
    )
    document = status_document.document(rf.get("/", {"t": "token"}), job)
    assert list(json.loads(code)) == list(document)


@pytest.mark.django_db
def test_postgresql_accepts_the_sql_snippets():
    if connection.vendor != "postgresql":
        pytest.skip("The statements are for PostgreSQL.")
    with connection.cursor() as cursor:
        for code in blocks("sql"):
            cursor.execute(code)


# Commands


def check_management_command(name, arguments):
    """Fail unless this management command exists and has these options."""
    command = load_command_class(get_commands()[name], name)
    options = command.create_parser("manage.py", name)._option_string_actions
    for argument in arguments:
        assert not argument.startswith("--") or argument in options, f"{name} {argument}"


def check_command(words):
    """Fail unless this shell command exists, as far as that can be told without running it."""
    while re.fullmatch(r"[A-Z_]+=\w+", words[0]):  # a variable for the command
        words = words[1:]
    match words:
        case ["make", target, *_]:
            assert f"\n{target}:" in ROOT.joinpath("Makefile").read_text()
        case ["python" | "python3", "manage.py", name, *arguments]:
            check_management_command(name, arguments)
        case ["django-admin", name, *arguments]:
            check_management_command(name, arguments)
        case ["python" | "python3" | ".venv/bin/python", "-m", module, *arguments]:
            assert find_spec(module)
            for argument in arguments:
                assert not argument.endswith(".py") or ROOT.joinpath(argument).is_file(), argument
        case ["docker", "compose", "run", "--rm", "web", *command]:
            check_command(command)
        case ["docker", "compose", command, *_]:
            assert command == "up"
        case _:
            assert words[0] in OTHER_COMMANDS, words


def test_every_shell_command_exists():
    for line in "".join(blocks("console")).splitlines():
        # A line in parentheses starts several commands.
        commands = re.split(r" & |; ", line.strip("()")) if line.startswith("(") else [line]
        for command in commands:
            check_command(shlex.split(command))


def test_every_management_command_in_the_text_exists():
    for name, options in re.findall(r"manage\.py (\w+)((?: --[\w-]+)*)", MANUAL):
        check_management_command(name, options.split())


def test_the_readme_shows_both_commands_for_a_fresh_machine():
    assert "```console\nmake demo\nmake test\n```" in PAGES[README]


# Deployment


@pytest.fixture
def systemd_unit():
    (text,) = blocks("ini")
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # keep the case of the names
    unit.read_string(text)
    return unit


def test_the_systemd_unit_leaves_the_runner_time_to_stop(systemd_unit):
    assert systemd_unit.sections() == ["Unit", "Service", "Install"]
    assert systemd_unit["Service"]["KillMode"] == "mixed"
    assert int(systemd_unit["Service"]["TimeoutStopSec"]) >= STOP_SECONDS


def test_the_systemd_unit_starts_the_runner(systemd_unit):
    python, script, name, *arguments = shlex.split(systemd_unit["Service"]["ExecStart"])
    assert python.startswith("/")
    assert script == "manage.py"
    check_management_command(name, arguments)


def test_the_yaml_snippets_are_yaml():
    # A pattern instead of a YAML parser, which would be one more dependency of the tests.
    simple_line = r"#.*|( {2})*(- )?([\w./<-]+:( \S.*)?|[\w./:\"-]+)(  # .*)?"
    for code in blocks("yaml"):
        for line in code.splitlines():
            assert re.fullmatch(simple_line, line), line


def test_the_commands_of_the_containers_exist():
    for code in blocks("yaml"):
        for command in re.findall(r"command: (\[.*\])", code):
            check_command(json.loads(command))


def test_docker_compose_leaves_the_runner_time_to_stop():
    compose = block("yaml", "x-site")
    assert "init: true" in compose
    assert "stop_signal: SIGINT" in compose
    assert int(re.search(r"stop_grace_period: (\d+)s", compose)[1]) >= STOP_SECONDS


def test_kubernetes_leaves_the_runner_time_to_stop():
    deployment = block("yaml", "kind: Deployment")
    seconds = re.search(r"terminationGracePeriodSeconds: (\d+)", deployment)[1]
    assert int(seconds) >= STOP_SECONDS
    assert "livenessProbe" not in deployment


def test_the_image_is_built_with_commands_that_exist():
    for line in "".join(blocks("dockerfile")).splitlines():
        if line.startswith("RUN "):
            check_command(shlex.split(line)[1:])


def test_the_image_does_not_run_as_root():
    last_line = "".join(blocks("dockerfile")).splitlines()[-1]
    assert re.fullmatch(r"USER [1-9]\d*", last_line)


@pytest.fixture
def container_settings(monkeypatch, tmp_path):
    """Return the settings of the containers, as a function of the environment variables."""

    def load(**environment):
        monkeypatch.setattr(os, "environ", environment)
        middleware = ["django.middleware.security.SecurityMiddleware", "another"]
        return run_snippet("PGHOST", {"BASE_DIR": tmp_path, "MIDDLEWARE": middleware})

    return load


def test_the_container_settings_also_work_outside_of_a_container(container_settings, tmp_path):
    settings = container_settings()
    assert settings["STATIC_ROOT"].parent == tmp_path
    assert "DATABASES" not in settings


def test_docker_compose_sets_the_variables_that_the_settings_read(container_settings):
    shared_part = block("yaml", "x-site").partition("services:")[0]
    variables = dict(re.findall(r"^    ([A-Z_]+): (.+)$", shared_part, re.MULTILINE))
    settings = container_settings(**variables)
    backend = load_backend(settings["DATABASES"]["default"]["ENGINE"])
    assert backend.DatabaseWrapper.vendor == "postgresql"
    assert settings["DEBUG"] is False
    assert settings["SECRET_KEY"] == "change-me-too"
    assert settings["ALLOWED_HOSTS"] == ["localhost"]
    assert settings["MIDDLEWARE"].index("whitenoise.middleware.WhiteNoiseMiddleware") == 1


# Pages


def anchors(text):
    """Return the anchors of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_every_link_has_a_target():
    for page, text in {**PAGES, CHANGELOG: CHANGELOG.read_text()}.items():
        for link in re.findall(r"\]\(([^)]+)\)", text):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.is_file(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: {link}"


def test_every_page_is_linked_from_the_readme():
    for page in PAGES.keys() - {README}:
        assert f"]({page.relative_to(ROOT)})" in PAGES[README], page.name


def test_every_page_starts_with_a_title_and_one_sentence():
    for page in PAGES.keys() - {README}:
        title, sentence = PAGES[page].split("\n\n")[:2]
        assert title.startswith("# "), page.name
        assert re.fullmatch(r"[^.]+(\.\w[^.]*)*\.", sentence), page.name


def test_the_readme_is_short():
    assert PAGES[README].startswith("# ")
    assert len(PAGES[README].splitlines()) <= 200


# Contributing

MODULE_ROW = re.compile(r"^\| `([\w/]+\.py)` \| .+ \|$", re.MULTILINE)


def test_contributing_lists_every_module_once():
    package = ROOT / "peasy_jobs"
    modules = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "__init__.py" and path.parent.name != "migrations"
    ]
    assert sorted(MODULE_ROW.findall(PAGES[CONTRIBUTING])) == sorted(modules)


def test_every_file_that_contributing_names_exists():
    for path in re.findall(
        r"`((?:peasy_jobs|tests|docs)/[\w/]*(?:\.py|\.md|/))`", PAGES[CONTRIBUTING]
    ):
        assert ROOT.joinpath(path).exists(), path


# Architecture


def words_of_picture(name):
    """Return the text of a picture in docs/ as one string."""
    root = ElementTree.parse(ROOT / "docs" / name).getroot()
    return " ".join(root.itertext())


def enforced_layers():
    """Return the layers that import-linter enforces, each as a list of module names."""
    configuration = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text())
    contracts = configuration["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    return [re.split(r" [|:] ", layer) for layer in layers]


def test_the_picture_of_the_layers_shows_what_import_linter_enforces():
    boxes = re.findall(r'\["([^":]+): [^"]+"\]', block("mermaid", "conf: the settings"))
    shown = [name for box in boxes for name in box.split(", ")]
    depths = {name: depth for depth, names in enumerate(enforced_layers()) for name in names}
    assert set(shown) == set(depths)
    assert [depths[name] for name in shown] == sorted(depths.values())


def test_the_svg_of_the_layers_names_the_same_modules():
    words = set(re.findall(r"\w+", words_of_picture("layers.svg")))
    assert {name for names in enforced_layers() for name in names} <= words


def test_the_svg_of_the_processes_names_the_same_processes():
    words = words_of_picture("processes.svg")
    for name in re.findall(r'[\[(]"([^"]+)"[\])]', block("mermaid", "Fork server")):
        assert name in words


def test_the_picture_of_the_statuses_shows_the_declared_transitions():
    arrows = re.findall(
        r"^ +([A-Z]+) --> ([A-Z]+): ", block("mermaid", "stateDiagram"), re.MULTILINE
    )
    shown = [(getattr(statuses, old), getattr(statuses, new)) for old, new in arrows]
    declared = {(change.old, change.new) for change in statuses.TRANSITIONS}
    assert sorted(shown) == sorted(declared)


def test_the_svg_of_the_statuses_names_the_same_statuses_and_transitions():
    words = words_of_picture("states.svg")
    picture = block("mermaid", "stateDiagram")
    for _, label in PeasyJobQueue.STATUS_CHOICES:
        assert label.upper() in words
    for label in re.findall(r": (.+)$", picture, re.MULTILINE):
        assert label.removesuffix(" with run_after") in words


LIFE_OF_ONE_JOB = (
    PAGES[ROOT / "docs" / "architecture.md"]
    .partition("## The life of one job")[2]
    .partition("\n## ")[0]
)
STEPS = re.split(r"\n(?= ?\d+\. )", LIFE_OF_ONE_JOB)[1:]


def test_the_life_of_one_job_has_ten_numbered_steps():
    assert [int(step.partition(".")[0]) for step in STEPS] == list(range(1, 11))


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.split("**")[1])
def test_every_step_of_a_job_names_functions_that_exist(step):
    names = re.findall(r"`(peasy_jobs\.[\w.]+)`", step)
    assert names
    for name in names:
        assert callable(pkgutil.resolve_name(name)), name


# Names of the package


def test_every_check_is_documented():
    checks = ROOT.joinpath("peasy_jobs/checks.py").read_text()
    for check_id in re.findall(r"peasy_jobs\.[EW]\d+", checks):
        assert f"`{check_id}`" in REFERENCE, check_id


def test_the_check_of_every_setting_is_documented():
    row = next(line for line in REFERENCE.splitlines() if "a setting has an invalid value" in line)
    documented = []
    for first, last in re.findall(r"`(?:peasy_jobs\.)?E(\d+)`(?: … `E(\d+)`)?", row):
        documented += [f"E{number:03}" for number in range(int(first), int(last or first) + 1)]
    assert documented == sorted(setting.check_id for setting in conf.SETTINGS)


def test_every_option_of_the_runner_is_documented():
    runner = load_command_class("peasy_jobs", "run_peasy").create_parser("manage.py", "run_peasy")
    any_command = load_command_class("django.core", "check").create_parser("manage.py", "check")
    options = set(runner._option_string_actions) - set(any_command._option_string_actions)
    assert {"--queue", "--check"} <= options
    for option in options - {"--skip-checks"}:
        assert f"| `{option}" in REFERENCE, option


def test_every_status_is_documented():
    for status in statuses.STATUSES:
        name = status.word.upper()
        row = f"| `{name}` | {status.letter} | {status.word} | {status.description} |"
        assert row in REFERENCE
        assert getattr(PeasyJobQueue, name) == status.letter


def test_every_url_name_is_documented():
    for pattern in urls.urlpatterns:
        name = f"`peasy_jobs:{pattern.name}`"
        (row,) = [line for line in REFERENCE.splitlines() if name in line]
        is_in_both = pattern in status_urls.urlpatterns
        assert ("| both |" in row) == is_in_both, name


def test_every_template_tag_is_documented():
    for name in register.tags:
        assert f"`{{% {name} " in REFERENCE, name


@pytest.mark.parametrize("owner", [Peasy, Job])
def test_every_public_method_is_documented(owner):
    for name in vars(owner):
        if not name.startswith("_") and name != "with_pk":
            assert re.search(rf"`(@?peasy)?\.{name}\b", REFERENCE), name


@pytest.mark.parametrize("function", [Peasy.job, Job.using])
def test_every_option_of_a_job_is_documented(function):
    for name in signature(function).parameters.keys() - {"self", "title"}:
        assert f"`{name}`" in REFERENCE, name


def test_every_public_property_of_the_row_is_documented():
    properties = {
        name for name, value in vars(PeasyJobQueue).items() if isinstance(value, property)
    }
    for name in {*properties, *PeasyJobQueue.USER_FIELDS} - {"pk"}:
        assert f"`{name}`" in REFERENCE, name
