"""The load generator wrk, and the results that it reports."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONNECTIONS", "Load", "available", "drive"]

CONNECTIONS = 16

_REPORT = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nREPORT {"requests":%d,"microseconds":%d,"bad":%d,"broken":%d,"p50":%d,"p99":%d}\\n',
    summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


class Load(NamedTuple):
    """What the clients saw."""

    requests: int
    seconds: float
    errors: int
    """Answers of 400 and above, and requests that got none."""
    p50: float
    """Milliseconds."""
    p99: float


def available() -> bool:
    """Return whether the load generator is installed."""
    return shutil.which("wrk") is not None


def drive(
    url: str,
    seconds: float,
    headers: Mapping[str, str],
    *,
    core: int,
    folder: Path,
    connections: int = CONNECTIONS,
) -> Load:
    """Send requests to *url* over *connections* for *seconds*, each as soon as it may.

    :param core: The processor the load comes from.
    :param folder: For a file that is made once.
    """
    script = folder / "report.lua"
    if not script.exists():
        script.write_text(_REPORT)
    command = ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}"]
    command += [f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(script)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("REPORT "))
    told = json.loads(line.removeprefix("REPORT "))
    return Load(
        told["requests"],
        told["microseconds"] / 1e6,
        told["bad"] + told["broken"],
        told["p50"] / 1000,
        told["p99"] / 1000,
    )
