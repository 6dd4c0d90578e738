"""With DEBUG: restart the runner, in the same process, when the project's code changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from django.apps import apps
from django.db import connections
from django.utils import autoreload

from peasy_jobs.runner.shutdown import StopSignals

RELOAD_GRACE = 2.0  # seconds that running jobs have to finish: somebody waits for the new code
# In the environment of a process that is started only to see whether the project can be loaded.
TRIAL = "PEASY_JOBS_TRIAL"
LOADED = time()  # before any job was imported
COMMAND = [sys.executable, *sys.orig_argv[1:]]


def is_trial() -> bool:
    """Return whether this process was started only to see whether the project can be loaded."""
    return TRIAL in os.environ


class Reloader:
    """Stop the runner when Django's file watcher reports a change, and start it again.

    The watcher runs in a thread: signals arrive in the main thread, which is the runner's.
    """

    def __init__(self, signals: StopSignals, say: Callable[[str], None]) -> None:
        self.signals = signals
        self.say = say
        self.changed = threading.Event()
        watcher = autoreload.get_reloader()
        # Has Django watch templates and translations as well.
        autoreload.autoreload_started.send(sender=watcher)
        watcher.extra_files.update(_code_of_apps())
        autoreload.file_changed.connect(self._handle_change)
        threading.Thread(
            target=self._watch, args=[watcher], name="peasy reloader", daemon=True
        ).start()

    def restart(self) -> None:
        """Replace this process by a new runner if the old one ended for a change.

        Return if it ended for a signal. Call it after the runner has ended.
        """
        with suppress(KeyboardInterrupt):
            # A shell that starts a process in the background lets it ignore SIGINT.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            while self.changed.is_set() and not self.signals.received:
                self.changed.clear()
                connections.close_all()
                if not _can_be_loaded():
                    self.say("The project cannot be loaded as it is. Waiting for the next change.")
                    self.changed.wait()
                elif not self.changed.is_set():
                    sys.stdout.flush()
                    sys.stderr.flush()
                    # Also ends threads that still run jobs, which were given back.
                    os.execv(COMMAND[0], COMMAND)  # noqa: S606

    def _watch(self, watcher: autoreload.BaseReloader) -> None:
        ticks = watcher.tick()
        next(ticks)
        # The first tick takes the present state as unchanged. Find the files that were saved before
        # it and maybe after their import; one with a date in the future would be new for ever.
        missed = [path for path in watcher.watched_files() if LOADED < _saved_at(path) <= time()]
        next(ticks)
        if missed and not self.changed.is_set():
            self._handle_change(file_path=missed[0])
        for _ in ticks:
            pass

    def _handle_change(self, *, file_path: Path, **kwargs: Any) -> bool:
        is_known = self.changed.is_set()
        self.changed.set()  # before the runner ends because of it
        if not is_known and not self.signals.received:
            here = Path.cwd()
            path = file_path.relative_to(here) if here in file_path.parents else file_path
            self.say(f"{path} changed: reloading.")
            self.signals.request(RELOAD_GRACE)
        return True  # handled: Django does not restart the process itself


def _can_be_loaded() -> bool:
    """Return whether a new process loads the project and passes its checks. Show its errors."""
    trial = subprocess.run(  # noqa: S603
        COMMAND,
        env={**os.environ, TRIAL: "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    if trial.returncode:
        sys.stderr.write(trial.stdout)
    return trial.returncode == 0


def _saved_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _code_of_apps() -> Iterator[Path]:
    """Yield the Python files of the project's own apps.

    Django watches the modules that this process has imported. Jobs, above all, are imported by
    workers only.
    """
    for app in apps.get_app_configs():
        if {"site-packages", "dist-packages"} & set(Path(app.path).parts):
            continue
        for folder, subfolders, files in os.walk(app.path):
            subfolders[:] = [
                name for name in subfolders if Path(folder, name, "__init__.py").exists()
            ]
            yield from (Path(folder, name).resolve() for name in files if name.endswith(".py"))
