"""One contender, once: started on its processor, warmed up, driven, measured, stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.contenders import Contender, Setup, Start
from benchmarks.load import drive
from benchmarks.meter import cpu_seconds, peak_bytes

__all__ = ["Bout", "fight", "free_port", "served"]

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


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def served(
    start: Start, url: str, headers: Mapping[str, str], *, core: int, folder: Path, given: Setup
) -> Iterator[int]:
    """Run what *start* says on the processor *core*; yield its process id once it answers.

    :raises RuntimeError: It ends, or does not answer with 200 in time; tells what it wrote.
    """
    log = folder / "server.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *start.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **given.environment(), **start.environment},
            cwd=folder,
            start_new_session=True,
        )
    try:
        _wait_until_up(process, url, headers, log)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_up(
    process: subprocess.Popen[bytes], url: str, headers: Mapping[str, str], log: Path
) -> None:
    until = time.monotonic() + 20
    said = ""
    while process.poll() is None and time.monotonic() < until:
        try:
            request = urllib.request.Request(url, headers=dict(headers))
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
            return
        except urllib.error.HTTPError as error:
            said = f"{error}\n"
            error.close()
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(said + log.read_text(errors="replace")[-4000:])


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
