"""What a request costs that waits for a slow service: memory and processor time, by server.

``python -m benchmarks.inflight`` has one worker hold 100, 1,000 and 4,000 requests in flight, for
GateWorker and granian with a thread for each, and for gevent. They arrive at 1,000 a second, and
the service answers each a second after the last of them has arrived; with ``--at-once`` all arrive
at the same moment, and are answered together a second later.

``python -m benchmarks.inflight --threads 1 4 16 64`` compares numbers of threads instead, with a
service that answers at once and one that takes 50 ms; ``--workers`` gives each row as many workers,
``--switch-interval`` sets ``sys.setswitchinterval``. Memory is the proportional share (Pss) of all
processes. The server has one processor.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import load, meter, process
from benchmarks.contenders import HERE, ROOT
from benchmarks.downloads import GEVENT, allow_files
from benchmarks.servers.slow import HOSTS

__all__ = ["KINDS", "Wait", "hold", "running"]

KINDS = ("GateWorker", "gevent", "granian")

RATE = 1000
"""Requests a second."""

GATEWAY = """
[gateway]
workers = {workers}
threads = {threads}
[store]
url = "memory:"
[services.slow]
instances = {instances}
connect_timeout = "1m"
timeout = "2m"
read_timeout = "2m"
[[routes]]
path = "/slow"
service = "slow"
"""


class Wait(NamedTuple):
    """What requests in flight at once cost a server.

    :ivar memory: Bytes of memory for each.
    :ivar cpu: Seconds of processor time for each.
    :ivar seconds: The time from the first request to the last response.
    :ivar failed: Those that did not get 200.
    """

    count: int  # type: ignore[assignment]
    memory: float
    cpu: float
    seconds: float
    failed: int


@contextmanager
def running(
    kind: str,
    *,
    threads: int,
    workers: int = 1,
    seconds: float,
    switch_interval: float | None = None,
) -> Iterator[tuple[int, int]]:
    """Run a gateway under *kind*; yield its process and its port.

    :param threads: Threads of a worker; for gevent the requests that it may have in flight.
    :param seconds: After how long the service behind it answers.
    """
    allow_files(4 * threads + 1024)
    server, client = meter.cores()
    upstream, port = process.free_port(), process.free_port()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wsgigate-wait-")))
        file = folder / "gateway.toml"
        shown = 1 if kind == "gevent" else threads
        instances = [f"http://{host}:{upstream}" for host in HOSTS]
        file.write_text(GATEWAY.format(threads=shown, workers=workers, instances=instances))
        env = {"PYTHONPATH": str(ROOT), "WSGIGATE_CONFIG": str(file), "HOME": str(folder)}
        if switch_interval is not None:
            env["BENCH_SWITCH_INTERVAL"] = str(switch_interval)
            env["PYTHONPATH"] = f"{HERE / 'site'}:{ROOT}"
        python = [sys.executable, "-m"]
        bind = ["--bind", f"127.0.0.1:{port}"]
        command = [*python, "wsgigate", "run", str(file), *bind]
        if kind == "granian":
            command += ["--server", "granian"]
        elif kind == "gevent":
            most = ["--worker-connections", str(threads), "--workers", str(workers)]
            command = [*python, "gunicorn", *GEVENT, *most, *bind, "wsgigate:load()"]
        slow = [*python, "benchmarks.servers.slow", str(upstream), str(seconds)]
        stack.enter_context(process.running(slow, upstream, client, folder, env, log="slow.log"))
        pid = stack.enter_context(process.running(command, port, server, folder, env))
        asyncio.run(_requests(port, 2 * workers))
        yield pid, port


def hold(kind: str, count: int, *, spread: float) -> Wait:
    """Have one worker of *kind* hold *count* requests at once, twice; return the second time.

    :param spread: Seconds in which the requests arrive.
    """
    with running(kind, threads=count, seconds=spread + 1) as (pid, port):
        before = meter.proportional_bytes(pid)
        asyncio.run(_requests(port, count, spread))  # opens the connections, starts the threads
        used, began = meter.cpu_seconds(pid), time.monotonic()
        during, failed = asyncio.run(_measured(port, count, pid, spread))
        took = time.monotonic() - began
        each = (meter.cpu_seconds(pid) - used) / count
        return Wait(count, (during - before) / count, each, took, failed)


async def _measured(port: int, count: int, pid: int, spread: float) -> tuple[int, int]:
    requests = asyncio.ensure_future(_requests(port, count, spread))
    await asyncio.sleep(spread + 0.5)
    during = await asyncio.to_thread(meter.proportional_bytes, pid)
    return during, await requests


async def _requests(port: int, count: int, spread: float = 0.0) -> int:
    """Send *count* requests in *spread* seconds; return how many failed."""
    answers = await asyncio.gather(
        *(_request(port, spread * number / count) for number in range(count))
    )
    return answers.count(False)


async def _request(port: int, after: float) -> bool:
    await asyncio.sleep(after)
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                return (await reader.read()).startswith(b"HTTP/1.1 200 ")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _waits(kinds: list[str], counts: list[int], *, at_once: bool) -> None:
    print(f"{'server':<12}{'in flight':>10}{'memory each':>14}{'CPU each':>11}{'in all':>9}")
    for kind in kinds:
        for count in counts:
            wait = hold(kind, count, spread=0 if at_once else count / RATE)
            failed = f"{wait.failed:>7} failed" if wait.failed else ""
            print(
                f"{kind:<12}{count:>10}{wait.memory / 1024:>10.1f} KiB"
                f"{wait.cpu * 1e6:>8.0f} µs{wait.seconds:>7.1f} s{failed}",
                flush=True,
            )


def _threads(kinds: list[str], given: argparse.Namespace) -> None:
    print(
        f"{'server':<12}{'workers':>8}{'threads':>8}{'fast':>10}{'CPU each':>11}"
        f"{'50 ms':>10}{'memory':>12}"
    )
    for threads in given.threads:
        for kind in kinds:
            rates, costs, memory = [], [], 0
            for seconds, connections in ((0.0, 16), (0.05, 128)):
                with running(
                    kind,
                    threads=threads,
                    workers=given.workers,
                    seconds=seconds,
                    switch_interval=given.switch_interval,
                ) as (pid, port):
                    rate, each = _drive(pid, port, connections, given.seconds)
                    memory = meter.proportional_bytes(pid)
                rates.append(rate)
                costs.append(each)
            print(
                f"{kind:<12}{given.workers:>8}{threads:>8}{rates[0]:>8.0f}/s"
                f"{costs[0] * 1e6:>8.0f} µs{rates[1]:>8.0f}/s{memory / 2**20:>8.1f} MiB",
                flush=True,
            )


def _drive(pid: int, port: int, connections: int, seconds: float) -> tuple[float, float]:
    """Return the requests a second, and the seconds of processor time of each."""
    with tempfile.TemporaryDirectory() as folder:
        url, core = f"http://127.0.0.1:{port}/slow", meter.cores()[1]
        used = meter.cpu_seconds(pid)
        done = load.drive(url, seconds, {}, core=core, folder=Path(folder), connections=connections)
        if done.errors:
            print(f"{done.errors} of {done.requests} requests failed", file=sys.stderr)
        each = (meter.cpu_seconds(pid) - used) / done.requests
        return done.requests / done.seconds, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--counts", nargs="+", type=int, default=[100, 1000, 4000])
    parser.add_argument("--at-once", action="store_true", help="requests that arrive together")
    parser.add_argument("--threads", nargs="+", type=int, help="compare numbers of threads")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--switch-interval", type=float, metavar="SECONDS")
    given = parser.parse_args()
    kinds = [
        kind
        for kind in given.only
        if kind == "GateWorker" or importlib.util.find_spec(kind) is not None
    ]
    if given.threads:
        _threads([kind for kind in kinds if kind != "gevent"], given)
    else:
        _waits(kinds, given.counts, at_once=given.at_once)


if __name__ == "__main__":
    main()
