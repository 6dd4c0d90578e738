"""When a worker, the fork server or the runner dies, only running jobs are charged for it."""

import fcntl
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from django.db import connection, transaction
from django.utils import timezone

from peasy_jobs.models import PeasyJobQueue, PeasyRunner
from peasy_jobs.statuses import CANCELLED, COMPLETED, FAILED, ONGOING
from peasy_jobs.store.clock import database_now
from peasy_jobs.store.values import Claim
from peasy_jobs.workers.channel import frame
from peasy_jobs.workers.processes import ProcessWorker
from peasy_jobs.workers.protocol import (
    TICKET_SIZE,
    Outcome,
    RequestKind,
    Ticket,
    pack_worker_message,
)
from tests import jobs
from tests.jobs import notes
from tests.processes import both_worker_types
from tests.rows import (
    finished,
    heartbeats,
    is_gone,
    row,
    runner,
    running,
    server_of,
    with_app,
    workers_of,
)
from tests.waiting import wait_until

KEEP_ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}


def started_pids(record: Path) -> list[int]:
    """Return the process id of each run so far."""
    return [
        int(line.removeprefix("started ")) for line in notes(record) if line.startswith("started ")
    ]


def finish(worker: ProcessWorker, *, pk: int, fencing_token: int) -> None:
    """Send what a worker sends when it has run a job."""
    outcome = Outcome(pk, fencing_token, 0.0, 0.0, COMPLETED, None, None, 0.0)
    worker.worker_socket.sendall(frame(pack_worker_message(outcome)))


# A worker dies


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("SIGKILL", "killed by SIGKILL; often out of memory"),
        ("segfault", "killed by SIGSEGV"),
        ("os._exit", "ended with exit code 7"),
    ],
)
def test_a_job_whose_worker_is_killed_runs_again_once_and_fails_the_second_time(
    run_peasy, tmp_path, how, reason
):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2")
    long = jobs.wait_for(str(tmp_path / "go"))
    first = running(long)
    (job,) = finished(jobs.die_by(how, str(record)))
    assert job.status == FAILED
    assert job.error == f"The worker running this job died ({reason})."
    assert job.attempts == 2
    assert job.crashes == 2
    assert job.claims == 2
    assert job.runner_id is None
    assert len(job.errors) == 1
    assert job.created <= job.started <= job.completed
    assert len(set(started_pids(record))) == 2, "the worker was not replaced"
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    assert f"died ({reason}). It runs again." in command.output()
    Path(tmp_path, "go").touch()
    (long,) = finished(long)
    assert long.status == COMPLETED
    assert long.attempts == 1
    assert long.crashes == 0
    assert long.claims == first.claims


def test_a_job_whose_worker_dies_once_completes_in_its_second_run(run_peasy, tmp_path):
    run_peasy()
    (job,) = finished(jobs.die_once(str(tmp_path / "record")))
    assert job.status == COMPLETED
    assert job.result == "survived"
    assert job.error == ""
    assert job.attempts == 2
    assert job.crashes == 1
    assert job.claims == 2
    assert len(notes(tmp_path / "record")) == 2


def test_a_job_that_kills_its_runner_fails_although_short_jobs_were_claimed_with_it(
    run_peasy,
):
    first = jobs.nothing.map([()] * 100)
    killer = jobs.die()
    last = jobs.nothing.map([()] * 100)
    # Runs: it dies before the job is marked as started, twice after that, and then it has failed.
    for _ in range(4):
        command = run_peasy(
            "--worker-type", "thread", "--concurrency", "1", "--exit-on-empty", settings=KEEP_ALL
        )
        if not command.wait():
            break
        command.kill()
    assert {job.status for job in finished(*first, *last)} == {COMPLETED}
    (job,) = finished(killer)
    assert job.status == FAILED
    assert job.crashes == 2
    assert max(row(job).claims for job in first) <= 4


def test_without_crash_retries_a_job_fails_when_its_worker_dies(run_peasy, tmp_path):
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_once(str(tmp_path / "record")))
    assert job.status == FAILED
    assert job.attempts == 1
    assert job.crashes == 1
    assert len(notes(tmp_path / "record")) == 1


def test_jobs_assigned_to_a_worker_that_dies_are_not_charged_and_run_once(run_peasy, tmp_path):
    deadly, record = tmp_path / "deadly", str(tmp_path / "record")
    run_peasy(settings=KEEP_ALL)
    # The runner sees that jobs are short, so it assigns many to a worker at once.
    finished(*[jobs.nothing() for _ in range(100)])
    with transaction.atomic():
        before = [jobs.write_note(record, number) for number in range(5)]
        bad = jobs.die_by("SIGKILL", str(deadly))
        after = [jobs.write_note(record, number) for number in range(5, 50)]
    bad, *not_started = finished(bad, *before, *after)
    assert bad.status == FAILED
    assert bad.attempts == 2
    assert bad.crashes == 2
    assert len(notes(deadly)) == 2
    assert {job.status for job in not_started} == {COMPLETED}
    assert {job.attempts for job in not_started} == {1}
    assert {job.crashes for job in not_started} == {0}
    assert sorted(map(int, notes(record))) == list(range(50))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux makes the pipes of a user smaller who has many"
)
def test_tickets_that_do_not_fit_into_the_pipe_are_sent_later_or_recalled():
    worker = ProcessWorker(1, lambda what, worker: None, None)
    size = fcntl.fcntl(worker.ticket_pipe.write_fd, fcntl.F_SETPIPE_SZ, 4096)
    claims = [Claim(pk, 1, "", "", 1, 0, None, None) for pk in range(1000)]
    try:
        worker.hand_out(claims)
        taken = os.read(worker.ticket_pipe.read_fd, size)
        finish(worker, pk=0, fencing_token=1)
        assert [event.pk for event in worker.receive()] == [0]
        taken += os.read(worker.ticket_pipe.read_fd, size)
        read_pks = [ticket.pk for ticket in Ticket.unpack_all(taken)]
        assert read_pks == list(range(2 * size // TICKET_SIZE)), "not each once, in order"
        assert worker.recall() == claims[len(read_pks) :]
        assert list(worker.pending) == read_pks[1:]
    finally:
        worker.close()
        worker.worker_socket.close()


def test_an_outcome_of_a_lost_claim_does_not_end_a_later_claim_of_the_job():
    worker = ProcessWorker(1, lambda what, worker: None, None)
    later = Claim(7, 2, "", "", 1, 0, None, None)
    try:
        worker.hand_out([later])
        finish(worker, pk=7, fencing_token=1)
        assert [(event.pk, event.fencing_token) for event in worker.receive()] == [(7, 1)]
        assert worker.recall() == [later]
    finally:
        worker.close()
        worker.worker_socket.close()


def test_a_worker_that_is_being_killed_is_given_no_job():
    requests = []
    worker = ProcessWorker(1, lambda what, worker: requests.append(what), None)
    worker.ready = True
    worker.kill()
    assert requests == [RequestKind.KILL]
    assert worker.ready is False
    worker.close()
    worker.worker_socket.close()


def test_a_worker_that_dies_while_it_is_idle_is_replaced(run_peasy):
    command = run_peasy()
    (worker,) = workers_of(command)
    finished(jobs.nothing())
    worker.kill()
    wait_until(lambda: [process.pid for process in workers_of(command)] != [worker.pid])
    (job,) = finished(jobs.echo(1))
    assert job.status == COMPLETED
    assert job.attempts == 1
    assert job.crashes == 0


def test_a_dead_worker_is_noticed_although_a_forked_process_keeps_its_socket_open(
    run_peasy, tmp_path
):
    go, record = tmp_path / "go", tmp_path / "record"
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_with_daemon(str(go), str(record)))
    assert job.status == FAILED
    assert job.crashes == 1
    (daemon,) = (int(line.split()[1]) for line in notes(record))
    assert psutil.pid_exists(daemon)
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    go.touch()


@pytest.mark.parametrize(
    ("app", "message"),
    [
        ("ForkFails", "Could not start a worker process: "),
        ("WorkersRaiseAtStart", "A worker process failed."),
        (
            "WorkersDieAtStart",
            "A worker process ended before it ran a job (killed by SIGKILL; often out of memory).",
        ),
        ("TruncatedReport", "The fork server died (exit code -9). Starting another."),
    ],
)
def test_workers_that_cannot_start_are_retried_once_a_second(run_peasy, tmp_path, app, message):
    free, job = tmp_path / "free", jobs.echo(1)
    command = run_peasy(
        "--concurrency",
        "2",
        settings={"PEASY_LEASE": 2, **with_app(f"tests.fault_apps.{app}")},
        env={"FAULT_ENDS_FILE": str(free)},
    )
    command.wait_for_output(message)
    began = time.monotonic()
    heartbeats(5)  # there is one every 0.4 s with this lease
    assert command.output().count(message) <= 4 + 2 * (time.monotonic() - began)
    assert command.output().count(message) < 100
    free.touch()
    (job,) = finished(job)
    assert job.result == 1
    assert job.attempts == 1
    assert job.crashes == 0


# What a job may start


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_job_may_use_multiprocessing(run_peasy, tmp_path, method):
    run_peasy()
    (job,) = finished(jobs.use_multiprocessing(method, str(tmp_path / "touched")))
    assert job.error == ""
    assert job.result == [0, -signal.SIGTERM]
    assert Path(tmp_path, "touched").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_program_started_by_a_job_can_be_stopped_by_a_signal(run_peasy, signum):
    run_peasy()
    (job,) = finished(jobs.end_program(int(signum)))
    assert job.result == -signum


# The fork server dies


def test_a_dead_fork_server_is_replaced_and_no_job_is_charged(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings=KEEP_ALL)
    long = [jobs.wait_in_run(str(tmp_path)), jobs.wait_for(str(tmp_path / "2"), str(record))]
    wait_until(lambda: len(started_pids(record)) == 2)
    assert {running(job).status for job in long} == {ONGOING}
    server_of(command).kill()
    command.wait_for_output("The fork server died (exit code -9). Starting another.")
    wait_until(lambda: len(started_pids(record)) == 4)
    assert all(is_gone(pid) for pid in started_pids(record)[:2])
    for name in "1234":
        Path(tmp_path, name).touch()
    for job in finished(*long):
        assert job.status == COMPLETED
        assert job.attempts == 1
        assert job.crashes == 0
        assert job.claims == 2
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_fork_server_that_dies_while_its_runner_is_suspended_is_replaced(run_peasy):
    command = run_peasy("--concurrency", "2")
    finished(jobs.nothing())
    server, workers = server_of(command), workers_of(command)
    command.signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(command.pid).status() == psutil.STATUS_STOPPED)
    server.kill()
    wait_until(lambda: all(is_gone(process.pid) for process in workers))
    command.signal(signal.SIGCONT)
    (job,) = finished(jobs.echo(1))
    assert job.status == COMPLETED
    assert job.crashes == 0


# The runner dies


@pytest.mark.parametrize("job", ["wait_for", "program_and_wait", "hold_gil", None])
def test_workers_and_programs_of_jobs_end_within_a_second_of_their_runner(run_peasy, tmp_path, job):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2")
    if job is not None:
        arguments = [] if job == "hold_gil" else [str(tmp_path / "never")]
        getattr(jobs, job)(*arguments, str(record))
        wait_until(lambda: notes(record))
    assert len(workers_of(command)) == 2
    command.kill()
    wait_until(lambda: not command.processes(), 1, lambda: f"Left: {command.processes()}")


def test_a_runner_that_dies_before_its_fork_server_is_ready_leaves_no_process(run_peasy):
    command = run_peasy("--concurrency", "2")
    command.kill()
    wait_until(lambda: not command.processes(), 2, lambda: f"Left: {command.processes()}")


def test_a_restarted_runner_rescues_its_jobs_at_once_and_runs_each_once_more(run_peasy, tmp_path):
    record = tmp_path / "record"
    long = [jobs.wait_for(str(tmp_path / "go"), str(record)) for _ in range(3)]
    waiting = jobs.write_note(str(tmp_path / "other"))
    first = run_peasy("--concurrency", "3")
    wait_until(lambda: len(started_pids(record)) == 3)
    old = runner()
    first.kill()
    second = run_peasy("--concurrency", "3")
    # The lease of the first would have lasted 30 s.
    wait_until(lambda: len(started_pids(record)) == 6, 15)
    assert not PeasyRunner.objects.filter(pk=old.pk).exists()
    Path(tmp_path, "go").touch()
    for job in finished(*long):
        assert job.status == COMPLETED
        assert job.attempts == 2
        assert job.crashes == 1
        assert job.claims == 2
    (waiting,) = finished(waiting)
    assert waiting.attempts == 1
    assert waiting.crashes == 0
    assert len(started_pids(record)) == 6
    assert f"{old} is gone. Jobs rescued: 3." in second.output()


def test_a_job_whose_runner_died_twice_fails_and_keeps_its_start_time(run_peasy, tmp_path):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "never"), str(record))
    for run in (1, 2):
        command = run_peasy()
        wait_until(lambda run=run: len(started_pids(record)) == run)
        begun = running(job)
        command.kill()
    old = runner()
    run_peasy()
    (job,) = finished(job)
    assert job.status == FAILED
    assert job.attempts == 2
    assert job.crashes == 2
    assert job.claims == 2
    assert (
        job.error
        == f"The runner of this job ({old.host}, pid {old.pid}) died before it had finished."
    )
    assert job.started == begun.started
    assert job.started <= job.completed
    assert len(started_pids(record)) == 2


def test_jobs_that_had_not_started_when_the_runner_died_are_not_charged(run_peasy, tmp_path):
    record = str(tmp_path / "record")
    first = run_peasy(settings=KEEP_ALL)
    finished(*[jobs.nothing() for _ in range(100)])
    with transaction.atomic():
        long = jobs.kill_runner(first.pid, str(tmp_path / "long"))
        short = [jobs.write_note(record, number) for number in range(50)]
    first.killed = True
    first.process.wait()
    held = PeasyJobQueue.objects.filter(status=ONGOING).count()
    run_peasy(settings=KEEP_ALL)
    long, *short = finished(long, *short)
    assert long.status == COMPLETED
    assert long.attempts == 2
    assert long.crashes == 1
    assert {job.status for job in short} == {COMPLETED}
    assert {job.attempts for job in short} == {1}
    assert {job.crashes for job in short} == {0}
    assert sorted(map(int, notes(record))) == list(range(50))
    assert held > 1


def test_a_runner_whose_process_is_hidden_is_presumed_dead_only_when_it_has_died(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    keeper = run_peasy()
    wait_until(lambda: started_pids(record))
    other = run_peasy(settings=with_app("tests.fault_apps.OtherProcessesHidden"))
    # The other runner completes this one, so it has looked for dead runners before.
    finished(jobs.nothing())
    assert "is gone" not in other.output()
    keeper.kill()
    # The lease would have lasted 30 s.
    wait_until(lambda: len(started_pids(record)) == 2, 10, other.describe)
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.attempts == 2
    assert job.crashes == 1
    assert job.claims == 2


def test_jobs_of_a_runner_on_another_host_are_rescued_when_its_lease_expires(run_peasy, tmp_path):
    job = jobs.wait_for(str(tmp_path / "go"))
    now = timezone.now()
    away = PeasyRunner.objects.create(
        host="elsewhere",
        host_id="another boot of another host",
        pid=os.getpid(),
        pid_started="0",
        worker_type="process",
        concurrency=1,
        started=now,
        heartbeat=now,
        lease_until=database_now(connection).timestamp() + 4,
    )
    PeasyJobQueue.objects.filter(pk=job.pk).update(
        status=ONGOING, runner=away, claims=1, attempts=1, started=now
    )
    Path(tmp_path, "go").touch()
    command = run_peasy(settings={"PEASY_LEASE": 2})
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.attempts == 2
    assert job.crashes == 1
    assert job.claims == 2
    assert job.started.timestamp() > away.lease_until
    assert f"{away} is gone. Jobs rescued: 1." in command.output()
    assert not PeasyRunner.objects.filter(pk=away.pk).exists()


def test_a_runner_that_renews_its_lease_keeps_its_job_although_its_process_seems_gone(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: started_pids(record))
    PeasyRunner.objects.update(host_id="another boot of another host")
    keeper = runner()
    other = run_peasy(settings={"PEASY_LEASE": 2})
    other_row = PeasyRunner.objects.exclude(pk=keeper.pk).get()
    # It has looked for dead runners several times since.
    wait_until(
        lambda: (
            PeasyRunner.objects.get(pk=other_row.pk).heartbeat - other_row.heartbeat
            > timedelta(seconds=4)
        )
    )
    assert row(job).runner_id == keeper.pk
    assert "is gone" not in other.output()
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert job.attempts == 1
    assert job.crashes == 0
    assert len(started_pids(record)) == 1


# The runner is suspended for longer than its lease


@both_worker_types
def test_a_runner_suspended_beyond_its_lease_cannot_overwrite_a_later_attempt(
    run_peasy, tmp_path, worker_type
):
    record = tmp_path / "record"
    straggler = run_peasy("--worker-type", worker_type, settings={"PEASY_LEASE": 2})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: len(started_pids(record)) == 1)
    old = runner()
    straggler.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: len(started_pids(record)) == 2, message=other.describe)
    later_attempt = running(job)
    assert later_attempt.claims == 2
    assert later_attempt.crashes == 1

    # The first run completes, but its runner was presumed dead.
    Path(tmp_path, "1").touch()
    straggler.signal(signal.SIGCONT)
    straggler.wait_for_output("This runner's lease was revoked.")
    wait_until(lambda: PeasyRunner.objects.filter(pid=straggler.pid).exclude(pk=old.pk).exists())
    (mine,) = PeasyRunner.objects.filter(pid=straggler.pid)
    wait_until(lambda: PeasyRunner.objects.get(pk=mine.pk).heartbeat > mine.heartbeat)
    now = row(job)
    assert now.status == ONGOING
    assert now.runner_id == later_attempt.runner_id
    assert now.result is None
    assert now.claims == 2

    Path(tmp_path, "2").touch()
    (done,) = finished(job)
    assert done.status == COMPLETED
    assert done.result == "run 2"
    assert done.attempts == 2
    assert done.crashes == 1
    assert "Traceback" not in straggler.output()

    # It goes on under a new id.
    other.signal(signal.SIGTERM)
    assert other.wait() == 0
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_runner_whose_lease_was_revoked_stops_its_jobs(run_peasy, tmp_path):
    record = tmp_path / "record"
    straggler = run_peasy(settings={"PEASY_LEASE": 2})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: len(started_pids(record)) == 1)
    straggler.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: len(started_pids(record)) == 2, message=other.describe)
    straggler.signal(signal.SIGCONT)
    straggler.wait_for_output("This runner's lease was revoked.")
    wait_until(lambda: is_gone(started_pids(record)[0]))
    assert not is_gone(started_pids(record)[1])
    Path(tmp_path, "2").touch()
    (done,) = finished(job)
    assert done.status == COMPLETED
    assert done.result == "run 2"
    assert done.attempts == 2
    assert done.crashes == 1
    assert "often out of memory" not in straggler.output()


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ONGOING, {"status": COMPLETED, "claims": 2, "attempts": 2, "crashes": 1}),
        (CANCELLED, {"status": CANCELLED, "claims": 1, "attempts": 1, "crashes": 0}),
    ],
)
def test_a_job_that_names_a_runner_without_a_row_is_rescued(run_peasy, status, expected):
    """A runner that was suspended during a claim and presumed dead claims under its old id."""
    job = jobs.echo("back")
    PeasyJobQueue.objects.filter(pk=job.pk).update(
        status=status, runner=10**6, claims=1, attempts=1, started=timezone.now()
    )
    run_peasy()
    wait_until(lambda: row(job).runner_id is None and row(job).completed)
    job = row(job)
    assert {name: getattr(job, name) for name in expected} == expected


def test_a_runner_suspended_for_less_than_its_lease_keeps_its_job(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy(settings={"PEASY_LEASE": 600})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: started_pids(record))
    command.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    finished(jobs.nothing())  # the other runner completes it
    Path(tmp_path, "1").touch()
    command.signal(signal.SIGCONT)
    (job,) = finished(job)
    assert job.status == COMPLETED
    assert job.result == "run 1"
    assert job.attempts == 1
    assert job.crashes == 0
    assert "is gone" not in other.output()
