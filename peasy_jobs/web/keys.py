"""Primary keys as visitors write them."""

from __future__ import annotations

LARGEST = 2**63 - 1  # beyond it, a database raises an error instead of finding nothing


def parse(text: str) -> int | None:
    """Return the primary key that `text` spells, or None if no row can have it."""
    if not (text.isascii() and text.isdecimal() and len(text) < 20):
        return None
    key = int(text)
    return key if key <= LARGEST else None
