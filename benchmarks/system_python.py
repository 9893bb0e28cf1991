"""The operating system's own Python, and an environment that runs the gateway in it.

Distributions build their interpreter with profile-guided optimization (PGO), which a Python built
from source usually lacks. Debian does not record that in ``CONFIG_ARGS``, so it cannot be detected:
the row of gunicorn's own worker in this Python shows what the build alone changes.

``python -m benchmarks.system_python`` creates the environment; ``make bench`` does so before its
first run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["PYTHON", "create", "missing", "python", "unsuitable", "version"]

ROOT = Path(__file__).parents[1]
PYTHON = Path("/usr/bin/python3")
FOLDER = ROOT / ".venv-system"
_INSTALLED = FOLDER / ".installed"
_OLDEST = (3, 11)


def python() -> str:
    """Return the path of the environment's interpreter, whether or not it exists."""
    return str(FOLDER / "bin" / "python")


def version(interpreter: Path = PYTHON) -> str:
    """Return the version of *interpreter*, such as ``3.11.2``.

    :raises OSError: It cannot be run.
    :raises subprocess.CalledProcessError: It fails.
    """
    code = "import platform; print(platform.python_version())"
    return _output(interpreter, code).strip()


def unsuitable(interpreter: Path = PYTHON) -> str:
    """Return why *interpreter* cannot run the gateway beside this one; empty if it can."""
    if not interpreter.exists():
        return f"{interpreter} does not exist"
    if interpreter.samefile(Path(sys.executable).resolve()):
        return f"{interpreter} runs all other rows"
    try:
        found = version(interpreter)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{interpreter} does not run: {error}"
    if tuple(map(int, found.split(".")[:2])) < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return f"{interpreter} is Python {found}, and wsgigate needs {oldest} or newer"
    try:
        _output(interpreter, "import ensurepip, venv")
    except subprocess.SubprocessError:
        return f"{interpreter} has no venv: apt-get install python3-venv"
    return ""


def missing() -> str:
    """Return why the environment cannot be measured; empty if it can."""
    if _INSTALLED.exists():
        return ""
    return unsuitable() or f"{FOLDER.name} is missing: python -m benchmarks.system_python"


def create() -> None:
    """Create the environment, with the versions of ``constraints.txt``.

    :raises subprocess.CalledProcessError: A package cannot be installed.
    """
    pip = [python(), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    pip += ["--constraint", str(ROOT / "constraints.txt")]
    package = f"{ROOT}[server,granian]"
    env = {**os.environ, "PYTHONWARNINGS": "ignore:Editable installation"}
    _INSTALLED.unlink(missing_ok=True)
    for command in (
        [str(PYTHON), "-m", "venv", str(FOLDER)],
        [*pip, "--upgrade", "pip", "setuptools"],
        [*pip, "--no-build-isolation", "--editable", package],
    ):
        subprocess.run(command, check=True, env=env)
    _INSTALLED.touch()


def _output(interpreter: Path, code: str) -> str:
    done = subprocess.run(
        [str(interpreter), "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def main() -> int:
    """Create the environment, or print why it is left out; return the exit code."""
    reason = unsuitable()
    if reason:
        print(f"left out: the system's Python: {reason}")
        return 0
    try:
        create()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"left out: the system's Python: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
