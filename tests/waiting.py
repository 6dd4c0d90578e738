"""Wait for a condition with a deadline, instead of sleeping."""

import time
from collections.abc import Callable
from typing import Any

from django.db import connections

DEADLINE = 20


def wait_until(
    condition: Callable[[], Any], timeout: float = DEADLINE, message: str | Callable[[], str] = ""
) -> Any:
    """Poll `condition` until it is true and return its value.

    Raises AssertionError with `message` (a text, or a function that returns one) after `timeout`
    seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            text = message() if callable(message) else message
            raise AssertionError(f"Not within {timeout} s (last seen: {value!r}). {text}".rstrip())
        time.sleep(0.02)
        end_read_transactions()
    return value


def end_read_transactions() -> None:
    """Roll back, because a condition could otherwise read the same snapshot until the deadline."""
    for connection in connections.all(initialized_only=True):
        if (
            connection.connection is not None
            and not connection.in_atomic_block
            and not connection.autocommit
        ):
            connection.rollback()
