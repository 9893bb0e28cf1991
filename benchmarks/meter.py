"""The processor time and the memory of a server and all its children, and the cost of a call."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = [
    "cores",
    "cpu_seconds",
    "least_costs",
    "peak_bytes",
    "proportional_bytes",
    "resident_bytes",
]

_TICK = os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """Return the processors for the server and for all else: the same one if there is but one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def _tree(pid: int) -> list[int]:
    pids = [pid]
    for each in pids:
        for children in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                pids += [int(child) for child in children.read_text().split()]
            except OSError:  # it has ended meanwhile
                pass
    return pids


def cpu_seconds(pid: int) -> float:
    """Return the processor time of *pid* and all its children, those that ended included."""
    ticks = 0
    for each in _tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime: proc(5)
    return ticks / _TICK


def peak_bytes(pid: int) -> int:
    """Return the most memory *pid* and its children have had, pages they share counted for each."""
    return _told(pid, "VmHWM")


def resident_bytes(pid: int) -> int:
    """Return what memory *pid* and its children have, pages they share counted for each."""
    return _told(pid, "VmRSS")


def proportional_bytes(pid: int) -> int:
    """Return the memory of *pid* and its children, pages they share counted once (Pss)."""
    return _told(pid, "Pss", "smaps_rollup")


def _told(pid: int, what: str, file: str = "status") -> int:
    total = 0
    for each in _tree(pid):
        try:
            status = Path(f"/proc/{each}/{file}").read_text()
            found = re.search(rf"^{what}:\s+(\d+) kB", status, re.MULTILINE)
        except OSError:
            continue
        total += int(found[1]) * 1024 if found else 0
    return total


def least_costs(
    cases: Mapping[str, Callable[[], object]], *, calls: int, rounds: int
) -> dict[str, float]:
    """Return by name how many microseconds of processor time each of *cases* takes.

    :param calls: The calls of a case in each round.
    :param rounds: The number of rounds, which alternate between the cases; the least counts, as
        other work of the machine only adds.
    """
    least = dict.fromkeys(cases, float("inf"))
    for _ in range(rounds):
        for name, call in cases.items():
            began = time.process_time()
            for _ in range(calls):
                call()
            least[name] = min(least[name], (time.process_time() - began) / calls * 1e6)
    return least
