"""``make bench-registry``: a registry with 10,000 healthy instances of 500 services.

The registry runs on one processor, the load generator on another. Every instance registers, then
sends a heartbeat every 10 s, while clients list instances over the HTTP API. The benchmark reports
the registry's share of the processor, its response times, its memory and its disk space. The load
is open-loop: requests are sent when they are due, and the time that a request waits for a
connection counts.

Response times also depend on the machine, so a server that does nothing is measured beside it, as
the lower bound there.

``--lesson FILE`` measures another program with the same API at port 3004 beside it: the lesson's
registry, a file for Node in a folder where its packages are installed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import TypeAlias

from benchmarks import meter
from benchmarks.process import free_port, running
from benchmarks.requester import Requester, percentile

__all__ = ["Figures", "main", "measure"]

TOKEN = "a-token-of-the-benchmark-32-bytes"
LESSON_PORT = 3004
DISCOVERERS = 8

Server: TypeAlias = tuple[int, int, Path | None]
"""A port, a process, and the folder of its state."""


@dataclass(frozen=True)
class Scale:
    """The load.

    :ivar every: Seconds between two heartbeats of an instance.
    :ivar discoveries: List requests per second.
    """

    instances: int = 10_000
    services: int = 500
    every: float = 10.0
    discoveries: int = 100
    seconds: float = 30.0
    warm_up: float = 3.0
    connections: int = 64

    def name(self, number: int) -> tuple[str, str]:
        """Return the service and the id of an instance."""
        return f"service-{number % self.services:03d}", f"instance-{number:05d}"


@dataclass
class Figures:
    """What was measured; times are milliseconds, sizes are bytes.

    :ivar registered: Registrations a second while nothing else was done, and as fast as it went.
    :ivar heartbeats: How many a second were answered with 200.
    :ivar cpu: The share of one processor that the registry took meanwhile.
    :ivar each: Microseconds of it for a request.
    :ivar late: The longest time by which a request was sent later than it was due: the load's own.
    """

    registered: float
    heartbeats: float
    discoveries: float
    errors: int
    cpu: float
    each: float
    discover_p50: float
    discover_p99: float
    discover_max: float
    heartbeat_p50: float
    heartbeat_p99: float
    late: float
    resident: int
    disk: int


def register_body(scale: Scale, number: int) -> bytes:
    """Return what is sent to register an instance."""
    service, instance = scale.name(number)
    document = {
        "serviceName": service,
        "instanceId": instance,
        "host": "127.0.0.1",
        "port": 10_000 + number,
        "metadata": {"version": "1.0.0", "healthCheckPath": "/health", "zone": f"z{number % 3}"},
    }
    return json.dumps(document).encode()


async def measure(port: int, pid: int, state: Path | None, scale: Scale, *, fresh: bool) -> Figures:
    """Drive the registry at *port*.

    :param pid: Its process.
    :param state: The folder of its state.
    :param fresh: Whether each heartbeat uses a new connection.
    """
    beats = Requester(port, scale.connections, TOKEN, keep=not fresh)
    asks = Requester(port, DISCOVERERS, TOKEN)
    numbers = list(range(scale.instances))
    began = time.monotonic()
    registering = Requester(port, 16, TOKEN)
    queue = iter(numbers)

    async def register() -> None:
        for number in queue:
            await registering.ask("POST", "/register", register_body(scale, number), good=201)

    await asyncio.gather(*(register() for _ in range(16)))
    registered = scale.instances / (time.monotonic() - began)
    if registering.errors:
        raise RuntimeError(f"{registering.errors} registrations failed: {registering.problem}")
    registering.close()

    random.shuffle(numbers)
    turn = cycle(numbers)

    def beat() -> tuple[str, str]:
        service, instance = scale.name(next(turn))
        return "POST", f"/heartbeat/{service}/{instance}"

    def ask() -> tuple[str, str]:
        service, _ = scale.name(random.randrange(scale.services))
        return "GET", f"/discover/{service}?onlyHealthy=true"

    rates = scale.instances / scale.every, float(scale.discoveries)
    gc.collect()
    gc.disable()
    try:
        for seconds in (scale.warm_up, scale.seconds):
            for requester in (beats, asks):
                requester.forget()
            before, started = meter.cpu_seconds(pid), time.monotonic()
            late = await asyncio.gather(
                _pace(beats, beat, rates[0], seconds), _pace(asks, ask, rates[1], seconds)
            )
            took = time.monotonic() - started
            used = meter.cpu_seconds(pid) - before
    finally:
        gc.enable()
    figures = Figures(
        registered=registered,
        heartbeats=len(beats.times) / took,
        discoveries=len(asks.times) / took,
        errors=beats.errors + asks.errors,
        cpu=used / took,
        each=used / max(1, len(beats.times) + len(asks.times)) * 1e6,
        discover_p50=percentile(asks.times, 0.5) * 1000,
        discover_p99=percentile(asks.times, 0.99) * 1000,
        discover_max=max(asks.times, default=0.0) * 1000,
        heartbeat_p50=percentile(beats.times, 0.5) * 1000,
        heartbeat_p99=percentile(beats.times, 0.99) * 1000,
        late=max(late) * 1000,
        resident=meter.resident_bytes(pid),
        disk=_disk(state),
    )
    if figures.errors:
        print(f"  {figures.errors} errors: {beats.problem or asks.problem}", file=sys.stderr)
    beats.close()
    asks.close()
    return figures


async def _pace(
    requester: Requester, make: Callable[[], tuple[str, str]], rate: float, seconds: float
) -> float:
    """Send what *make* returns *rate* times a second, whether or not answers come.

    :returns: By how many seconds at most something was sent too late.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    under_way: set[asyncio.Task[None]] = set()
    late, sent = 0.0, 0
    while (now := clock()) < start + seconds:
        due = min(int((now - start) * rate) + 1, int(seconds * rate))
        if sent < due:
            late = max(late, now - start - sent / rate)
        while sent < due:
            task = asyncio.ensure_future(requester.ask(*make()))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += 1
        await asyncio.sleep(max(0.0, start + sent / rate - clock()))
    if under_way:
        await asyncio.wait(under_way, timeout=10)
    return late


def _disk(state: Path | None) -> int:
    if state is None:
        return 0
    return sum(file.stat().st_blocks * 512 for file in state.rglob("*") if file.is_file())


@contextmanager
def alone(folder: Path, core: int, server: str) -> Iterator[Server]:
    """Run ``wsgigate registry`` on *core*; yield its port, its process and its state."""
    port = free_port()
    command = [sys.executable, "-m", "wsgigate", "registry", "--bind", f"127.0.0.1:{port}"]
    command += ["--server", server, "--workers", "1", "--store", f"lmdb:{folder}/state"]
    with running(command, port, core, folder, {"REGISTRY_TOKEN": TOKEN}) as pid:
        yield port, pid, folder / "state"


@contextmanager
def nobody(folder: Path, core: int) -> Iterator[Server]:
    """Run under granian on *core* what answers like a registry and does nothing."""
    port = free_port()
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--workers", "1"]
    command += ["--blocking-threads", "16", "--port", str(port)]
    command.append("benchmarks.servers.nobody:app")
    with running(command, port, core, folder, {"PYTHONPATH": os.getcwd()}) as pid:
        yield port, pid, None


@contextmanager
def lessons(file: Path, folder: Path, core: int) -> Iterator[Server]:
    """Run *file* under Node on *core*; yield its port and its process."""
    command = ["node", str(file.resolve())]
    with running(command, LESSON_PORT, core, folder, {}) as pid:
        yield LESSON_PORT, pid, None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurements that the command line *argv* selects; return the exit code."""
    given = _parser().parse_args(argv)
    core, other = meter.cores()
    os.sched_setaffinity(0, {other})
    scale = Scale(seconds=given.seconds, instances=given.instances, services=given.services)
    servers: dict[str, Callable[[Path], AbstractContextManager[Server]]] = {
        "wsgigate registry": lambda folder: alone(folder, core, "gunicorn")
    }
    if importlib.util.find_spec("granian"):
        servers["  under granian"] = lambda folder: alone(folder, core, "granian")
        servers["granian, doing nothing"] = lambda folder: nobody(folder, core)
    if given.lesson is not None and shutil.which("node"):
        servers["the lesson's, on Node"] = lambda folder: lessons(given.lesson, folder, core)
    else:
        print("skipped: the lesson's registry: it needs node and --lesson FILE")
    found = []
    for name, start in servers.items():
        for title, fresh in ((name, False), ("    a connection each", True)):
            with (
                tempfile.TemporaryDirectory(prefix="wsgigate-bench-") as folder,
                start(Path(folder)) as (port, pid, state),
            ):
                figures = asyncio.run(measure(port, pid, state, scale, fresh=fresh))
            found.append((title, figures))
            print(f"{name.strip()}: {figures.cpu:.0%} of a processor", flush=True)
    text = table(scale, found)
    print("\n" + text)
    if given.text:
        given.text.write_text(text + "\n")
    if given.json:
        document = {"scale": asdict(scale), "found": [[t.strip(), asdict(f)] for t, f in found]}
        given.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def table(scale: Scale, found: Sequence[tuple[str, Figures]]) -> str:
    """Return the figures for people."""
    lines = [
        f"{scale.instances:,} instances of {scale.services} services, a heartbeat of each every "
        f"{scale.every:g} s,",
        f"{scale.discoveries} discovery requests a second, for {scale.seconds:g} s; one "
        "processor. Times in ms.",
        "",
        f"{'':<24}{'CPU':>5}{'each':>8}{'beats/s':>9}{'errors':>8}{'discover p50':>14}{'p99':>7}"
        f"{'beat p99':>10}{'memory':>9}{'disk':>8}{'register/s':>12}",
    ]
    for title, f in found:
        disk = f"{f.disk / 2**20:.0f} MiB" if f.disk else "-"
        lines.append(
            f"{title:<24}{f.cpu:>5.0%}{f.each:>5.0f} µs{f.heartbeats:>9.0f}{f.errors:>8}"
            f"{f.discover_p50:>14.1f}{f.discover_p99:>7.1f}{f.heartbeat_p99:>10.1f}"
            f"{f.resident / 2**20:>5.0f} MiB{disk:>8}{f.registered:>12.0f}"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registry", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="how long it is measured")
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--services", type=int, default=500)
    parser.add_argument("--lesson", type=Path, metavar="FILE", help="another registry, for Node")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures there")
    parser.add_argument("--text", type=Path, metavar="PATH", help="write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
