"""``python -m benchmarks.calls``: how many calls a forwarded request takes, a figure without noise.

A gateway forwards requests to a service over loopback, in this process and without a server in
front: what is counted is the way of a request through the gateway. ``bare`` only forwards,
``full`` is the full stack of the benchmark, ``post`` is a bare forward of a request with a body.
``--instructions`` counts the processor's instructions as well, under valgrind (slow).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import BytesIO
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from wsgiref.types import WSGIEnvironment

from benchmarks.micro import SECRET
from benchmarks.servers.hello import BODY
from benchmarks.table import aligned
from wsgigate.auth.jwt import mint
from wsgigate.config.build import load
from wsgigate.gateway import Gateway

__all__ = ["KINDS", "MOST", "Calls", "count"]

ROOT = Path(__file__).parents[1]

KINDS = {"bare": ("bare.toml", b""), "full": ("full.toml", b""), "post": ("bare.toml", b"x" * 1000)}
"""By name the file of the gateway and the request's body."""

MOST = {"bare": 73, "full": 122, "post": 78}
"""The most Python calls that a request may take; raise it only for what is worth a call."""

_ANSWER = (
    b"HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%b"
    % (len(BODY), BODY)
)


_OWN = 6
"""The calls of C functions that :func:`_run` itself makes for each request."""


class Calls(NamedTuple):
    """The calls of one request.

    :param python: Calls of Python functions, and resumed generators.
    :param native: Calls of functions in C, as far as the interpreter reports them.
    :param functions: The calls of each Python function, by its place.
    """

    python: float
    native: float
    functions: dict[str, float]


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_respond, args=(connection,), daemon=True).start()


def _respond(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    data = b""
    while received := connection.recv(65536):
        data += received
        head, end, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if end and len(body) >= (int(length[1]) if length else 0):
            data = b""
            connection.sendall(_ANSWER)


@contextmanager
def _backends() -> Iterator[list[int]]:
    """Yield the ports of three instances, in a process of their own: their work does not count."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        pid = os.fork()
        if pid == 0:
            for listener in listeners[1:]:
                threading.Thread(target=_serve, args=(listener,), daemon=True).start()
            _serve(listeners[0])
        try:
            yield [listener.getsockname()[1] for listener in listeners]
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


@contextmanager
def _gateway(file: str) -> Iterator[Gateway]:
    """Yield a started gateway of *file*, whose access log goes nowhere."""
    with (
        _backends() as ports,
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as null,
    ):
        for number, port in enumerate(ports, 1):
            os.environ[f"BENCH_BACKEND_{number}"] = f"http://127.0.0.1:{port}"
        os.environ.update(BENCH_FOLDER=folder, BENCH_SECRET=SECRET)
        with redirect_stdout(null):
            gateway = load(str(ROOT / "benchmarks" / "servers" / file))
            gateway.self_check = "warn"
            gateway.start()
            try:
                yield gateway
            finally:
                gateway.close()


def _environ(client: socket.socket, body: bytes) -> WSGIEnvironment:
    """Return a request as GateWorker makes it from what the benchmark's client sends."""
    environ: WSGIEnvironment = {
        "wsgi.errors": sys.stderr,
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
        "wsgi.url_scheme": "http",
        "SERVER_SOFTWARE": "gunicorn",
        "gunicorn.socket": client,
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "49152",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "3000",
        "HTTP_HOST": "127.0.0.1:3000",
        "HTTP_AUTHORIZATION": f"Bearer {mint(SECRET, 'HS256', '7', 86400)}",
        "HTTP_ACCEPT": "application/json",
        "HTTP_USER_AGENT": "bench/1.0",
        "REQUEST_METHOD": "POST" if body else "GET",
        "RAW_URI": "/api/orders/7",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/api/orders/7",
        "QUERY_STRING": "",
    }
    if body:
        environ |= {"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str(len(body))}
    return environ


def _run(gateway: Gateway, environ: WSGIEnvironment, body: bytes, count: int) -> None:
    """Have *gateway* answer *count* requests, as a server does.

    :raises RuntimeError: A response is not the service's.
    """
    started: list[str] = []

    def start_response(status: str, headers: list[Any], exc_info: Any = None) -> Any:
        started.append(status)

    for _ in range(count):
        given = environ.copy()
        given["wsgi.input"] = BytesIO(body)
        response = gateway(given, start_response)
        if b"".join(response) != BODY or started.pop() != "200 OK":
            raise RuntimeError("the gateway did not forward the request")
        close = getattr(response, "close", None)
        if close is not None:
            close()


def count(kind: str, *, requests: int = 500) -> Calls:
    """Return the calls of one request of *kind*, the mean of *requests*."""
    file, body = KINDS[kind]
    found: Counter[str] = Counter()
    native = [0]

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        if event == "c_call":
            native[0] += 1
        elif event == "call":
            code = frame.f_code
            place = code.co_filename.partition("site-packages/")[2] or code.co_filename
            found[f"{place.removeprefix(f'{ROOT}/')}:{code.co_qualname}"] += 1

    client, other = socket.socketpair()
    with client, other, _gateway(file) as gateway:
        environ = _environ(client, body)
        _run(gateway, environ, body, 50)
        sys.setprofile(profile)
        try:
            _run(gateway, environ, body, requests)
        finally:
            sys.setprofile(None)
    mine = "benchmarks/calls.py:"
    functions = {
        name: calls / requests for name, calls in found.most_common() if not name.startswith(mine)
    }
    return Calls(sum(functions.values()), native[0] / requests - _OWN, functions)


def _instructions(kind: str, requests: int) -> float:
    """Return the instructions of one request: of twice as many requests, without the first half."""
    totals = []
    for number in (requests, 2 * requests):
        done = subprocess.run(
            [
                *("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"),
                *(sys.executable, "-m", "benchmarks.calls"),
                *("--only", kind, "--run", str(number)),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        collected = re.findall(r"Collected : (\d+)", done.stderr)
        totals.append(max(map(int, collected)))
    return (totals[1] - totals[0]) / requests


def main(argv: Sequence[str] | None = None) -> int:
    """Count what the command line *argv* selects, and print it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls", description=__doc__)
    parser.add_argument("--only", choices=KINDS, help="only this kind of request")
    parser.add_argument("--functions", action="store_true", help="list the calls by function")
    parser.add_argument("--instructions", action="store_true", help="count instructions, too")
    parser.add_argument("--run", type=int, metavar="COUNT", help="serve COUNT requests, no more")
    given = parser.parse_args(argv)
    kinds = [given.only] if given.only else list(KINDS)
    if given.run:
        file, body = KINDS[kinds[0]]
        client, other = socket.socketpair()
        with client, other, _gateway(file) as gateway:
            _run(gateway, _environ(client, body), body, given.run)
        return 0
    measured = given.instructions and shutil.which("valgrind") is not None
    rows = [("one request", "Python calls", "C calls", *(["instructions"] if measured else []))]
    tables = []
    for kind in kinds:
        calls = count(kind)
        rows.append((kind, f"{calls.python:.1f}", f"{calls.native:.1f}"))
        if measured:
            rows[-1] += (f"{_instructions(kind, 1000):,.0f}",)
        if given.functions:
            functions = [(name, f"{each:.2f}") for name, each in calls.functions.items()]
            tables.append(aligned([(kind, "calls"), *functions]))
    print("\n\n".join([aligned(rows), *tables]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
