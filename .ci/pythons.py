"""Find the Python interpreters that this project supports.

Run as a program, it prints a line for each supported release: the release, and the path of its
interpreter or nothing where there is none.
"""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
_CLASSIFIER = "Programming Language :: Python :: 3."


def supported() -> list[str]:
    """Return the releases that setup.cfg names, such as ``["3.11", "3.12"]``, oldest first."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["metadata"]["classifiers"].splitlines()
    minors = sorted(int(line.rpartition(".")[2]) for line in lines if line.startswith(_CLASSIFIER))
    return [f"3.{minor}" for minor in minors]


def interpreter(release: str) -> str | None:
    """Return the path of an interpreter of *release* that can make environments, else None.

    It is looked for on the PATH, among pyenv's versions (newest first), and by uv.
    """
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    built = [path for path in pyenv.glob(f"{release}.*/bin/python{release}") if _patch(path) >= 0]
    candidates = [shutil.which(f"python{release}"), *map(str, sorted(built, key=_patch)[::-1])]
    if uv := shutil.which("uv"):
        command = [uv, "python", "find", "--offline", "--no-project", release]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        candidates.append(found.stdout.strip() if found.returncode == 0 else None)
    return next((path for path in candidates if path and _works(path, release)), None)


def _patch(path: Path) -> int:
    patch = path.parents[1].name.rpartition(".")[2]
    return int(patch) if patch.isdigit() else -1


def _works(path: str, release: str) -> bool:
    """Return whether *path* runs, is of *release* and can make an environment with pip."""
    code = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run(
            [path, "-c", code], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout.strip() == release


if __name__ == "__main__":
    for each in supported():
        print(each, interpreter(each) or "")
