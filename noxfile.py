"""Sessions of nox, each in an environment of its own: ``nox --list`` shows them.

A Python that is not at hand is skipped with a note. ``make help`` lists the usual commands.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import tomllib

import nox

SETUP = configparser.ConfigParser()
SETUP.read("setup.cfg")
PYTHONS = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
EXTRAS = ",".join(SETUP["options.extras_require"])
with open("pyproject.toml", "rb") as project:
    DEV = tomllib.load(project)["dependency-groups"]["dev"]
NEEDED = ("pytest", "freezegun", "hypothesis")
"""What the tests of the frameworks import besides the package and the frameworks."""

PYTEST = ("python", "-m", "pytest", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")

nox.options.sessions = ["unit"]
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"

if "PYENV_VERSION" not in os.environ and (pyenv := shutil.which("pyenv")):
    # Without it pyenv offers only its global version.
    listed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True)
    os.environ["PYENV_VERSION"] = ":".join(reversed(listed.stdout.split()))


@nox.session(python=PYTHONS)
def unit(session: nox.Session) -> None:
    """Run all tests but tests/acceptance, with the versions of constraints.txt."""
    constraint = ("--constraint", "constraints.txt")
    session.install(*constraint, "--upgrade", "pip", "setuptools")
    package = ("--no-build-isolation", "--editable", ".[server]", "--group", "dev")
    session.install(*constraint, *package)
    session.run(*PYTEST, "--ignore=tests/acceptance", *session.posargs)


@nox.session(python=PYTHONS[0])
def frameworks(session: nox.Session) -> None:
    """Run the tests of the frameworks with the oldest release of each that is supported.

    The sessions ``unit`` run them with the newest that each Python can have.
    """
    session.install("--constraint", "constraints.txt", "--upgrade", "pip", "setuptools")
    path = os.path.join(session.create_tmp(), "constraints.txt")
    with open("constraints.txt") as versions, open(path, "w") as others:
        others.writelines(line for line in versions if not is_framework(line))
    oldest = [each.replace(">=", "==") for each in DEV if is_framework(each)]
    package = ("--no-build-isolation", "--editable", ".")
    session.install("--constraint", path, *package, *NEEDED, *oldest)
    session.run("python", "-m", "pytest", "-q", "tests/django", "tests/flask", *session.posargs)


def is_framework(requirement: str) -> bool:
    """Return whether *requirement* is a framework that wsgigate is part of, or one of its own."""
    name = re.split("[=>]", requirement)[0].lower()
    return name in ("django", "djangorestframework", "flask")


@nox.session
def latest(session: nox.Session) -> None:
    """Run the whole suite with the newest releases."""
    _install_newest(session)
    session.run(*PYTEST, *session.posargs)


@nox.session(python=PYTHONS)
def versions(session: nox.Session) -> None:
    """Install the newest releases, and list them in a file of the folder that is the argument."""
    [folder] = session.posargs
    _install_newest(session)
    with open(os.path.join(folder, f"{session.python}.txt"), "w") as file:
        session.run("python", "-m", "pip", "list", "--format=freeze", stdout=file, stderr=None)


def _install_newest(session: nox.Session) -> None:
    session.install("--upgrade", "pip", "setuptools")
    package = ("--no-build-isolation", "--editable", f".[{EXTRAS}]")
    session.install(*package, "--group", "dev", "--group", "bench")
