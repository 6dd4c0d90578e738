"""A worker, the fork server or the runner dies: only the job that ran is charged, and nothing is lost."""

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

ALL = {"PEASY_MAX_COMPLETED": None, "PEASY_MAX_FAILED": None}


def started(record: Path) -> list[int]:
    """The process of each run so far."""
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
def test_a_job_whose_worker_dies_every_time_runs_again_once_and_has_then_failed(
    run_peasy, tmp_path, how, reason
):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2")
    long = jobs.wait_for(str(tmp_path / "go"))
    first = running(long)
    (job,) = finished(jobs.die_by(how, str(record)))
    assert (job.status, job.error) == (FAILED, f"The worker running this job died ({reason}).")
    assert (job.attempts, job.crashes, job.claims, job.runner_id, len(job.errors)) == (
        2,
        2,
        2,
        None,
        1,
    )
    assert job.created <= job.started <= job.completed
    assert len(set(started(record))) == 2  # another worker has taken the place of the first
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"
    assert f"died ({reason}). It runs again." in command.output()
    Path(tmp_path, "go").touch()
    (long,) = finished(long)
    assert (long.status, long.attempts, long.crashes, long.claims) == (
        COMPLETED,
        1,
        0,
        first.claims,
    )


def test_a_job_whose_worker_dies_once_completes_in_its_second_run(run_peasy, tmp_path):
    run_peasy()
    (job,) = finished(jobs.die_once(str(tmp_path / "record")))
    assert (job.status, job.result, job.error) == (COMPLETED, "survived", "")
    assert (job.attempts, job.crashes, job.claims) == (2, 1, 2)
    assert len(notes(tmp_path / "record")) == 2


def test_a_short_job_that_kills_its_runner_behind_other_short_ones_is_soon_charged_with_it(
    run_peasy,
):
    first = jobs.nothing.map([()] * 100)
    killer = jobs.die()
    last = jobs.nothing.map([()] * 100)
    for _ in range(4):  # ahead of its worker; twice marked as started; then it has failed
        command = run_peasy(
            "--worker-type", "thread", "--concurrency", "1", "--exit-on-empty", settings=ALL
        )
        if not command.wait():
            break
        command.kill()
    assert {job.status for job in finished(*first, *last)} == {COMPLETED}
    (job,) = finished(killer)
    assert (job.status, job.crashes) == (FAILED, 2)
    assert max(row(job).claims for job in first) <= 4


def test_without_crash_retries_a_job_whose_worker_dies_has_failed(run_peasy, tmp_path):
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_once(str(tmp_path / "record")))
    assert (job.status, job.attempts, job.crashes) == (FAILED, 1, 1)
    assert len(notes(tmp_path / "record")) == 1


def test_jobs_that_wait_in_the_pipe_of_a_dying_worker_are_not_charged_and_run_once(
    run_peasy, tmp_path
):
    deadly, record = tmp_path / "deadly", str(tmp_path / "record")
    run_peasy(settings=ALL)
    finished(
        *[jobs.nothing() for _ in range(100)]
    )  # seen to be short, so that many are given to a worker at once
    with transaction.atomic():
        before = [jobs.write_note(record, number) for number in range(5)]
        bad = jobs.die_by("SIGKILL", str(deadly))
        after = [jobs.write_note(record, number) for number in range(5, 50)]
    bad, *not_started = finished(bad, *before, *after)
    assert (bad.status, bad.attempts, bad.crashes) == (FAILED, 2, 2)
    assert len(notes(deadly)) == 2
    assert {(job.status, job.attempts, job.crashes) for job in not_started} == {(COMPLETED, 1, 0)}
    assert sorted(map(int, notes(record))) == list(range(50))


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux makes the pipes of a user smaller who has many"
)
def test_tickets_that_find_no_room_in_the_pipe_of_a_worker_follow_or_are_recalled():
    worker = ProcessWorker(1, lambda what, worker: None, None)
    size = fcntl.fcntl(worker.ticket_pipe.write_fd, fcntl.F_SETPIPE_SZ, 4096)
    claims = [Claim(pk, 1, "", "", None, None, 1, 0, None, None) for pk in range(1000)]
    try:
        worker.hand_out(claims)
        taken = os.read(worker.ticket_pipe.read_fd, size)
        finish(worker, pk=0, fencing_token=1)
        assert [event.pk for event in worker.receive()] == [0]
        taken += os.read(worker.ticket_pipe.read_fd, size)
        began = [ticket.pk for ticket in Ticket.unpack_all(taken)]
        assert began == list(range(2 * size // TICKET_SIZE)), "each once, in order"
        assert worker.recall() == claims[len(began) :]
        assert list(worker.pending) == began[1:]
    finally:
        worker.close()
        worker.worker_socket.close()


def test_an_outcome_of_a_claim_that_was_lost_leaves_the_new_claim_of_that_job_alone():
    worker = ProcessWorker(1, lambda what, worker: None, None)
    later = Claim(7, 2, "", "", None, None, 1, 0, None, None)
    try:
        worker.hand_out([later])
        finish(worker, pk=7, fencing_token=1)
        assert [(event.pk, event.fencing_token) for event in worker.receive()] == [(7, 1)]
        assert worker.recall() == [later]
    finally:
        worker.close()
        worker.worker_socket.close()


def test_a_worker_that_is_being_killed_gets_no_job():
    requests = []
    worker = ProcessWorker(1, lambda what, worker: requests.append(what), None)
    worker.ready = True
    worker.kill()
    assert (requests, worker.ready) == ([RequestKind.KILL], False)
    worker.close()
    worker.worker_socket.close()


def test_a_worker_that_dies_while_it_is_idle_is_replaced(run_peasy):
    command = run_peasy()
    (worker,) = workers_of(command)
    finished(jobs.nothing())
    worker.kill()
    wait_until(lambda: [process.pid for process in workers_of(command)] != [worker.pid])
    (job,) = finished(jobs.echo(1))
    assert (job.status, job.attempts, job.crashes) == (COMPLETED, 1, 0)


def test_a_death_is_noticed_though_a_forked_process_keeps_the_socket_of_the_worker_open(
    run_peasy, tmp_path
):
    go, record = tmp_path / "go", tmp_path / "record"
    run_peasy(settings={"PEASY_CRASH_RETRIES": 0})
    (job,) = finished(jobs.die_with_daemon(str(go), str(record)))
    assert (job.status, job.crashes) == (FAILED, 1)
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
def test_workers_that_cannot_start_are_tried_again_now_and_then(run_peasy, tmp_path, app, message):
    free, job = tmp_path / "free", jobs.echo(1)
    command = run_peasy(
        "--concurrency",
        "2",
        settings={"PEASY_LEASE": 2, **with_app(f"tests.fault_apps.{app}")},
        env={"FAULT_ENDS_FILE": str(free)},
    )
    command.wait_for_output(message)
    began = time.monotonic()
    heartbeats(5)  # each takes a fifth of the lease
    assert command.output().count(message) <= 4 + 2 * (time.monotonic() - began)
    assert command.output().count(message) < 100
    free.touch()
    (job,) = finished(job)
    assert (job.result, job.attempts, job.crashes) == (1, 1, 0)


# What a job may start


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_job_may_use_multiprocessing(run_peasy, tmp_path, method):
    run_peasy()
    (job,) = finished(jobs.use_multiprocessing(method, str(tmp_path / "touched")))
    assert (job.error, job.result) == ("", [0, -signal.SIGTERM])
    assert Path(tmp_path, "touched").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_program_that_a_job_starts_can_be_ended_by_a_signal(run_peasy, signum):
    run_peasy()
    (job,) = finished(jobs.end_program(int(signum)))
    assert job.result == -signum


# The fork server dies


def test_a_dead_worker_server_is_replaced_and_no_job_is_charged(run_peasy, tmp_path):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2", settings=ALL)
    long = [jobs.wait_in_run(str(tmp_path)), jobs.wait_for(str(tmp_path / "2"), str(record))]
    wait_until(lambda: len(started(record)) == 2)
    assert {running(job).status for job in long} == {ONGOING}
    server_of(command).kill()
    command.wait_for_output("The fork server died (exit code -9). Starting another.")
    wait_until(lambda: len(started(record)) == 4)
    assert all(is_gone(pid) for pid in started(record)[:2])
    for name in "1234":
        Path(tmp_path, name).touch()
    for job in finished(*long):
        assert (job.status, job.attempts, job.crashes, job.claims) == (COMPLETED, 1, 0, 2)
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_worker_server_that_dies_while_its_runner_is_suspended_is_replaced(run_peasy):
    command = run_peasy("--concurrency", "2")
    finished(jobs.nothing())
    server, workers = server_of(command), workers_of(command)
    command.signal(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(command.pid).status() == psutil.STATUS_STOPPED)
    server.kill()
    wait_until(lambda: all(is_gone(process.pid) for process in workers))
    command.signal(signal.SIGCONT)
    (job,) = finished(jobs.echo(1))
    assert (job.status, job.crashes) == (COMPLETED, 0)


# The runner dies


@pytest.mark.parametrize("job", ["wait_for", "program_and_wait", "hold_gil", None])
def test_no_worker_and_no_program_of_a_job_outlives_its_runner_by_more_than_a_second(
    run_peasy, tmp_path, job
):
    record = tmp_path / "record"
    command = run_peasy("--concurrency", "2")
    if job is not None:
        arguments = [] if job == "hold_gil" else [str(tmp_path / "never")]
        getattr(jobs, job)(*arguments, str(record))
        wait_until(lambda: notes(record))
    assert len(workers_of(command)) == 2
    command.kill()
    wait_until(lambda: not command.processes(), 1, lambda: f"Left: {command.processes()}")


def test_a_runner_that_dies_before_its_worker_server_is_ready_leaves_nothing(run_peasy):
    command = run_peasy("--concurrency", "2")
    command.kill()
    wait_until(lambda: not command.processes(), 2, lambda: f"Left: {command.processes()}")


def test_a_restarted_runner_rescues_its_jobs_at_once_and_runs_each_once_more(run_peasy, tmp_path):
    record = tmp_path / "record"
    long = [jobs.wait_for(str(tmp_path / "go"), str(record)) for _ in range(3)]
    waiting = jobs.write_note(str(tmp_path / "other"))
    first = run_peasy("--concurrency", "3")
    wait_until(lambda: len(started(record)) == 3)
    old = runner()
    first.kill()
    second = run_peasy("--concurrency", "3")  # of the same host, with a lease of 30 s
    wait_until(lambda: len(started(record)) == 6, 15)
    assert not PeasyRunner.objects.filter(pk=old.pk).exists()
    Path(tmp_path, "go").touch()
    for job in finished(*long):
        assert (job.status, job.attempts, job.crashes, job.claims) == (COMPLETED, 2, 1, 2)
    (waiting,) = finished(waiting)
    assert (waiting.attempts, waiting.crashes) == (1, 0)
    assert len(started(record)) == 6
    assert f"{old} is gone. Jobs rescued: 3." in second.output()


def test_a_job_whose_runner_died_twice_has_failed_and_its_start_is_kept(run_peasy, tmp_path):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "never"), str(record))
    for run in (1, 2):
        command = run_peasy()
        wait_until(lambda run=run: len(started(record)) == run)
        begun = running(job)
        command.kill()
    old = runner()
    run_peasy()
    (job,) = finished(job)
    assert (job.status, job.attempts, job.crashes, job.claims) == (FAILED, 2, 2, 2)
    assert (
        job.error
        == f"The runner of this job ({old.host}, pid {old.pid}) died before it had finished."
    )
    assert job.started == begun.started
    assert job.started <= job.completed
    assert len(started(record)) == 2


def test_jobs_that_had_not_begun_when_the_runner_died_are_not_charged(run_peasy, tmp_path):
    record = str(tmp_path / "record")
    first = run_peasy(settings=ALL)
    finished(*[jobs.nothing() for _ in range(100)])
    with transaction.atomic():
        long = jobs.kill_runner(first.pid, str(tmp_path / "long"))
        short = [jobs.write_note(record, number) for number in range(50)]
    first.killed = True
    first.process.wait()
    held = PeasyJobQueue.objects.filter(status=ONGOING).count()
    run_peasy(settings=ALL)
    long, *short = finished(long, *short)
    assert (long.status, long.attempts, long.crashes) == (COMPLETED, 2, 1)
    assert {(job.status, job.attempts, job.crashes) for job in short} == {(COMPLETED, 1, 0)}
    assert sorted(map(int, notes(record))) == list(range(50))
    assert held > 1


def test_a_runner_of_another_user_whose_process_is_hidden_is_found_dead_only_when_it_is(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    keeper = run_peasy()
    wait_until(lambda: started(record))
    other = run_peasy(settings=with_app("tests.fault_apps.OtherProcessesHidden"))
    finished(jobs.nothing())  # by the other, which has looked for the dead before
    assert "is gone" not in other.output()
    keeper.kill()
    wait_until(lambda: len(started(record)) == 2, 10, other.describe)  # with a lease of 30 s
    Path(tmp_path, "go").touch()
    (job,) = finished(job)
    assert (job.status, job.attempts, job.crashes, job.claims) == (COMPLETED, 2, 1, 2)


def test_the_jobs_of_a_runner_of_another_host_wait_for_the_end_of_its_lease(run_peasy, tmp_path):
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
    assert (job.status, job.attempts, job.crashes, job.claims) == (COMPLETED, 2, 1, 2)
    assert job.started.timestamp() > away.lease_until
    assert f"{away} is gone. Jobs rescued: 1." in command.output()
    assert not PeasyRunner.objects.filter(pk=away.pk).exists()


def test_a_runner_that_renews_its_lease_keeps_its_job_whatever_others_think_of_its_process(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    job = jobs.wait_for(str(tmp_path / "go"), str(record))
    run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: started(record))
    PeasyRunner.objects.update(host_id="another boot of another host")
    keeper = runner()
    other = run_peasy(settings={"PEASY_LEASE": 2})
    other_row = PeasyRunner.objects.exclude(pk=keeper.pk).get()
    # It has looked for the dead long after it could have said that one is.
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
    assert (job.attempts, job.crashes, len(started(record))) == (1, 0, 1)


# The runner is suspended for longer than its lease


@both_worker_types
def test_a_suspended_runner_writes_nothing_over_the_new_life_of_its_job(
    run_peasy, tmp_path, worker_type
):
    record = tmp_path / "record"
    straggler = run_peasy("--worker-type", worker_type, settings={"PEASY_LEASE": 2})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: len(started(record)) == 1)
    old = runner()
    straggler.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: len(started(record)) == 2, message=other.describe)
    new_life = running(job)
    assert (new_life.claims, new_life.crashes) == (2, 1)

    # The first run ends, successfully, and the runner that hears of it was presumed dead.
    Path(tmp_path, "1").touch()
    straggler.signal(signal.SIGCONT)
    straggler.wait_for_output("This runner's lease was revoked.")
    wait_until(lambda: PeasyRunner.objects.filter(pid=straggler.pid).exclude(pk=old.pk).exists())
    (mine,) = PeasyRunner.objects.filter(pid=straggler.pid)
    wait_until(lambda: PeasyRunner.objects.get(pk=mine.pk).heartbeat > mine.heartbeat)
    now = row(job)
    assert (now.status, now.runner_id, now.result, now.claims) == (
        ONGOING,
        new_life.runner_id,
        None,
        2,
    )

    Path(tmp_path, "2").touch()
    (done,) = finished(job)
    assert (done.status, done.result, done.attempts, done.crashes) == (COMPLETED, "run 2", 2, 1)
    assert "Traceback" not in straggler.output()

    # Under its new id it works as before.
    other.signal(signal.SIGTERM)
    assert other.wait() == 0
    (after,) = finished(jobs.echo("after"))
    assert after.result == "after"


def test_a_runner_that_was_taken_for_dead_ends_what_it_still_runs(run_peasy, tmp_path):
    record = tmp_path / "record"
    straggler = run_peasy(settings={"PEASY_LEASE": 2})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: len(started(record)) == 1)
    straggler.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    wait_until(lambda: len(started(record)) == 2, message=other.describe)
    straggler.signal(signal.SIGCONT)
    straggler.wait_for_output("This runner's lease was revoked.")
    wait_until(lambda: is_gone(started(record)[0]))
    assert not is_gone(started(record)[1])
    Path(tmp_path, "2").touch()
    (done,) = finished(job)
    assert (done.status, done.result, done.attempts, done.crashes) == (COMPLETED, "run 2", 2, 1)
    assert "often out of memory" not in straggler.output()


@pytest.mark.parametrize("status", [ONGOING, CANCELLED])
def test_a_job_that_names_a_runner_which_is_not_there_any_more_is_rescued(run_peasy, status):
    """Suspended in the middle of a claim, and presumed dead, a runner claims when it goes on."""
    job = jobs.echo("back")
    PeasyJobQueue.objects.filter(pk=job.pk).update(
        status=status, runner=10**6, claims=1, attempts=1, started=timezone.now()
    )
    run_peasy()
    wait_until(lambda: row(job).runner_id is None and row(job).completed)
    expected = (COMPLETED, 2, 2, 1) if status == ONGOING else (CANCELLED, 1, 1, 0)
    assert (row(job).status, row(job).claims, row(job).attempts, row(job).crashes) == expected


def test_a_runner_that_was_suspended_for_less_than_its_lease_goes_on_as_if_nothing_had_been(
    run_peasy, tmp_path
):
    record = tmp_path / "record"
    command = run_peasy(settings={"PEASY_LEASE": 600})
    job = jobs.wait_in_run(str(tmp_path))
    wait_until(lambda: started(record))
    command.signal(signal.SIGSTOP)
    other = run_peasy(settings={"PEASY_LEASE": 2})
    finished(jobs.nothing())  # by the other
    Path(tmp_path, "1").touch()
    command.signal(signal.SIGCONT)
    (job,) = finished(job)
    assert (job.status, job.result, job.attempts, job.crashes) == (COMPLETED, "run 1", 1, 0)
    assert "is gone" not in other.output()
