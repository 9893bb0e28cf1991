"""A gateway under gunicorn in front of a scripted backend, and a client that sends raw bytes.

The ids in these tests are those of a catalogue of attacks and faults. Every case
that goes through :meth:`Gate.ask` also sees to it that the client is shown no traceback, that the
request has one line in the access log when the gateway answered it (and none when gunicorn did,
before there was a request), and that nothing is left in flight.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import until
from wsgigate.auth.jwt import mint
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer, reply

SECRET = "a-secret-of-at-least-thirty-two-bytes"

CONFIG = """
[gateway]
name = "test"
threads = 8
via = "gate"
{gateway}

[gateway.identity]
X-User-Id = "sub"
X-Plan = "plan"
Remote-User = "subject"
X-Roles = "realm.roles"

[[middleware]]
use = "logger"
[[middleware]]
use = "body-limit"
limit = "1KiB"
{middleware}

[services.svc]
instances = ["{url}"]
timeout = "5s"

[[routes]]
path = "/pub"
service = "svc"
[[routes]]
path = "/api"
service = "svc"
middleware = [{{ use = "authenticator", algorithms = ["HS256"], secret = "{secret}" }}]
[[routes]]
path = "/api/admin"
service = "svc"
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{secret}"
scopes = ["admin"]
[[routes]]
path = "/probe"
app = "attack_plugins:probe"
{routes}
"""

PLUGINS = """
import gc, json
from functools import cache
from wsgigate.proxy.pool import Pool

@cache
def pools():
    return [pool for pool in gc.get_objects() if type(pool) is Pool]

def probe(environ, start_response):
    start_response("200 OK", [])
    return [json.dumps(sum(sum(pool.in_flight().values()) for pool in pools())).encode()]

def boom(environ, start_response):
    raise RuntimeError("the secret reason")

def exits(environ, start_response):
    raise SystemExit(3)

def late_boom(environ, start_response):
    start_response("200 OK", [])
    yield b"begun"
    raise RuntimeError("the secret reason")

def odd(environ, start_response):
    start_response("200 \\u20ac", [("X-Odd", "\\u20ac")])
    return [b"odd"]

def writes(environ, start_response):
    write = start_response("200 OK", [])
    write(b"written ")
    return [b"and returned"]

def reads_some(app):
    def reading(environ, start_response):
        environ["wsgi.input"].read(2)
        return app(environ, start_response)
    return reading
"""


class Reply:
    """A response as it came, and whether the connection was closed after it."""

    def __init__(self, response: http.client.HTTPResponse, body: bytes, closed: bool) -> None:
        self.status = response.status
        self.fields = response.getheaders()
        self.body = body
        self.closed = closed
        kind = response.getheader("Content-Type") or ""
        self.by_server = kind.startswith("text/html") and b"<html>" in body
        """Whether gunicorn answered by itself."""

    def __repr__(self) -> str:
        return f"<{self.status} {self.body[:200]!r}>"

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]


class Gate:
    """One gateway and what is behind it."""

    def __init__(self, served: Any, backend: Backend) -> None:
        self.served = served
        self.port: int = served.port
        self.backend = backend
        self._read = 0
        self._log: list[dict[str, Any]] = []
        self.token = mint(SECRET, "HS256", "7")
        self.admin = mint(SECRET, "HS256", "1", scope="admin")

    @staticmethod
    def mint(subject: str) -> str:
        """Return a good token of *subject*."""
        return mint(SECRET, "HS256", subject)

    @staticmethod
    def raw(
        target: str,
        *fields: str,
        method: str = "GET",
        host: str | None = "a.test",
        body: bytes = b"",
    ) -> bytes:
        """Return the bytes of a request; *fields* are lines."""
        lines = [f"{method} {target} HTTP/1.1", *fields]
        if host is not None:
            lines.insert(1, f"Host: {host}")
        return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(
        self, data: bytes, *, method: str = "GET", end: bool = False, lines: int | None = None
    ) -> Reply:
        """Send *data* and return the response.

        :param end: Whether to close the client's side after sending.
        :param lines: How many lines the access log must get, where that is not as usual.
        """
        before = len(self.log())
        with self.connect() as sock:
            sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            answer = read(sock, method)
            answer.closed = was_closed(sock, answer)
        assert b"Traceback" not in answer.body
        assert b'File "' not in answer.body
        self.settled(before, (0 if answer.by_server else 1) if lines is None else lines)
        return answer

    def settled(self, before: int, lines: int) -> None:
        """Wait for so many more lines in the access log, and until nothing is in flight."""
        until(lambda: len(self.log()) >= before + lines)
        until(lambda: self._probe() == 0)
        found = self.log()[before:]
        assert len(found) == lines, found

    def _probe(self) -> int:
        with self.connect() as sock:
            sock.sendall(self.raw("/probe"))
            return int(read(sock).body)

    def log(self) -> list[dict[str, Any]]:
        """Return the access log, without the requests of this class's own."""
        with self.served.log_file.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                record = json.loads(line) if line[:1] == b"{" else {"route": "/probe"}
                if record["route"] != "/probe":
                    self._log.append(record)
        return self._log

    def refused(self, data: bytes, *statuses: int, end: bool = False) -> Reply:
        """Send what must be refused with one of *statuses* and reach no backend."""
        before = len(self.backend.requests)
        answer = self.ask(data, end=end)
        assert answer.status in statuses, (data, answer)
        seen = [request.line for request in self.backend.requests[before:]]
        assert seen == [], data
        return answer

    def passed(
        self,
        data: bytes,
        status: int = 200,
        *,
        method: str = "GET",
        answer: ScriptedAnswer | None = None,
    ) -> tuple[Received, Reply]:
        """Send what must reach the backend, once; return what arrived and what came back."""
        self.backend.answers = [answer if answer is not None else reply(b"ok")]
        before = len(self.backend.requests)
        back = self.ask(data, method=method)
        assert back.status == status, (data, back)
        [request] = self.backend.requests[before:]
        return request, back


def read(sock: socket.socket, method: str = "GET") -> Reply:
    """Return the next response of a connection."""
    response = http.client.HTTPResponse(sock, method=method)
    try:
        response.begin()
        body = response.read()
        return Reply(response, body, False)
    finally:
        response.close()


def was_closed(sock: socket.socket, answer: Reply) -> bool:
    if "close" not in ",".join(answer.values("Connection")).lower():
        return False
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


MakeGate = Callable[..., Gate]


@pytest.fixture(scope="module")
def make_gate(
    serve_for_all: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MakeGate]:
    """Return a maker of gateways with more in their files, each with a backend of its own."""
    folder: Path = tmp_path_factory.mktemp("plugins")
    (folder / "attack_plugins.py").write_text(PLUGINS)
    backends: list[Backend] = []

    def make(*, gateway: str = "", middleware: str = "", routes: str = "") -> Gate:
        backends.append(Backend().__enter__())
        text = CONFIG.format(
            url=backends[-1].url,
            secret=SECRET,
            gateway=gateway,
            middleware=middleware,
            routes=routes,
        )
        served = serve_for_all(text, workers=1, env={"PYTHONPATH": str(folder)})
        return Gate(served, backends[-1])

    yield make
    for backend in backends:
        backend.__exit__(None, None, None)


@pytest.fixture(scope="module")
def shared(make_gate: MakeGate) -> Gate:
    return make_gate()


@pytest.fixture
def gate(shared: Gate) -> Iterable[Gate]:
    """Yield the module's gateway, in front of a backend that answers ``ok``."""
    shared.backend.answers = [reply(b"ok")]
    yield shared
    assert "Traceback" not in shared.served.log
