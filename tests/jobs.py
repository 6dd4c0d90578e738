"""A zoo of jobs, most of them misbehaving. The runner finds this module by itself: it is called `jobs`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.db import transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy

started = time.time()


def note(path: str, line: object) -> None:
    """Append a line to a side record: what really ran, whatever the database says."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def notes(path: str | Path) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


@peasy.job("do nothing")
def nothing() -> None:
    pass


@peasy.job("give back")
def give_back(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


@peasy.job("return a value")
def echo(value: Any) -> Any:
    return value


@peasy.job("note")
def write_note(path: str, line: str = "ran") -> None:
    note(path, line)


@peasy.job("know oneself")
def own_pk(job_pk: int) -> int:
    return job_pk


@peasy.job("raise")
def boom(message: str = "boom") -> None:
    raise ValueError(message)


@peasy.job("leave")
def leave(code: int = 3) -> None:
    sys.exit(code)


@peasy.job("die")
def die(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)


@peasy.job("die once")
def die_once(path: str) -> str:
    note(path, "started")
    if len(notes(path)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@peasy.job("return a generator")
def generator() -> Iterator[int]:
    return (number for number in range(3))


@peasy.job("return a lot")
def lots(size: int) -> str:
    return "x" * size


@peasy.job("wait for a file")
def wait_for(path: str, record: str | None = None) -> str:
    """Runs until `path` exists."""
    if record:
        note(record, f"started {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.01)
    if record:
        note(record, "ended")
    return "waited"


@peasy.job("start a program and wait")
def start_program(record: str, seconds: float = 600) -> None:
    program = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    note(record, program.pid)
    program.wait()


@peasy.job("show progress and wait")
def progress_then_wait(path: str, job_pk: int) -> None:
    peasy.update_status(job_pk, status_msg="half way", extra={"progress": 50})
    while not Path(path).exists():
        time.sleep(0.01)


@peasy.job("show progress inside a transaction")
def progress_in_transaction(path: str, job_pk: int) -> None:
    with transaction.atomic():
        peasy.update_status(job_pk, status_msg="inside", extra={"progress": 10})
        while not Path(path).exists():
            time.sleep(0.01)


@peasy.job("track rows")
def track_rows(count: int, job_pk: int) -> int:
    return sum(peasy.track(job_pk, range(count), "Importing rows"))


@peasy.job("show progress from a thread")
def progress_from_thread(job_pk: int) -> None:
    thread = threading.Thread(target=peasy.update_status, args=[job_pk, "from a thread", {"progress": 30}])
    thread.start()
    thread.join()


@peasy.job("show progress from a fork")
def progress_from_fork(job_pk: int) -> None:
    from django.db import connections

    connections.close_all()
    pid = os.fork()
    if pid == 0:
        try:
            peasy.update_status(job_pk, "from a fork", {"progress": 40})
            connections.close_all()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


@peasy.job("show progress of another")
def progress_of(other: int) -> None:
    peasy.update_status(other, "from afar", {"progress": 60})


@peasy.job("leave a transaction open")
def open_transaction() -> None:
    transaction.atomic().__enter__()
    PeasyJobQueue.objects.filter(pk=-1).update(title="never")


@peasy.job("write down the order")
def in_order(path: str, name: str) -> None:
    note(path, name)


@peasy.job("an async job")
async def asynchronous(value: int) -> int:
    return value + 1


def no_job() -> None:
    raise AssertionError("a function that is no job was called")
