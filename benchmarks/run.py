"""``make bench``: measure all contenders side by side and print how they compare.

The server under test has one processor for itself; the service behind it and the load have
another.
In every round each contender is started anew, warmed up and driven over 16 connections; the
figures are medians of the rounds. Processor time per request comes first: it depends least on what
else the machine does. The number of Python calls per request does not depend on it at all.

What changed against the recorded run is adjusted by the rows in which no code of wsgigate runs.

wrk and nginx come from the system: ``apt-get install wrk nginx-light``. What is missing is left
out; the report names it and the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks import calls, contenders, decisions, load, meter, micro, system_python, table
from benchmarks.bout import PATH, Bout, fight, served
from benchmarks.changes import compare
from benchmarks.picture import draw
from benchmarks.process import free_port
from benchmarks.targets import reached
from wsgigate.auth.jwt import mint

ISSUER = "bench"
RECORDED = Path(__file__).with_name("results.json")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements that the command line *argv* selects; return the exit code."""
    given = _parser().parse_args(argv)
    costs = micro.costs(requests=200, repeats=1) if given.quick else {}
    if given.quick:
        print(table.micro_table(costs))
        return 0
    before, began = os.getloadavg()[0], time.monotonic()
    left_out: dict[str, str] = {}
    counts = {} if given.only else _calls()
    rounds = {} if given.micro else _rounds(given, left_out)
    decided = None
    if given.only is None:
        costs = micro.costs()
        decided = decisions.measure()
    found = {name: table.median(bouts) for name, bouts in rounds.items()}
    settings = {name: getattr(given, name) for name in ("rounds", "seconds", "threads")}
    settings |= {"connections": load.CONNECTIONS, "switch_interval": given.switch_interval}
    document = table.document(rounds, found, costs, counts, settings, before)
    document |= {"left_out": left_out, "took": time.monotonic() - began}
    controls = [contender.name for contender in contenders.CONTENDERS if contender.control]
    compared = compare(_recorded(given.against), document, controls)
    document["changes"] = compared.document()
    document |= decisions.document(*decided) if decided else {}
    parts = [table.server_table(found), _notes(left_out, before)] if found else []
    parts.append(table.target_table(reached(found, costs)))
    parts += [table.calls_table(counts)] if counts else []
    parts += [table.micro_table(costs)] if costs else []
    parts += [decisions.tables(*decided)] if decided else []
    parts.append(table.changes_table(compared))
    text = "\n\n".join(table.trimmed(part) for part in parts if part)
    print("\n" + text)
    if given.text:
        given.text.write_text(text + "\n")
    if given.json:
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    if given.svg and found:
        given.svg.write_text(
            draw(
                "Requests served per second of processor time",
                f"one core, {load.CONNECTIONS} connections; longer is better",
                table.bars(found),
            )
        )
    return 0


def _calls() -> dict[str, float]:
    """Return by kind of request its Python calls.

    A started gateway sets up logging for its process, so it runs in a process of its own: otherwise
    the middlewares measured later would log their refusals, too.
    """
    with get_context("spawn").Pool(1) as pool:
        return {kind: found.python for kind, found in pool.imap(_counted, calls.KINDS)}


def _counted(kind: str) -> tuple[str, calls.Calls]:
    return kind, calls.count(kind)


def _recorded(path: Path) -> dict[str, Any]:
    """Return the document of an earlier run; empty if there is none."""
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        print(f"there is no recorded run to compare with: {path}", file=sys.stderr)
        return {}
    return document


def _notes(left_out: Mapping[str, str], load_before: float) -> str:
    """Return the lines below the first table: which Pythons ran it, and what is left out."""
    lines = [f"Python {platform.python_version()}; load average {load_before:.1f} before the run"]
    if not system_python.missing():
        lines.append(f"system Python: {system_python.PYTHON}, {system_python.version()}")
    lines += [f"left out: {title}: {reason}" for title, reason in left_out.items()]
    return "\n".join(f"({line})" for line in lines)


def _rounds(given: argparse.Namespace, left_out: dict[str, str]) -> dict[str, list[Bout]]:
    """Return by name what each contender did in each round.

    :param left_out: Receives by title why a contender was not measured.
    """
    chosen = []
    for contender in contenders.CONTENDERS:
        if given.only is None or contender.name in given.only:
            missing = contender.missing()
            if missing:
                print(f"left out: {contender.title}: {missing}")
                left_out[contender.title] = missing
            else:
                chosen.append(contender)
    if not load.available() or contenders.program("nginx") is None:
        reason = "wrk and nginx are needed: apt-get install wrk nginx-light"
        print(f"left out: all servers: {reason}")
        left_out["all servers"] = reason
        return {}
    cores = meter.cores()
    if cores[0] == cores[1]:
        print("there is one processor only: the load takes its share of it", file=sys.stderr)
    rounds: dict[str, list[Bout]] = {}
    with tempfile.TemporaryDirectory(prefix="wsgigate-bench-") as folder:
        setup = contenders.Setup(
            Path(folder),
            0,
            (free_port(), free_port(), free_port()),
            given.threads,
            micro.SECRET,
            ISSUER,
            given.switch_interval,
        )
        token = mint(setup.secret, "HS256", "7", 86400, iss=ISSUER)
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/json",
            "User-Agent": "bench/1.0",
        }
        behind = f"http://127.0.0.1:{setup.backends[0]}{PATH}"
        start = contenders.backend(setup)
        with served(start, behind, {}, core=cores[1], folder=setup.folder, given=setup):
            for number in range(1, given.rounds + 1):
                for contender in list(chosen):
                    mine = _own(setup)
                    try:
                        bout = fight(contender, mine, headers, seconds=given.seconds, cores=cores)
                    except RuntimeError as error:
                        print(f"failed: {contender.title}: {error}", file=sys.stderr)
                        left_out[contender.title] = str(error).partition("\n")[0]
                        chosen.remove(contender)
                        continue
                    rounds.setdefault(contender.name, []).append(bout)
                    print(
                        f"round {number}  {contender.title:<50} {bout.cpu:8.1f} µs "
                        f"{bout.rate:9.0f}/s",
                        flush=True,
                    )
    return rounds


def _own(setup: contenders.Setup) -> contenders.Setup:
    """Return *setup* with a port and a folder that were not used before."""
    folder = setup.folder / f"{time.monotonic_ns()}"
    folder.mkdir()
    return replace(setup, folder=folder, port=free_port())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = [contender.name for contender in contenders.CONTENDERS]
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured")
    parser.add_argument("--seconds", type=int, default=4, help="how long each time")
    parser.add_argument("--threads", type=int, default=4, help="of those that have them")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=names, help=f"some of {', '.join(names)}"
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="PATH",
        default=RECORDED,
        help="compare with the figures recorded there. Default: benchmarks/results.json",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--text", type=Path, metavar="PATH", help="write the tables there")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="write a picture there")
    parser.add_argument(
        "--switch-interval", type=float, metavar="SECONDS", help="sys.setswitchinterval() for all"
    )
    parser.add_argument(
        "--micro", action="store_true", help="only what each middleware and decision costs"
    )
    parser.add_argument("--quick", action="store_true", help="see that it runs; measures nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
