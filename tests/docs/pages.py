"""The pages of the documentation as tests see them: their programs and their tables."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

FOLDER = Path(__file__).parents[2] / "docs"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted(FOLDER.glob("*.rst"))}

RUN = ("python", "toml", "console")
"""The languages of which every block is run."""

_BLOCK = re.compile(
    r"^\.\. (?:code-block|code|sourcecode|highlight)::[ \t]*(\S*)\n"
    r"((?:   :.*\n)*)\n?((?:   .*\n|\n)*)",
    re.MULTILINE,
)
_TABLE = re.compile(
    r"^\.\. csv-table::\n   :name: (\S+)\n(?:   :.*\n)*\n((?:   .*\n)+)", re.MULTILINE
)


class Block(NamedTuple):
    """One code block of a page."""

    page: str
    language: str
    name: str
    text: str


def _blocks() -> list[Block]:
    found = []
    for page, text in PAGES.items():
        for language, options, body in _BLOCK.findall(text):
            name = re.search(r":name: (\S+)", options)
            stripped = dedent(body).strip("\n") + "\n"
            found.append(Block(page, language, name[1] if name else "", stripped))
    return found


BLOCKS = _blocks()
NAMED = {block.name: block for block in BLOCKS if block.name}


def write_all(folder: Path) -> None:
    """Write every named block into *folder*, as readers of the pages have them."""
    for name, block in NAMED.items():
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(block.text, encoding="utf-8")


def commands(block: Block) -> list[str]:
    """Return the commands of a console block."""
    return [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]


def output(block: Block) -> str:
    """Return what a console block shows of its commands' output."""
    lines = [line for line in block.text.splitlines() if not line.startswith("$ ")]
    return "".join(f"{line}\n" for line in lines)


def table(name: str) -> list[list[str]]:
    """Return the rows of a table, their cells as a reader sees them."""
    [body] = [
        body for text in PAGES.values() for found, body in _TABLE.findall(text) if found == name
    ]
    rows = csv.reader(dedent(body).splitlines(), skipinitialspace=True)
    return [[_read(cell) for cell in row] for row in rows]


def _read(cell: str) -> str:
    literal = re.fullmatch(r"``(.*)``", cell)
    return literal[1] if literal else cell.replace("\\", "")
