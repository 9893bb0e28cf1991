"""The calls of a forwarded request are counted, and are no more than they may be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.calls import MOST

ROOT = Path(__file__).parents[2]


def test_a_forwarded_request_takes_no_more_calls_than_it_may() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.calls", "--functions"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    figures, *functions = [table.splitlines()[2:] for table in done.stdout.split("\n\n")]
    calls = {name: float(python) for name, python, _ in map(str.split, figures)}
    assert calls.keys() == MOST.keys()
    assert all(30 < calls[name] <= MOST[name] for name in MOST), calls
    for lines in functions:
        counted = dict(line.rsplit(None, 1) for line in lines)
        assert counted["wsgigate/proxy/forwarder.py:Forwarder.__call__"] == "1.00"
