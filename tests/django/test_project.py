"""The Django project of the documentation passes its own tests, each time that they are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.docs.pages import write_all


def test_the_tests_of_a_django_project_pass_twice(tmp_path: Path) -> None:
    write_all(tmp_path)
    state = tmp_path / "state"
    state.mkdir()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environ |= {"XDG_RUNTIME_DIR": str(state), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "django", "test", "--settings", "mysite.gate_settings"]
    for _ in range(2):
        done = subprocess.run(
            [*command, "mysite"], cwd=tmp_path, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "Ran 2 tests" in done.stderr
    assert list(state.iterdir()) == []
