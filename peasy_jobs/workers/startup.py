"""What a process does before it runs jobs: show the log, import the modules with job functions."""

from __future__ import annotations

import logging
from importlib import import_module

logger = logging.getLogger("peasy_jobs")

_shown = logging.StreamHandler()
_shown.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def show_log(level: int) -> None:
    """Show the log on the terminal, where the project's LOGGING sends it nowhere."""
    if not logger.hasHandlers():
        logger.addHandler(_shown)
        logger.setLevel(logger.level or level)


def log_level() -> int:
    """The level at which `show_log` shows the log here; 0 where it does not."""
    return logger.level if _shown in logger.handlers else 0


def import_jobs() -> bool:
    """Import the module `jobs` of each app that has one, before several threads do it at the same time.

    Returns whether all of them could be.
    """
    from django.apps import apps
    from django.utils.module_loading import module_has_submodule

    fine = True
    for app in apps.get_app_configs():
        if module_has_submodule(app.module, "jobs"):
            try:
                import_module(f"{app.name}.jobs")
            except (
                Exception,
                SystemExit,
            ):  # its jobs will fail and say so; those of other apps run
                logger.exception("Could not import %s.jobs.", app.name)
                fine = False
    return fine
