"""What a server costs: the processor time and the memory of it and of all its children."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["cores", "cpu_seconds", "peak_bytes", "proportional_bytes", "resident_bytes"]

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
