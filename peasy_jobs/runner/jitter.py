"""Random variation of intervals, so that runners which started together do not stay together."""

from __future__ import annotations

import random


def jittered(seconds: float) -> float:
    """Return an interval that differs from `seconds` by up to a fifth."""
    return seconds * random.uniform(0.8, 1.2)
