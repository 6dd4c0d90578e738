"""The README is true: its snippets run, and what the package has is in it."""

import ast
import re
import sys
import types
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
from django.contrib.auth.models import User
from django.core.management import load_command_class
from django.db import connections
from django.db.backends.sqlite3.base import DatabaseWrapper
from django.test import SimpleTestCase

from peasy_jobs import checks, conf, execution
from peasy_jobs.claims import Ending
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy

README = Path(__file__).parent.parent.joinpath("README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def snippet(text):
    (found,) = [snippet for snippet in SNIPPETS if text in snippet]
    return found


def assigned(code):
    return {node.targets[0].id: node.value for node in ast.parse(code).body if isinstance(node, ast.Assign)}


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
    exec(snippet("# shop/views.py"), names)
    run_next(names["job"])
    watch = snippet("job.result")
    exec(watch, names)
    comments = dict(re.findall(r"^(job\.\S+)  # (.+)$", watch, re.MULTILINE))
    assert names["job"].status == PeasyJobQueue.COMPLETED
    assert {code: eval(code, names) for code in comments} == {
        'job.extra["progress"]': 100,
        "job.status_msg": "Exporting rows: 3 of 3",
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
def test_a_site_can_test_what_it_enqueues(shop):
    names = {"PeasyJobQueue": PeasyJobQueue, "export_data": shop.export_data}
    names["place_order"] = lambda shop_pk: shop.export_data(shop_pk)
    exec(snippet("test_an_order_is_exported"), names)
    names["test_an_order_is_exported"](SimpleTestCase())
    names["test_the_export"](SimpleTestCase())


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
    exec(snippet("init_command"), names)
    connection = DatabaseWrapper({**connections.settings["default"], **names["DATABASES"]["default"]}, "other")
    with connection.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.django_db
def test_the_hook_of_the_dashboard_lets_operators_in(client, settings, monkeypatch):
    module = types.ModuleType("shop.access")
    monkeypatch.setitem(sys.modules, "shop", types.ModuleType("shop"))
    monkeypatch.setitem(sys.modules, "shop.access", module)
    exec(snippet("# shop/access.py"), vars(module))
    settings.PEASY_DASHBOARD_PERMISSION = "shop.access.may"
    operator = User.objects.create(username="anna")
    client.force_login(operator)
    assert client.get("/peasy/").status_code == 403
    operator.groups.create(name="operators")
    assert client.get("/peasy/").status_code == 200


def test_every_snippet_is_python():
    for code in SNIPPETS:
        ast.parse(code)


def test_every_check_and_option_is_mentioned():
    for name in re.findall(r"peasy_jobs\.[EW]\d+", Path(checks.__file__).read_text()):
        assert f"`{name}`" in README
    assert f"`{min(rule.id for rule in conf.RULES.values())}`".strip("`") in README
    assert max(rule.id for rule in conf.RULES.values()) in README
    parser = load_command_class("peasy_jobs", "run_peasy").create_parser("manage.py", "run_peasy")
    ours = {"--concurrency", "--worker-type", "--queue", "--exit-on-empty", "--check"}
    assert ours <= set(parser._option_string_actions)
    assert all(f"`{option}" in README for option in ours)


def test_every_status_is_mentioned():
    for value, _ in PeasyJobQueue.STATUS_CHOICES:
        name = next(name for name, constant in vars(PeasyJobQueue).items() if constant == value and name.isupper())
        assert name in README
