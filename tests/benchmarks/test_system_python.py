"""The system's Python is measured where it can run the gateway, and left out with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.system_python import unsuitable


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 3.9.2", "is Python 3.9.2, and wsgigate needs 3.11 or newer"),
        ("exit 3", "does not run: "),
        ('case "$2" in *venv*) exit 1;; esac; echo 3.11.2', "has no venv: apt-get install"),
        ("echo 3.14.0", ""),
    ],
)
def test_an_interpreter_is_asked_for_its_version_and_for_venv(script, reason, tmp_path):
    interpreter = tmp_path / "python3"
    interpreter.write_text(f"#!/bin/sh\n{script}\n")
    interpreter.chmod(0o755)
    found = unsuitable(interpreter)
    assert reason in found if reason else not found


def test_an_interpreter_that_is_missing_or_runs_this_is_left_out(tmp_path):
    missing = tmp_path / "python3"
    assert unsuitable(missing) == f"{missing} does not exist"
    assert unsuitable(Path(sys.executable)).endswith("runs all other rows")
