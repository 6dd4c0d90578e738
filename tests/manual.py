"""The manual as the tests read it: its pages, and the blocks of code in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {
    path: path.read_text()
    for path in (README, *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md")
}
MANUAL = "\n".join(PAGES.values())
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    page: str
    language: str
    code: str


BLOCKS = [Block(path.name, *found) for path, text in PAGES.items() for found in FENCE.findall(text)]


def blocks(language: str) -> list[str]:
    return [block.code for block in BLOCKS if block.language == language]


def block(language: str, text: str) -> str:
    """The one block of this language that contains the text."""
    (found,) = [code for code in blocks(language) if text in code]
    return found
