"""A zoo of jobs, most of them misbehaving. The runner finds this module by itself: it is called `jobs`."""

from __future__ import annotations

import ctypes
import multiprocessing
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


@peasy.job("print")
def print_line(text: str) -> None:
    print(text)


@peasy.job("die in one of several ways")
def die_by(how: str, record: str) -> None:
    note(record, f"started {os.getpid()}")
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "os._exit":
        os._exit(7)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


@peasy.job("hold the interpreter lock")
def hold_gil(record: str) -> int:
    """One call of C code that lets no other thread of this process run for an hour."""
    note(record, f"started {os.getpid()}")
    return sum(range(10**12))


@peasy.job("enqueue others")
def enqueue_notes(record: str, count: int) -> None:
    for number in range(count):
        write_note(record, f"child {number}")


@peasy.job("wait in each run for a file of its own")
def wait_in_run(directory: str) -> str:
    """The first run waits for the file `1` in `directory`, the second for `2`, and so on."""
    record = Path(directory, "record")
    note(str(record), f"started {os.getpid()}")
    run = len(notes(record))
    while not Path(directory, str(run)).exists():
        time.sleep(0.01)
    return f"run {run}"


@peasy.job("last words")
def last_words(path: str, record: str, job_pk: int) -> str:
    note(record, f"started {os.getpid()}")
    while not Path(path).exists():
        time.sleep(0.01)
    peasy.update_status(job_pk, "last words", {"progress": 99})
    return "said"


@peasy.job("start a program and wait for a file")
def program_and_wait(path: str, record: str) -> str:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as program:
        note(record, f"{os.getpid()} {program.pid}")
        while not Path(path).exists():
            time.sleep(0.01)
        program.kill()
    return "waited"


@peasy.job("signal the runner and wait")
def signal_runner(pid: int, path: str, record: str) -> None:
    note(record, f"started {os.getpid()}")
    os.kill(pid, signal.SIGTERM)
    while not Path(path).exists():
        time.sleep(0.01)


@peasy.job("write inside a transaction that stays open")
def leave_write_open(pk: int) -> None:
    transaction.atomic().__enter__()
    PeasyJobQueue.objects.filter(pk=pk).update(title="never committed")


@peasy.job("leave a process behind and die")
def die_with_daemon(path: str, record: str) -> None:
    """A forked process in a session of its own keeps what this worker had open, until `path` exists."""
    if os.fork() == 0:
        os.setsid()
        note(record, f"daemon {os.getpid()}")
        while not Path(path).exists():
            time.sleep(0.01)
        os._exit(0)
    while not notes(record):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


@peasy.job("fork, and return in both")
def return_twice(record: str) -> str:
    pid = os.fork()
    if pid == 0:
        note(record, "child")
        sys.exit("the child")
    os.waitpid(pid, 0)
    note(record, "parent")
    return "the parent"


@peasy.job("use multiprocessing")
def use_multiprocessing(method: str, path: str) -> list[int | None]:
    """Exit codes: of a child that ends by itself, of one that is asked to end."""
    context = multiprocessing.get_context(method)
    worker = context.Process(target=Path(path).touch)
    sleeper = context.Process(target=time.sleep, args=[600])
    worker.start()
    sleeper.start()
    worker.join()
    sleeper.terminate()
    sleeper.join()
    return [worker.exitcode, sleeper.exitcode]


@peasy.job("end a program")
def end_program(signum: int) -> int:
    with subprocess.Popen(["sleep", "600"]) as program:
        program.send_signal(signum)
    return program.returncode


@peasy.job("kill the runner, once")
def kill_runner(pid: int, record: str) -> None:
    note(record, f"started {os.getpid()}")
    if len(notes(record)) == 1:
        os.kill(pid, signal.SIGKILL)
        time.sleep(600)
