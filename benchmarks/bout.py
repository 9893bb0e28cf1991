"""One contender, once: started on its processor, warmed up, driven, measured, stopped."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import Contender, Setup, Start
from benchmarks.load import drive
from benchmarks.meter import cpu_seconds, peak_bytes
from benchmarks.process import started

__all__ = ["Bout", "fight", "served"]

PATH = "/api/orders/7"
WARM_UP = 1.0


class Bout(NamedTuple):
    """What one contender did in one round."""

    cpu: float
    """Microseconds of processor time for each request."""
    rate: float
    """Requests for each second of the clock."""
    p50: float
    p99: float
    errors: int
    peak: float
    """MiB."""


def served(
    start: Start, url: str, headers: Mapping[str, str], *, core: int, folder: Path, given: Setup
) -> AbstractContextManager[int]:
    """Run the server of *start* on the processor *core*; yield its process id once it answers.

    :raises RuntimeError: It ends, or does not answer with 200 in time; the message has its output.
    """
    env = {**given.environment(), **start.environment}
    return started(start.command, lambda: _amiss(url, headers), core, folder, env, quiet=True)


def _amiss(url: str, headers: Mapping[str, str]) -> str:
    try:
        request = urllib.request.Request(url, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=5) as answer:
            answer.read()
    except OSError as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return f"{url}: {error}"
    return ""


def fight(
    contender: Contender,
    setup: Setup,
    headers: Mapping[str, str],
    *,
    seconds: float,
    cores: tuple[int, int],
) -> Bout:
    """Measure *contender* once.

    :raises RuntimeError: It could not be started.
    """
    url = f"http://127.0.0.1:{setup.port}{PATH}"
    start = contender.start(setup)
    with served(start, url, headers, core=cores[0], folder=setup.folder, given=setup) as pid:
        drive(url, WARM_UP, headers, core=cores[1], folder=setup.folder)
        before = cpu_seconds(pid)
        load = drive(url, seconds, headers, core=cores[1], folder=setup.folder)
        used = cpu_seconds(pid) - before
        return Bout(
            used / max(1, load.requests) * 1e6,
            load.requests / load.seconds,
            load.p50,
            load.p99,
            load.errors,
            peak_bytes(pid) / 2**20,
        )
