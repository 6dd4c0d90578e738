"""Describe the exception that ended an attempt, as it is stored in the job's `errors`."""

from __future__ import annotations

import os
import socket
import traceback
from types import TracebackType

from peasy_jobs import payloads
from peasy_jobs.exceptions import Failure, TimeLimit

TRACEBACK_LIMIT, MESSAGE_LIMIT = 20_000, 1_000  # characters

# Packages whose frames are left out at the top of a traceback. The last two call an async job.
CALLING_PACKAGES = ("peasy_jobs.", "asgiref.", "concurrent.")


def error_entry(exception: BaseException, pid: int | None = None) -> dict[str, str]:
    """Return what is stored of a failed attempt, for the list `errors` of a job.

    The traceback is empty unless the job's own code has raised the exception.
    pid: the process that ran the job, if it is not this one.
    """
    where = f"{socket.gethostname()}, pid {pid or os.getpid()}"
    class_path = f"{type(exception).__module__}.{type(exception).__qualname__}"
    message, trace = _message_and_traceback(exception, class_path)
    return {
        "where": where,
        "exception": class_path,
        "message": payloads.text(message, MESSAGE_LIMIT),
        # The end of a long traceback says where the error is.
        "traceback": payloads.text(trace[-TRACEBACK_LIMIT:], TRACEBACK_LIMIT),
    }


def _message_and_traceback(exception: BaseException, class_path: str) -> tuple[str, str]:
    if isinstance(exception, Failure | payloads.PayloadRefused) and not isinstance(
        exception, TimeLimit
    ):
        return str(exception), ""
    try:
        frames = _frames_of_job(exception.__traceback__)
        lines = traceback.format_exception(type(exception), exception, frames)
        return _summary(exception), "".join(lines)
    except Exception as error:  # formatting calls the exception's own code, such as `__str__`
        text = f"{class_path}, which cannot be shown ({type(error).__name__})."
        return text, text


def _summary(exception: BaseException) -> str:
    if isinstance(exception, TimeLimit):
        return str(exception)
    if isinstance(exception, SystemExit):
        return f"The job called sys.exit({exception.code!r})."
    return "".join(traceback.format_exception_only(exception)).strip()


def _frames_of_job(frames: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames that call the job function."""
    while frames and frames.tb_next:
        module_name = frames.tb_frame.f_globals.get("__name__", "")
        if not module_name.startswith(CALLING_PACKAGES):
            break
        frames = frames.tb_next
    return frames
