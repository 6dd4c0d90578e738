"""Keep several runners running, and kill, stop, suspend and cut them off at random."""

import os
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from time import monotonic, sleep

import psutil

from tests.processes import Command
from tests.torture import database, removed_guards
from tests.torture.proxy import Proxy
from tests.torture.record import PATH, RUNNER, Record, Run

LEASE = 3
SHUTDOWN_TIMEOUT = 3
# Seconds that workers may outlive a killed runner: one is promised, one is for a busy machine.
ORPHANS_LIVE = 2.0
STOP_WITHIN = 20.0
SETTINGS = {
    "PEASY_LEASE": LEASE,
    "PEASY_SHUTDOWN_TIMEOUT": SHUTDOWN_TIMEOUT,
    "PEASY_POLLING_INTERVAL": 0.5,
    "PEASY_JOB_TIMEOUT": 10,
    "PEASY_MAX_COMPLETED": None,
    "PEASY_MAX_FAILED": None,
    "PEASY_MAX_CANCELLED": None,
}
# The faults with their relative frequency
FAULTS = {
    "kill a worker": 50,
    "kill a runner": 9,
    "kill a fork server": 5,
    "suspend a runner beyond its lease": 5,
    "pause a runner": 4,
    "freeze a worker": 4,
    "stop a runner gracefully": 4,
    "stop a runner at once": 2,
    "cut one runner off beyond its lease": 2,
    "drop all connections": 4,
    "server ends all connections": 4,
    "refuse connections": 2,
    "silence": 2,
    "hold the write lock": 5,
}
KILLS = {"kill a worker", "kill a runner", "kill a fork server"}
SERVERS_ONLY = {
    "cut one runner off beyond its lease",
    "drop all connections",
    "server ends all connections",
    "refuse connections",
    "silence",
}
SUSPENSIONS = {
    "suspend a runner beyond its lease",
    "pause a runner",
    "cut one runner off beyond its lease",
}
ALL_RUNNERS = SERVERS_ONLY - {"cut one runner off beyond its lease"} | {"hold the write lock"}
SILENCES = SUSPENSIONS | ALL_RUNNERS


@dataclass(eq=False)
class Fault:
    """A fault, the runner it hit, and the runs in progress there just before."""

    kind: str
    runner: str | None  # None: all
    began: float
    pid: int | None = None
    hit: list[Run] = field(default_factory=list)
    ended: float = float("inf")

    def hits(self) -> bool:
        """Return whether one of those jobs was running: it did not end before the fault."""
        return any(not run.ends or run.ends[0]["t"] > self.began for run in self.hit)


class Slot:
    """A place for a runner: after one has been killed, the next starts in its place."""

    def __init__(
        self, name: str, args: tuple[str, ...], env: dict[str, str], proxy: Proxy | None
    ) -> None:
        self.name, self.args, self.env, self.proxy = name, args, env, proxy
        self.generation = 0
        self.command: Command | None = None
        self.start_at = 0.0
        self.suspended = self.stopping = False

    @property
    def runner(self) -> str:
        return f"{self.name}.{self.generation}"


class FaultInjector:
    """Start the runners and inject the faults. No method but the last three waits long."""

    def __init__(
        self, choice: str, directory: Path, rng: Random, only: set[str], guards_removed: str
    ) -> None:
        self.database, self.directory, self.rng = choice, directory, rng
        self.record = Record(directory / "record")
        self.faults: list[Fault] = []
        self.violations: list[str] = []
        self.names: dict[int, str] = {}  # runner id: name
        self.commands: dict[str, Command] = {}
        self.own_connections: set[int] = set()
        self.later: list[tuple[float, Callable[[], None]]] = []
        self.outage_until = 0.0
        self.weights = {
            kind: weight
            for kind, weight in FAULTS.items()
            if (not only or kind in only) and (choice != "sqlite" if kind in SERVERS_ONLY else True)
            and (choice == "sqlite" or kind != "hold the write lock")
        }  # fmt: skip
        self.guards_removed = guards_removed
        shared = ("--queue", "default")
        self.slots = [
            self._slot(
                "p1",
                ("--worker-type", "process", "--concurrency", "2", "--queue", "process", *shared),
                {},
            ),
            self._slot(
                "p2",
                ("--worker-type", "process", "--concurrency", "2", "--queue", "process", *shared),
                {},
            ),
            # On another host, as far as the others can see: they have to wait for its lease.
            self._slot(
                "p3",
                ("--worker-type", "process", "--concurrency", "2", "--queue", "process", *shared),
                {removed_guards.HOST: "elsewhere"},
            ),
            self._slot(
                "t1",
                ("--worker-type", "thread", "--concurrency", "2", "--queue", "thread", *shared),
                {},
            ),
        ]

    def _slot(self, name: str, args: tuple[str, ...], env: dict[str, str]) -> Slot:
        proxy = None
        if self.database != "sqlite":
            proxy = Proxy(database.target(self.database))
            env = {**env, **database.through(self.database, proxy.port)}
        return Slot(name, args, env, proxy)

    # Runners

    def start(self, slot: Slot) -> None:
        from django.conf import settings

        slot.generation += 1
        slot.suspended = slot.stopping = False
        env = {
            **slot.env,
            PATH: str(self.record.path),
            RUNNER: slot.runner,
            removed_guards.REMOVED_GUARDS: self.guards_removed,
            "PYTHONWARNINGS": "default",
        }
        apps = {
            "INSTALLED_APPS": [
                *settings.INSTALLED_APPS,
                "tests.torture.removed_guards.ChangeRunner",
            ]
        }
        slot.command = Command(
            ("run_peasy", *slot.args), self.directory, self.directory, {**SETTINGS, **apps}, env
        )
        self.commands[slot.runner] = slot.command

    def learn_names(self) -> None:
        """Read the id of each runner from its output."""
        for name, command in self.commands.items():
            for line in command.output().splitlines():
                if line.startswith("run_peasy serves"):
                    self.names[int(line.rpartition(" ")[2].rstrip("."))] = name

    def keep_going(self) -> None:
        """Start runners that are due, and record those that ended without being stopped."""
        now = monotonic()
        for due in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove(due)
            due[1]()
        for slot in self.slots:
            if slot.command is None:
                if now >= slot.start_at:
                    self.start(slot)
            elif not slot.stopping and (code := slot.command.process.poll()) is not None:
                self.violations.append(
                    f"Runner {slot.runner} exited unexpectedly with {code}: {self._tail(slot)}"
                )
                slot.command = None

    def _tail(self, slot: Slot) -> str:
        return slot.command.output()[-3000:] if slot.command else ""

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        self.later.append((monotonic() + seconds, act))

    # Faults

    def strike(self) -> None:
        """Inject one fault at random, preferably where a job runs."""
        now = monotonic()
        if not self.weights:  # a run without faults
            return
        kinds, weights = list(self.weights), list(self.weights.values())
        kind = self.rng.choices(kinds, weights)[0]
        if kind in ALL_RUNNERS and now < self.outage_until:
            return
        running = self.record.running()
        busy = {run.runner for run in running}
        slots = [
            slot for slot in self.slots if slot.command and not slot.stopping and not slot.suspended
        ]
        if kind in ("kill a worker", "kill a fork server", "freeze a worker"):
            slots = [slot for slot in slots if slot.name != "t1"]
        if kind.startswith("stop"):  # before it is ready, a signal ends it like any program
            slots = [slot for slot in slots if "run_peasy serves" in slot.command.output()]
        if kind == "cut one runner off beyond its lease":
            slots = [slot for slot in slots if not slot.proxy.silent and not slot.proxy.refusing]
        if kind in ALL_RUNNERS:
            self._strike_database(kind, running)
            return
        slot = self.rng.choice(sorted(slots, key=lambda slot: slot.name)) if slots else None
        if slot and slot.runner not in busy:
            slot = next((other for other in slots if other.runner in busy), slot)
        if slot is None or slot.command is None:
            return
        hit = [run for run in running if run.runner == slot.runner]
        fault = Fault(kind, slot.runner, monotonic(), hit=hit)
        if self._strike_runner(fault, slot, hit):
            self.faults.append(fault)

    def _strike_runner(self, fault: Fault, slot: Slot, hit: list[Run]) -> bool:
        """Inject a fault into one runner. Return False if there was nothing to hit."""
        match fault.kind:
            case "kill a runner":
                self._kill_runner(slot, fault)
            case "kill a worker" | "freeze a worker":
                return self._strike_worker(slot, fault, hit)
            case "kill a fork server":
                return self._kill_fork_server(slot, fault)
            case "suspend a runner beyond its lease":
                return self._suspend(slot, fault, self.rng.uniform(1.4, 2.2) * LEASE)
            case "pause a runner":
                return self._suspend(slot, fault, self.rng.uniform(0.2, 0.6) * LEASE)
            case "stop a runner gracefully" | "stop a runner at once":
                self._stop(slot, fault)
            case "cut one runner off beyond its lease":
                self._cut_off(slot.proxy, fault)
        return True

    def _kill_runner(self, slot: Slot, fault: Fault) -> None:
        command = slot.command
        command.killed = True
        fault.began = monotonic()
        command.process.kill()
        command.process.wait()
        self._after(
            ORPHANS_LIVE,
            lambda: self._check_nothing_left(fault.runner, command, "it was killed"),
        )
        slot.command, slot.start_at = None, monotonic() + self.rng.choice([0, 0, 1])

    def _strike_worker(self, slot: Slot, fault: Fault, hit: list[Run]) -> bool:
        worker = self.rng.choice(hit).pid if hit else self._some_worker(slot.command)
        if worker is None:
            return False
        fault.pid, fault.hit = worker, [run for run in hit if run.pid == worker]
        fault.began = monotonic()
        if fault.kind == "kill a worker":
            self._signal(worker, signal.SIGKILL)
            return True
        self._signal(worker, signal.SIGSTOP)
        self._after(self.rng.uniform(0.5, 4), lambda: self._signal(worker, signal.SIGCONT))
        return True

    def _kill_fork_server(self, slot: Slot, fault: Fault) -> bool:
        servers = self._children(slot.command.pid)
        if not servers:
            return False
        fault.pid, fault.began = servers[0].pid, monotonic()
        self._signal(servers[0].pid, signal.SIGKILL)
        return True

    def _suspend(self, slot: Slot, fault: Fault, seconds: float) -> bool:
        if sum(other.suspended for other in self.slots) >= 2:
            return False
        command = slot.command
        slot.suspended = True
        self._signal(command.pid, signal.SIGSTOP)
        self._after(seconds, lambda: self._resume(slot, command, fault))
        return True

    def _stop(self, slot: Slot, fault: Fault) -> None:
        process = slot.command.process
        slot.stopping = True
        process.send_signal(self.rng.choice([signal.SIGTERM, signal.SIGINT]))
        if fault.kind == "stop a runner at once":
            self._after(0.3, lambda: process.poll() is None and process.send_signal(signal.SIGINT))
        command = slot.command
        self._after(0.1, lambda: self._await_end(slot, command, fault))

    def _cut_off(self, proxy: Proxy, fault: Fault) -> None:
        how = self.rng.choice(["silent", "refusing"])
        setattr(proxy, how, True)
        self._after(
            self.rng.uniform(1.4, 2.2) * LEASE, lambda: self._reconnect([proxy], how, fault)
        )

    def _strike_database(self, kind: str, running: list[Run]) -> None:
        fault = Fault(kind, None, monotonic(), hit=running)
        seconds = self.rng.choice([self.rng.uniform(0.3, 1.5), self.rng.uniform(1.2, 2) * LEASE])
        proxies = [slot.proxy for slot in self.slots if slot.proxy]
        match kind:
            case "drop all connections":
                for proxy in proxies:
                    proxy.drop()
                fault.ended = monotonic()
            case "server ends all connections":
                database.end_connections(self.own_connections)
                fault.ended = monotonic()
            case "refuse connections" | "silence":
                how = "silent" if kind == "silence" else "refusing"
                if any(proxy.silent or proxy.refusing for proxy in proxies):
                    return
                for proxy in proxies:
                    setattr(proxy, how, True)
                self._after(seconds, lambda: self._reconnect(proxies, how, fault))
                self.outage_until = monotonic() + seconds + 5 + LEASE
            case "hold the write lock":
                threading.Thread(
                    target=self._hold_write_lock, args=[seconds, fault], daemon=True
                ).start()
                self.outage_until = monotonic() + seconds + 5
        self.faults.append(fault)

    def _hold_write_lock(self, seconds: float, fault: Fault) -> None:
        from django.db import connection

        other = sqlite3.connect(
            str(connection.settings_dict["NAME"]), timeout=10, isolation_level=None
        )
        try:
            other.execute("BEGIN IMMEDIATE")
            fault.began = monotonic()
            sleep(seconds)
            other.execute("ROLLBACK")
        except sqlite3.OperationalError:
            pass  # another holds it
        finally:
            fault.ended = monotonic()
            other.close()

    def _resume(self, slot: Slot, command: Command, fault: Fault) -> None:
        self._signal(command.pid, signal.SIGCONT)
        fault.ended = monotonic()
        if slot.command is command:
            slot.suspended = False

    def _reconnect(self, proxies: list[Proxy], how: str, fault: Fault) -> None:
        for proxy in proxies:
            setattr(proxy, how, False)
        fault.ended = monotonic()

    def _await_end(self, slot: Slot, command: Command, fault: Fault) -> None:
        code = command.process.poll()
        if code is None:
            if monotonic() > fault.began + STOP_WITHIN:
                self.violations.append(f"Runner {fault.runner} did not stop: {self._tail(slot)}")
                command.killed = True
                command.process.kill()
                command.process.wait()
            else:
                self._after(0.1, lambda: self._await_end(slot, command, fault))
                return
        elif code != 0:
            self.violations.append(
                f"Runner {fault.runner} was stopped and exited with {code}: {self._tail(slot)}"
            )
        fault.ended = monotonic()
        slot.command, slot.start_at = None, monotonic()
        slot.stopping = False
        self._check_nothing_left(fault.runner, command, "it was stopped")
        if code == 0:
            self._check_no_row(fault, command)

    def _check_nothing_left(self, runner: str | None, command: Command, why: str) -> None:
        if left := command.processes():
            sleep(0.3)
            if left := [process for process in left if command.owns(process)]:
                self.violations.append(
                    f"Runner {runner} has left processes behind after {why}: {left}"
                )

    def _check_no_row(self, fault: Fault, command: Command) -> None:
        """After a graceful stop with the database at injector."""
        from peasy_jobs.models import PeasyRunner

        others = [
            other
            for other in self.faults
            if other.runner in (None, fault.runner) and other is not fault
        ]
        if any(other.kind in SILENCES and other.ended > fault.began - 1 for other in others):
            return
        self.learn_names()
        pks = [pk for pk, name in self.names.items() if name == fault.runner]
        if rows := list(PeasyRunner.objects.filter(pid=command.pid, pk__in=pks)):
            jobs = [list(row.jobs.values_list("pk", "status")) for row in rows]
            self.violations.append(
                f"Runner {fault.runner} was stopped and left its row {rows} with jobs {jobs}."
            )

    def _some_worker(self, command: Command) -> int | None:
        workers = [
            worker
            for server in self._children(command.pid)
            for worker in self._children(server.pid)
        ]
        return self.rng.choice(workers).pid if workers else None

    def _children(self, pid: int) -> list[psutil.Process]:
        try:
            return psutil.Process(pid).children()
        except psutil.NoSuchProcess:
            return []

    def _signal(self, pid: int, number: int) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass

    # The end

    def end_faults(self) -> None:
        """End all faults, and wait until every slot has a runner."""
        deadline = monotonic() + 60
        while self.later or any(slot.command is None or slot.stopping for slot in self.slots):
            self.keep_going()
            sleep(0.05)
            if monotonic() > deadline:
                raise RuntimeError("Not all faults ended within 60 s.")

    def stop_all(self) -> None:
        """Stop every runner gracefully, and check that it leaves nothing."""
        for slot in self.slots:
            slot.command.ready()
            slot.stopping = True
            slot.command.process.send_signal(signal.SIGTERM)
        for slot in self.slots:
            try:
                code = slot.command.process.wait(STOP_WITHIN)
            except Exception:
                code = "none: it did not stop"
            if code != 0:
                self.violations.append(
                    f"Runner {slot.runner} was stopped and exited with {code}: {self._tail(slot)}"
                )
        sleep(0.5)
        for name, command in self.commands.items():
            self._check_nothing_left(name, command, "everything was stopped")

    def clean_up(self) -> None:
        for command in self.commands.values():
            command.killed = True
            for process in command.processes():
                process.kill()
            command.process.wait()
        for slot in self.slots:
            if slot.proxy:
                slot.proxy.close()

    def table(self) -> list[tuple[str, int, int]]:
        """Return for each kind of fault how many there were, and how many hit a running job."""
        counts = Counter(fault.kind for fault in self.faults)
        hits = Counter(fault.kind for fault in self.faults if fault.hits())
        return [(kind, counts[kind], hits[kind]) for kind in FAULTS if counts[kind]]
