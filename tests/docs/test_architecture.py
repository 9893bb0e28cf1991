"""The architecture page names files and folders that exist, and every folder of the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "wsgigate"
PAGE = (ROOT / "docs" / "architecture.rst").read_text()
FILES = sorted(set(re.findall(r"``((?:\w+/)+\w+\.py|gateway\.py)``", PAGE)))
FOLDERS = set(re.findall(r"``(\w+)/``", PAGE))


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_page_names_is_there(name: str) -> None:
    assert (PACKAGE / name).is_file() or (ROOT / name).is_file()


def test_the_page_names_every_folder_of_the_package() -> None:
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert there - {"testing"} == FOLDERS
