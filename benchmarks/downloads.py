"""Slow downloads, all held at once by one worker: what each of them costs it in memory.

``python -m benchmarks.downloads`` measures it, for each kind of worker. A client requests a file
through the gateway, takes the first bytes, and stops reading; when a thousand of them have, the
worker's memory is read. Then they all read on, and what they get is compared byte by byte.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.util
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from benchmarks import process

__all__ = ["KINDS", "PERIOD", "Held", "content", "hold", "measure", "resident", "running"]

KINDS = ("GateWorker", "gevent")
PERIOD = 32
WARM_UP = 3
BLOCK = 1 << 16
ROOT = Path(__file__).parents[1]

GATEWAY = """
[gateway]
workers = 1
threads = {threads}
head_timeout = "5m"
idle_timeout = "5m"
[store]
url = "memory:"
[[middleware]]
use = "logger"
[services.files]
instances = ["http://127.0.0.1:{port}"]
timeout = "10m"
read_timeout = "5m"
connect_timeout = "1m"
[[routes]]
path = "/files"
service = "files"
strip_prefix = true
"""

GEVENT = ("--worker-class", "gevent", "--http-parser", "python", "--header-map", "refuse")
GEVENT += ("--forwarded-allow-ips", "", "--forwarder-headers", "", "--timeout", "300")  # type: ignore[assignment]


class Held(NamedTuple):
    """What one worker had to hold.

    :ivar before: Bytes of memory it had before, after a request or two.
    :ivar during: And while all downloads were under way.
    :ivar threads: How many threads it had then.
    :ivar begun: How many files the service had begun to send.
    :ivar ended: How many responses the gateway had come to the end of.
    """

    count: int  # type: ignore[assignment]
    before: int
    during: int
    after: int
    threads: int
    begun: int
    ended: int
    seconds: float

    @property
    def each(self) -> int:
        """Bytes of memory for one download."""
        return (self.during - self.before) // self.count


def content(number: int, size: int) -> bytes:
    """Return the first *size* bytes of the file *number*; it repeats itself."""
    return (
        sha256(b"%d" % number).digest() * (size // PERIOD)
        + sha256(b"%d" % number).digest()[: size % PERIOD]
    )


def resident(pid: int, what: str = "VmRSS") -> int:
    """Return bytes of memory: ``VmRSS`` now, or ``VmHWM``, the most there ever was (proc(5))."""
    return _told(pid, what) * 1024


def _told(pid: int, what: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1])
    raise LookupError(what)


class _Download:
    def __init__(self, number: int, size: int) -> None:
        self.size = size
        self.expected = content(number, BLOCK + PERIOD)
        self.received = 0
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        # Packets as on a network: with loopback's, the kernel would hold all of a file by itself.
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1460)
        self.socket.setblocking(False)
        self.request = f"GET /files/{number}?{size} HTTP/1.1\r\nHost: a\r\n\r\n".encode()

    async def begin(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self.socket, ("127.0.0.1", port))
        await loop.sock_sendall(self.socket, self.request)
        data = b""
        while b"\r\n\r\n" not in data[:-1]:  # and at least one byte behind it
            data += await self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise AssertionError(data)
        self._take(body)

    async def end(self) -> None:
        while self.received < self.size:
            self._take(await self._more())
        self.socket.close()

    async def _more(self) -> bytes:
        data = await asyncio.get_running_loop().sock_recv(self.socket, BLOCK)
        if not data:
            raise AssertionError(f"cut after {self.received} bytes of {self.size}")
        return data

    def _take(self, data: bytes) -> None:
        start = self.received % PERIOD
        if data != self.expected[start : start + len(data)]:
            raise AssertionError(f"wrong bytes after {self.received}")
        self.received += len(data)


async def hold(port: int, count: int, size: int, held: Callable[[], object]) -> None:
    """Download *count* files at once, and call *held* when all of them have begun to arrive.

    :raises AssertionError: What came was not what was asked for.
    """
    downloads = [_Download(number, size) for number in range(count)]
    try:
        await asyncio.gather(*(download.begin(port) for download in downloads))
        if any(download.received == size for download in downloads):
            raise AssertionError("a download was complete before all had begun")
        held()
        await asyncio.gather(*(download.end() for download in downloads))
    finally:
        for download in downloads:
            download.socket.close()


def _started(
    command: list[str], port: int, folder: Path, **env: str
) -> AbstractContextManager[int]:
    env = {"HOME": str(folder), "PYTHONPATH": str(ROOT), **env}
    python = [sys.executable, "-m"]
    return process.running([*python, *command], port, None, folder, env, log=f"{port}.log")


@contextmanager
def running(kind: str, folder: Path, *, most: int) -> Iterator[tuple[int, int, int]]:
    """Run a gateway on one worker of *kind*.

    What is yielded is its port, the worker's process, and the port of the service behind it.

    :param most: How many downloads it is to hold.
    """
    allow_files(4 * most + 256)
    upstream, port = process.free_port(), process.free_port()
    file = folder / "gateway.toml"
    file.write_text(GATEWAY.format(threads=most + 8 if kind != "gevent" else 1, port=upstream))
    bind = ["--bind", f"127.0.0.1:{port}"]
    command = ["wsgigate", "run", str(file), *bind]
    if kind == "gevent":
        command = ["gunicorn", *GEVENT, "--worker-connections", str(2 * most), *bind]
        command.append("wsgigate:load()")
    with ExitStack() as stack:
        stack.enter_context(_started(["benchmarks.servers.files", str(upstream)], upstream, folder))
        master = stack.enter_context(_started(command, port, folder, WSGIGATE_CONFIG=str(file)))
        for _ in range(WARM_UP):  # what the first requests load is no download's
            _ask(port, "/files/count")
        children = Path(f"/proc/{master}/task/{master}/children").read_text()
        yield port, int(children.split()[0]), upstream


def measure(kind: str, *, count: int = 1000, size: int = 1 << 20) -> Held:
    """Have a worker of *kind* hold *count* downloads of *size* bytes.

    :raises AssertionError: One of them was not as it should be.
    """
    found: list[tuple[int, int, int, int]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port, worker, upstream = stack.enter_context(running(kind, folder, most=count))
        before = resident(worker)

        def held() -> None:
            begun = json.loads(_ask(upstream, "/count"))
            ended = (folder / f"{port}.log").read_text().count('"path":"/files/') - WARM_UP
            found.append((resident(worker), _told(worker, "Threads"), begun, ended))

        began = time.monotonic()
        asyncio.run(hold(port, count, size, held))
        seconds = time.monotonic() - began
        [(during, threads, begun, ended)] = found
        return Held(count, before, during, resident(worker), threads, begun, ended, seconds)


def _ask(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def allow_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (number if hard < 0 else min(number, hard), hard)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000, help="downloads at once")
    parser.add_argument("--size", type=int, default=1 << 20, help="bytes of each")
    given = parser.parse_args()
    print(f"{given.count} downloads of {given.size} bytes held at once by one worker\n")
    print(f"{'worker':<12}{'before':>10}{'held':>10}{'each':>10}{'threads':>9}{'in all':>9}")
    for kind in KINDS:
        if kind == "gevent" and importlib.util.find_spec("gevent") is None:
            print(f"{kind:<12}is not installed")
            continue
        held = measure(kind, count=given.count, size=given.size)
        print(
            f"{kind:<12}{held.before / 2**20:>6.1f} MiB{held.during / 2**20:>6.1f} MiB"
            f"{held.each / 1024:>6.1f} KiB{held.threads:>9}{held.seconds:>7.1f} s"
        )


if __name__ == "__main__":
    main()
