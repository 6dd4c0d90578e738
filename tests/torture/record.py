"""The side record of which jobs really ran: written by the jobs, read by the fault injector."""

import json
import os
from collections import defaultdict
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

PATH = "PEASY_TORTURE_RECORD"
RUNNER = "PEASY_TORTURE_RUNNER"


def note(event: str, **values: Any) -> None:
    """Append one line in one write, so that a kill leaves only whole lines."""
    line = {
        "event": event,
        "pid": os.getpid(),
        "runner": os.environ.get(RUNNER),
        "t": monotonic(),
        **values,
    }
    descriptor = os.open(os.environ[PATH], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{json.dumps(line)}\n".encode())
    finally:
        os.close(descriptor)


class Key(NamedTuple):
    """One run of a job."""

    pk: int
    claims: int


class Run:
    """One run of a job as the record describes it."""

    def __init__(self, start: dict[str, Any]) -> None:
        self.pk, self.claims, self.pid, self.runner = (
            start["pk"],
            start["claims"],
            start["pid"],
            start["runner"],
        )
        self.token, self.kind = start["token"], start["kind"]
        self.started = self.last = start["t"]
        self.ends: list[dict[str, Any]] = []

    def over(self) -> bool:
        """Return whether it has ended, or its process is gone."""
        return bool(self.ends) or not Path(f"/proc/{self.pid}").exists()

    def __repr__(self) -> str:
        ends = [f"{end['out']} at {end['t']:.3f}" for end in self.ends]
        return (
            f"{self.kind} pk={self.pk} claims={self.claims} runner={self.runner} pid={self.pid} "
            f"started={self.started:.3f} last={self.last:.3f} ends={ends}"
        )


class Record:
    """Read the record as it grows."""

    def __init__(self, path: Path) -> None:
        self.path, self.offset, self.rest = path, 0, b""
        self.runs: dict[Key, Run] = {}
        self.open: dict[Key, Run] = {}
        self.twice: list[dict[str, Any]] = []  # starts of a run that had started already
        self.strays: list[dict[str, Any]] = []
        self.enqueued: dict[int, str] = {}  # by jobs
        self.by_pk: dict[int, list[Run]] = defaultdict(list)

    def read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read()
        self.offset += len(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        if line["event"] == "enqueued":
            self.enqueued[line["child"]] = line["token"]
            return
        key = Key(line["pk"], line["claims"])
        if line["event"] == "start":
            if key in self.runs:
                self.twice.append(line)
                return
            self.runs[key] = self.open[key] = run = Run(line)
            self.by_pk[run.pk].append(run)
        elif key not in self.runs:
            self.strays.append(line)
        else:
            run = self.runs[key]
            run.last = max(run.last, line["t"])
            if line["event"] == "end":
                run.ends.append(line)
                self.open.pop(key, None)

    def running(self) -> list[Run]:
        """Return the runs that are in progress."""
        self.read()
        for key in [key for key, run in self.open.items() if run.over()]:
            del self.open[key]
        return list(self.open.values())
