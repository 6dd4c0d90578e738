"""What runner, fork server and workers have in common: signals, output, loading the jobs."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from importlib import import_module

logger = logging.getLogger("peasy_jobs")

# The signals that stop a runner. A terminal and systemd send them to its whole process group.
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_handler = logging.StreamHandler()
_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def die_with_parent(parent: int, by: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent dies; on Linux only.

    Exit at once if the parent is already gone.
    """
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # it died before the kernel knew that it has to tell us
        os._exit(1)


def ignore_signal(signum: int, frame: object) -> None:
    """Do nothing: the runner decides what a signal to its process group means.

    Programs that a job starts would inherit SIG_IGN, and could not be stopped by SIGTERM; they do
    not inherit a handler.
    """


def flush_output() -> bool:
    """Write buffered output. Return False if that fails, as when a job has closed a stream."""
    succeeded = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # a job may have put any object there
            succeeded = False
    return succeeded


def show_log(level: int) -> None:
    """Show the log on the terminal, unless the project's LOGGING handles it."""
    if not logger.hasHandlers():
        logger.addHandler(_handler)
        logger.setLevel(logger.level or level)


def log_level() -> int:
    """Return the level at which `show_log` shows the log in this process, 0 if it does not."""
    return logger.level if _handler in logger.handlers else 0


def import_jobs() -> bool:
    """Import the module `jobs` of each app that has one. Return whether all imports succeeded.

    It is done before jobs run, so that several threads do not import them at the same time.
    """
    from django.apps import apps
    from django.utils.module_loading import module_has_submodule

    succeeded = True
    for app in apps.get_app_configs():
        if not module_has_submodule(app.module, "jobs"):
            continue
        try:
            import_module(f"{app.name}.jobs")
        except (Exception, SystemExit):
            # The jobs of this app will fail and say why; those of other apps run.
            logger.exception("Could not import %s.jobs.", app.name)
            succeeded = False
    return succeeded
