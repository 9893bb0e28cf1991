"""Fixtures of the command line's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.files import SECRET, Cli


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return Cli(tmp_path, capsys)
