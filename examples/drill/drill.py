"""Kill, hang and break one of three instances under load, and show what clients see of it.

Starts three instances and the gateway that ``gateway.toml`` describes, or any other that
``--gateway`` starts; sends GETs and POSTs at an even pace; and prints the outcome: a timeline,
the figures, and whether they are what they should be. Ends with 1 when one is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from clients import Clients, Request
from figures import Entry, Slice, Trouble, evaluate, posts, slices
from picture import draw
from processes import NAMES, Failed, Gateway, Instance, check_ports, new_folder
from report import Goal, figure_table, goal_lines, goals, timeline

WSGIGATE = f"{shlex.quote(sys.executable)} -m wsgigate run gateway.toml"


class Pace(NamedTuple):
    """How long everything takes.

    :ivar rate: Requests per second.
    :ivar calm: Seconds before the first trouble, in which nothing is wrong.
    :ivar lasts: Seconds that each trouble lasts.
    :ivar after: Seconds that are watched after each.
    :ivar slice: Seconds of a line of the timeline.
    :ivar environ: The variables that the gateway's file reads.
    """

    rate: float
    calm: float
    lasts: tuple[float, float, float]
    after: tuple[float, float, float]
    slice: float
    environ: dict[str, str]

    def troubles(self) -> list[Trouble]:
        """Return the troubles: one for each instance, one after the other."""
        found = []
        began = self.calm
        kinds = ("killed", "hung", "failing")
        for what, name, lasts, after in zip(kinds, NAMES, self.lasts, self.after, strict=True):
            ended = began + lasts
            found.append(Trouble(what, name, began, ended, ended + after))
            began = ended + after
        return found


WHOLE = Pace(300, 5.0, (8.0, 8.0, 8.0), (8.0, 8.0, 10.0), 1.0, {})
_SOONER = {"CHECK_EVERY": "400ms", "EJECT_FOR": "2500ms", "TRY_FOR": "400ms"}
QUICK = Pace(80, 1.0, (1.5, 3.5, 2.2), (1.6, 1.6, 2.0), 0.5, _SOONER)


class Drilled(NamedTuple):
    """What was found: times are seconds since the load began."""

    requests: list[Request]
    journals: dict[str, list[Entry]]
    troubles: list[Trouble]


def drill(command: str, port_base: int, pace: Pace) -> Drilled:
    """Run the drill once.

    :param command: What starts the gateway.
    :param port_base: The gateway's port; the instances have the next three.
    :raises Failed: Something could not be started.
    """
    check_ports(port_base, 4)
    with new_folder() as name:
        folder = Path(name)
        instances = [
            Instance(each, port_base + number, folder) for number, each in enumerate(NAMES, 1)
        ]
        gateway = Gateway(command, port_base, instances, folder, pace.environ)
        clients = Clients(port_base, pace.rate)
        try:
            for process in (*instances, gateway):
                process.start()
            for process in (*instances, gateway):
                process.wait_until_up()
            time.sleep(1.0)  # for the first round of health checks
            began = time.monotonic()
            clients.start()
            troubles = _make_trouble(pace, began, dict(zip(NAMES, instances, strict=True)))
            requests = clients.stop()
        finally:
            clients.stop()
            gateway.stop()
            for each in instances:
                each.stop()
        requests = [each._replace(due=each.due - began) for each in requests]
        journals = {each.name: _journal(each.journal, began) for each in instances}
        return Drilled(requests, journals, troubles)


def _make_trouble(pace: Pace, began: float, instances: dict[str, Instance]) -> list[Trouble]:
    """Do to the instances what is planned; return when it really happened."""

    def do(planned: float, act: Callable[[], None]) -> float:
        time.sleep(max(0.0, began + planned - time.monotonic()))
        now = time.monotonic() - began
        act()
        return now

    happened = []
    for trouble in pace.troubles():
        instance = instances[trouble.instance]
        begin, end = {
            "killed": (instance.kill, instance.start),
            "hung": (instance.hang, instance.go_on),
            "failing": (instance.fail, instance.mend),
        }[trouble.what]
        at = do(trouble.began, begin)
        over = do(trouble.ended, end)
        happened.append(trouble._replace(began=at, ended=over))
    do(pace.troubles()[-1].until, lambda: None)
    return happened


def _journal(file: Path, began: float) -> list[Entry]:
    entries = []
    for line in file.read_text().splitlines():
        at, method, id, status = line.split(" ")
        entries.append(Entry(float(at) - began, method, id, int(status)))
    return entries


def document(title: str, pace: Pace, drilled: Drilled) -> dict[str, Any]:
    """Return the document of a drill, for a file."""
    requests, journals, troubles = drilled
    end = troubles[-1].until
    fine: list[Slice] = slices(requests, NAMES, end, 0.5)
    result = {
        "title": title,
        "machine": {
            "system": platform.system(),
            "python": platform.python_version(),
            "processors": os.cpu_count(),
        },
        "rate": pace.rate,
        "requests": len(requests),
        "planned": round(pace.rate * end),
        "troubles": [trouble._asdict() for trouble in troubles],
        "slices": [each._asdict() for each in fine],
        "figures": [evaluate(trouble, requests, journals) for trouble in troubles],
        "posts": posts(requests, journals),
        "errors": Counter(_said(each) for each in requests if each.failed),
    }
    plain: dict[str, Any] = json.loads(json.dumps(result), parse_constant=lambda _: None)  # no nan
    return plain


def _said(request: Request) -> str:
    return f"{request.method} {request.status or request.error}"


def main() -> int:
    given = _parser().parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    pace = QUICK if given.quick else WHOLE
    lasts = pace.troubles()[-1].until
    print(f"{given.title}: {pace.rate:g} requests/s for {lasts:g} s ...", flush=True)
    try:
        drilled = drill(given.gateway, given.port_base, pace)
    except Failed as error:
        print(f"drill: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    result = document(given.title, pace, drilled)
    reached: list[Goal] = goals(result)
    lines = slices(drilled.requests, NAMES, lasts, pace.slice)
    print(timeline(lines, drilled.troubles), figure_table([result]), sep="\n\n")
    if result["errors"]:
        errors = [f"{error} ({count})" for error, count in sorted(result["errors"].items())]
        print("\nWhat clients got instead of an answer:", ", ".join(errors))
    print("\n" + goal_lines(reached))
    if given.json:
        given.json.write_text(json.dumps(result) + "\n")
    if given.svg:
        given.svg.write_text(draw([result]))
    judged = [goal for goal in reached if goal.counted or not given.quick]
    return 0 if all(goal.reached for goal in judged) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a short one, of which counts are judged"
    )
    parser.add_argument(
        "--gateway", default=WSGIGATE, metavar="COMMAND", help="what starts another"
    )
    parser.add_argument("--title", default="wsgigate", help="what it is called")
    parser.add_argument(
        "--port-base", type=int, default=3200, metavar="N", help="use the ports N to N+3"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="write a picture there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
