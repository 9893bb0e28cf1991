"""Renew constraints.txt: the exact versions that `make demo`, `make test` and CI install.

For each supported Python at hand it installs the newest of everything, all extras included, into a
fresh environment and reads the versions from there. A package whose version differs between
releases of Python has a line with a marker for each. Where a release is not at hand, it has the
versions of the nearest older one; the oldest is required, as its versions install everywhere.
"""

from __future__ import annotations

import configparser
import subprocess
import sys
import tempfile
from pathlib import Path

from pythons import ROOT, interpreter, supported

FILE = ROOT / "constraints.txt"
HEAD = """\
# The exact versions that make and CI install: pip install -c constraints.txt
# Do not edit it: make update renews it.
"""
NOT_OURS = ("pip", "wsgigate")


def main() -> int:
    releases = supported()
    at_hand = {each: path for each in releases if (path := interpreter(each))}
    if releases[0] not in at_hand:
        print(f"needs Python {releases[0]}, the oldest that is supported", file=sys.stderr)
        return 1
    frozen = {each: newest(path) for each, path in at_hand.items()}
    for each in releases:
        if each not in frozen:
            print(f"Python {each} is not at hand: it has the versions of an older one")
    before = FILE.read_text().splitlines() if FILE.exists() else []
    text = HEAD + "".join(f"{line}\n" for line in merged(frozen))
    FILE.write_text(text)
    after = text.splitlines()
    for line in sorted({*before} ^ {*after}, key=str.lower):
        print("+" if line in after else "-", line)
    return 0


def newest(python: str) -> dict[str, str]:
    """Return the version of each package that a fresh environment of *python* gets."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = ",".join(setup["options.extras_require"])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [str(Path(folder) / "bin" / "pip"), "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "setuptools"], check=True)
        install = [*pip, "install", "--quiet", "--no-build-isolation", "--editable"]
        subprocess.run([*install, f"{ROOT}[{extras}]"], check=True)
        done = subprocess.run(
            [*pip, "list", "--format=freeze"], check=True, capture_output=True, text=True
        )
    lines = (line.partition("==") for line in done.stdout.splitlines() if "==" in line)
    return {name: version for name, _, version in lines if name.lower() not in NOT_OURS}


def merged(frozen: dict[str, dict[str, str]]) -> list[str]:
    """Return one list of constraints for all releases.

    :param frozen: The version of each package, for each release of Python, oldest first.
    """
    releases = list(frozen)
    lines = []
    for name in sorted({name for each in frozen.values() for name in each}, key=str.lower):
        versions = [frozen[release].get(name) for release in releases]
        start = 0
        for index in range(1, len(versions) + 1):
            if index < len(versions) and versions[index] == versions[start]:
                continue
            marks = []
            if start > 0:
                marks.append(f'python_version >= "{releases[start]}"')
            if index < len(versions):
                marks.append(f'python_version < "{releases[index]}"')
            if versions[start] is not None:
                marker = f" ; {' and '.join(marks)}" if marks else ""
                lines.append(f"{name}=={versions[start]}{marker}")
            start = index
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
