"""The jobs of a torture run. Each writes to the side record at its start, end, and between."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

from django.db import transaction

from peasy_jobs.models import PeasyJobQueue
from peasy_jobs.peasy_jobs import peasy
from peasy_jobs.workers.progress import current_execution
from tests.torture.record import note

TICK = 0.1


class Broken(Exception):
    """The exception that jobs raise."""


class Life:
    """Write one run to the side record."""

    def __init__(self, pk: int, token: str, kind: str) -> None:
        self.kind = kind
        running = current_execution(pk)
        assert running is not None
        self.claims = running.run.fencing_token
        self.note = partial(note, pk=pk, claims=self.claims, token=token, kind=kind)
        self.result = {"claims": self.claims, "token": token}

    def run_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(TICK, left))
            self.note("tick")

    def broken(self) -> Broken:
        return Broken(f"claims={self.claims}")


@contextmanager
def recorded(pk: int, token: str, kind: str) -> Iterator[Life]:
    life = Life(pk, token, kind)
    life.note("start")
    try:
        yield life
    except BaseException as error:
        life.note("end", out=type(error).__name__)
        raise
    life.note("end", out="ok")  # outside the try: an interruption here must not write a second end


@peasy.job("quick")
def quick(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "quick") as life:
        pass
    return life.result


@peasy.job("work", crash_retries=3)
def work(token: str, seconds: float, job_pk: int) -> Any:
    with recorded(job_pk, token, "work") as life:
        life.run_for(seconds)
    return life.result


@peasy.job("fragile work")
def fragile(token: str, seconds: float, job_pk: int) -> Any:
    with recorded(job_pk, token, "fragile") as life:
        life.run_for(seconds)
    return life.result


@peasy.job("show progress", crash_retries=2)
def progress(token: str, steps: int, job_pk: int) -> Any:
    with recorded(job_pk, token, "progress") as life:
        for _ in peasy.track(job_pk, range(steps), "Step"):
            life.run_for(0.05)
    return life.result


@peasy.job("boom")
def boom(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "boom") as life:
        raise life.broken()


@peasy.job("boom thrice", retries=2, backoff=[0.2, 0.5], crash_retries=0)
def boom_thrice(token: str, seconds: float, job_pk: int) -> Any:
    with recorded(job_pk, token, "boom_thrice") as life:
        life.run_for(seconds)
        raise life.broken()


@peasy.job("flaky", retries=4, backoff=[0.1, 0.3])
def flaky(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "flaky") as life:
        life.run_for(0.1)
        if Random(f"{token} {life.claims}").random() < 0.5:
            raise life.broken()
    return life.result


@peasy.job("leave", retries=1, backoff=[0.1])
def leave(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "leave"):
        sys.exit(3)


@peasy.job("fail")
def fail(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "fail") as life:
        raise peasy.Fail(f"claims={life.claims}")


@peasy.job("cancel oneself")
def cancel_oneself(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "cancel_oneself"):
        raise peasy.Cancel


@peasy.job("come back later")
def later(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "later") as life:
        if life.claims % 3:
            raise peasy.Retry(after=0.3)
    return life.result


@peasy.job("enqueue others", retries=1, backoff=[0.2])
def spawn(token: str, children: int, job_pk: int) -> Any:
    with recorded(job_pk, token, "spawn") as life:
        for number in range(children):
            name = f"{token}.{life.claims}.{number}"
            child = work(name, 0.1 * number) if number else quick(name)
            life.note("enqueued", child=child.pk, token=name)
    return life.result


@peasy.job("hold a lock", retries=1, backoff=[0.2])
def hold(token: str, seconds: float, job_pk: int) -> Any:
    with recorded(job_pk, token, "hold") as life, transaction.atomic():
        PeasyJobQueue.objects.filter(pk=job_pk).update(title="locked by itself")
        life.run_for(seconds)
    return life.result


@peasy.job("hang", timeout=0.8, retries=1, backoff=[0.2])
def hang(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "hang") as life:
        life.run_for(60)


@peasy.job("hang on", timeout=0.5)
def stubborn(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "stubborn") as life:
        while True:
            try:
                life.run_for(60)
            except peasy.Stop:
                pass


@peasy.job("die once and more", crash_retries=2)
def die(token: str, seconds: float, how: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "die") as life:
        life.run_for(seconds)
        if life.claims < 2 or how == "always":
            if life.claims % 2:
                os._exit(7)
            os.kill(os.getpid(), signal.SIGKILL)
    return life.result


@peasy.job("eat memory", crash_retries=1)
def eat(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "eat"):
        before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (64 << 20), before[1]))
        eaten = []
        try:
            while True:
                eaten.append(bytearray(8 << 20))
        except MemoryError:
            if job_pk % 2:
                os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out
            raise
        finally:
            eaten.clear()
            resource.setrlimit(resource.RLIMIT_AS, before)


@peasy.job("hang in a thread", timeout=0.8, retries=1, backoff=[0.2])
def hang_politely(token: str, job_pk: int) -> Any:
    with recorded(job_pk, token, "hang_politely") as life:
        while not peasy.cancelled(job_pk):
            life.run_for(TICK)
    return life.result


DEADLY = {"die", "eat"}  # kill their own process, so only for process workers
USES_DATABASE = {"spawn", "hold", "progress"}  # may fail when a fault cuts the database off
ENDS_BADLY = {"boom", "boom_thrice", "flaky", "leave", "fail", "eat"} | USES_DATABASE
# weight, job, queue, arguments
STREAM: list[tuple[int, Any, str, Any]] = [
    (20, quick, "default", lambda r: {}),
    (26, work, "default", lambda r: {"seconds": r.uniform(0.2, 3)}),
    (8, fragile, "default", lambda r: {"seconds": r.uniform(0.2, 2)}),
    (5, progress, "default", lambda r: {"steps": r.randint(2, 20)}),
    (3, boom, "default", lambda r: {}),
    (4, boom_thrice, "default", lambda r: {"seconds": r.uniform(0, 0.3)}),
    (6, flaky, "default", lambda r: {}),
    (3, leave, "default", lambda r: {}),
    (2, fail, "default", lambda r: {}),
    (2, cancel_oneself, "default", lambda r: {}),
    (4, later, "default", lambda r: {}),
    (4, spawn, "default", lambda r: {"children": r.randint(1, 3)}),
    (3, hold, "default", lambda r: {"seconds": r.uniform(0.1, 0.8)}),
    (3, hang, "process", lambda r: {}),
    (2, stubborn, "process", lambda r: {}),
    (
        5,
        die,
        "process",
        lambda r: {"seconds": r.uniform(0, 0.5), "how": r.choice(["once", "always"])},
    ),
    (2, eat, "process", lambda r: {}),
    (2, hang_politely, "thread", lambda r: {}),
    (4, work, "thread", lambda r: {"seconds": r.uniform(0.2, 2)}),
]
