"""Each status is declared once, and what repeats a part of it agrees with the declaration."""

from pathlib import Path

import pytest

import peasy_jobs
from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.statuses import STATUSES, TRANSITIONS, sources

jobs = PeasyJobQueue.objects
STYLESHEET = Path(peasy_jobs.__file__).parent / "static/peasy_jobs/peasy.css"
IDS = [status.word for status in STATUSES]


@pytest.mark.parametrize("attribute", ["letter", "word", "label", "icon", "description"])
def test_no_two_statuses_look_the_same(attribute):
    values = [str(getattr(status, attribute)) for status in STATUSES]
    assert sorted(set(values)) == sorted(values)


@pytest.mark.parametrize("status", STATUSES, ids=IDS)
def test_the_stylesheet_draws_the_icon_of_each_status(status):
    rule = f'[data-status="{status.word}"] .peasy-icon::before {{ content: "{status.icon}";'
    assert rule in STYLESHEET.read_text()


@pytest.mark.parametrize("status", STATUSES, ids=IDS)
def test_a_finished_job_can_only_be_retried(status):
    verbs = {change.verb for change in TRANSITIONS if change.old == status.letter}
    assert (verbs <= {"retry"}) == status.is_finished


def test_transitions_connect_declared_statuses():
    letters = {status.letter for status in STATUSES}
    assert {change.old for change in TRANSITIONS} <= letters
    assert {change.new for change in TRANSITIONS} == letters


def test_an_unknown_verb_is_refused():
    with pytest.raises(ValueError, match="No transition has the verb 'cancle'"):
        sources("cancle")


@pytest.mark.django_db
@pytest.mark.parametrize("status", STATUSES, ids=IDS)
@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_a_verb_changes_jobs_of_its_declared_statuses_only(verb, status):
    job = jobs.create(title="export", job_name="shop.jobs.export", status=status.letter)
    assert getattr(jobs, verb)(job.pk) == (status.letter in sources(verb))
    before, after = status.letter, jobs.get(pk=job.pk).status
    changed = {(change.old, change.new) for change in TRANSITIONS if change.verb == verb}
    assert before == after or (before, after) in changed
