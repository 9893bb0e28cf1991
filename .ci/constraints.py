"""Renew constraints.txt: the exact versions that `make demo`, `make test` and CI install.

The nox session `versions` installs the newest of everything, by each supported Python at hand. A
package whose version differs between releases of Python has a line with a marker for each. Where a
release is not at hand, it has the versions of the nearest older one; the oldest is required, as its
versions install everywhere.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "constraints.txt"
HEAD = """\
# The exact versions that make and CI install: pip install -c constraints.txt
# Do not edit it: make update renews it.
"""


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from noxfile import PYTHONS

    frozen = newest(PYTHONS)
    if PYTHONS[0] not in frozen:
        print(f"needs Python {PYTHONS[0]}, the oldest that is supported", file=sys.stderr)
        return 1
    for each in PYTHONS:
        if each not in frozen:
            print(f"Python {each} is not at hand: it has the versions of an older one")
    before = FILE.read_text().splitlines() if FILE.exists() else []
    text = HEAD + "".join(f"{line}\n" for line in merged(frozen))
    FILE.write_text(text)
    after = text.splitlines()
    for line in sorted({*before} ^ {*after}, key=str.lower):
        print("+" if line in after else "-", line)
    return 0


def newest(releases: list[str]) -> dict[str, dict[str, str]]:
    """Return the version of each package, for each of *releases* that is at hand."""
    with tempfile.TemporaryDirectory() as folder:
        nox = [sys.executable, "-m", "nox", "--session", "versions", "--", folder]
        subprocess.run(nox, cwd=ROOT, check=True)
        files = {each: Path(folder) / f"{each}.txt" for each in releases}
        return {each: _read(file) for each, file in files.items() if file.exists()}


def _read(file: Path) -> dict[str, str]:
    lines = (line.partition("==") for line in file.read_text().splitlines() if "==" in line)
    return {name: version for name, _, version in lines if name != "wsgigate"}


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
