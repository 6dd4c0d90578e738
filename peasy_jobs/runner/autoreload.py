"""In DEBUG: starts the runner anew, in the same process, when the project's code changes. Knows nothing of jobs."""

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

GRACE = 2.0  # seconds that jobs have to finish before they are given back: somebody waits for the new code
TRIAL = "PEASY_JOBS_TRIAL"  # in the environment of a process that only shows that the project can be loaded
LOADED = time()  # before any job was imported
COMMAND = [sys.executable, *sys.orig_argv[1:]]


def is_trial() -> bool:
    return TRIAL in os.environ


class Reloader:
    """Django's file watcher in a thread: the main thread is the runner's, where signals arrive."""

    def __init__(self, signals: StopSignals, say: Callable[[str], None]) -> None:
        self.signals, self.say = signals, say
        self.changed = threading.Event()
        watcher = autoreload.get_reloader()
        autoreload.autoreload_started.send(
            sender=watcher
        )  # which has templates and translations watched too
        watcher.extra_files.update(_code_of_apps())
        autoreload.file_changed.connect(self._heed)
        threading.Thread(
            target=self._watch, args=[watcher], name="peasy reloader", daemon=True
        ).start()

    def _watch(self, watcher: autoreload.BaseReloader) -> None:
        looks = watcher.tick()
        next(looks)
        # What was saved before this first look, and maybe after it was imported. One of tomorrow would be new for ever.
        missed = [path for path in watcher.watched_files() if LOADED < _saved(path) <= time()]
        next(looks)
        if missed and not self.changed.is_set():  # it was not saved once more since
            self._heed(file_path=missed[0])
        for _ in looks:
            pass

    def _heed(self, *, file_path: Path, **kwargs: Any) -> bool:
        known = self.changed.is_set()
        self.changed.set()  # before the runner ends for it
        if not known and not self.signals.received:
            here = Path.cwd()
            self.say(
                f"{file_path.relative_to(here) if here in file_path.parents else file_path} changed: reloading."
            )
            self.signals.request(GRACE)
        return True  # Django is to do nothing about it

    def restart(self) -> None:
        """After the runner has ended: begin anew if that was for a change. Returns if it was for a signal."""
        with suppress(KeyboardInterrupt):
            # A shell that starts this in the background may have it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            while self.changed.is_set() and not self.signals.received:
                self.changed.clear()
                connections.close_all()
                if not _loads():
                    self.say("The project cannot be loaded as it is. Waiting for the next change.")
                    self.changed.wait()
                elif not self.changed.is_set():
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os.execv(COMMAND[0], COMMAND)  # noqa: S606  threads that still run jobs end here


def _loads() -> bool:
    """Whether a new process can load the project and passes its checks. Shows what it said if not."""
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


def _saved(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _code_of_apps() -> Iterator[Path]:
    """The files of the project's own apps. What only workers import, jobs above all, is not known in this process."""
    for app in apps.get_app_configs():
        if not {"site-packages", "dist-packages"} & set(Path(app.path).parts):
            for folder, folders, files in os.walk(app.path):
                folders[:] = [
                    name for name in folders if Path(folder, name, "__init__.py").exists()
                ]
                yield from (Path(folder, name).resolve() for name in files if name.endswith(".py"))
