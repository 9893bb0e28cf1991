"""What a GateWorker does with connections and requests, without a master and without its loop."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import Config

from wsgigate.servers.gunicorn_threads import IdleConnections
from wsgigate.servers.gunicorn_worker import GateWorker, _OnceToken

KEPT = 5
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Log:
    """gunicorn's log, which keeps what it is given."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.accesses: list[tuple[Any, ...]] = []

    def _record(self, text: str, *arguments: object) -> None:
        self.lines.append(text % arguments if arguments else text)

    exception = error = warning = info = _record

    def debug(self, text: str, *arguments: object) -> None:
        pass

    def access(self, *what: Any) -> None:
        self.accesses.append(what)


def hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


class Gate:
    """A worker, and clients that are connected to it."""

    def __init__(self, app: Any = hello, **settings: Any) -> None:
        cfg = Config()
        for name, value in {"threads": 4, "keepalive": KEPT, **settings}.items():
            cfg.set(name, value)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.log = Log()
        self.worker = GateWorker(1, 1, [self.listener], None, 30, cfg, self.log)
        self.worker.prepare()
        self.worker.wsgi = app
        self.worker.tpool.start = lambda: None  # the test is the only thread
        self.clients: list[socket.socket] = []

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.listener.getsockname(), timeout=20)
        self.clients.append(client)
        self.worker.opened(*self.listener.accept(), self.listener)
        return client

    def step(self) -> None:
        self.worker._serve_next()

    def loop(self) -> None:
        """Have the loop do what was deferred to it."""
        self.worker._run_deferred(None)

    def ask(self, data: bytes = GET, client: socket.socket | None = None) -> bytes:
        client = client or self.connect()
        client.sendall(data)
        self.step()
        return client.recv(1 << 16)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.worker.end()
        for client in list(self.worker._lingering):
            client.close()
        self.worker.poller.close()
        self.worker.tmp.close()
        self.listener.close()


Make = Callable[..., Gate]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Gate] = []

    def gate(app: Any = hello, **settings: Any) -> Gate:
        made.append(Gate(app, **settings))
        return made[-1]

    yield gate
    for each in made:
        each.close()


@pytest.fixture
def gate(make: Make) -> Gate:
    return make()


def test_a_connection_stays_open_for_the_next_request(gate: Gate) -> None:
    before = time.monotonic()
    client = gate.connect()
    for _ in range(3):
        answer = gate.ask(client=client)
        assert answer.endswith(b"\r\n\r\nok")
        assert b"Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n" in answer
    [connection] = gate.worker.idle
    assert before + KEPT < connection.timeout
    assert gate.worker.connections() == 1


def test_a_pipelined_request_has_the_time_of_a_response(gate: Gate) -> None:
    before = time.monotonic()
    gate.ask(GET + GET)
    [connection] = gate.worker.idle
    assert connection.timeout >= before + gate.worker.idle_timeout > before + KEPT
    gate.step()
    assert gate.clients[0].recv(1 << 16).endswith(b"ok")


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_a_connection_that_does_not_stay_open_lingers(request_head: bytes, gate: Gate) -> None:
    assert b"Connection: close\r\n" in gate.ask(request_head)
    assert gate.worker.connections() == 1
    gate.loop()
    assert (len(gate.worker._open), gate.worker.connections()) == (0, 1)
    gate.clients[0].close()
    gate.worker._dispatch(10)
    assert gate.worker.connections() == 0


def test_a_stopping_worker_closes_after_the_next_request(gate: Gate) -> None:
    client = gate.connect()
    gate.ask(client=client)
    gate.worker.alive = False
    gate.worker._cap_idle()
    [connection] = gate.worker.idle
    assert connection.timeout <= time.monotonic() + 2.0
    assert b"Connection: close\r\n" in gate.ask(client=client)


def test_a_connection_that_becomes_idle_while_the_worker_begins_to_stop_has_a_moment(
    gate: Gate,
) -> None:
    """The loop has capped the idle connections just before this one is among them."""

    class Stopping(IdleConnections):
        def add(self, connection: Any, *, writable: bool = False) -> None:
            gate.worker.alive = False
            gate.worker._cap_idle()
            super().add(connection, writable=writable)

    client = gate.connect()
    waiting = gate.worker.idle
    gate.worker.idle = Stopping()
    gate.worker.idle.take = waiting.take  # type: ignore[method-assign]
    gate.ask(client=client)
    gate.loop()
    [connection] = gate.worker.idle
    assert connection.timeout <= time.monotonic() + 2.0


def fails(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise SystemExit("whatever an app raises")


def begins(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    fields = [("Content-Length", "10")] if environ["PATH_INFO"] == "/length" else []
    start_response("200 OK", fields)
    yield b"begun"
    if environ["PATH_INFO"] != "/length":
        raise KeyError("secret")


def test_an_app_that_fails_is_logged_and_answered(make: Make) -> None:
    gate = make(fails)
    assert gate.ask().startswith(b"HTTP/1.1 500 ")
    assert gate.log.lines == ["Error handling request GET /"]
    assert not gate.worker._at_work


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("path", [b"/", b"/length"])
def test_a_response_that_fails_looks_cut(path: bytes, version: bytes, make: Make) -> None:
    gate = make(begins)
    request = GET.replace(b"/ ", path + b" ").replace(b"1.1", version)
    answer = gate.ask(request)
    assert b"secret" not in answer
    assert not answer.endswith(b"0\r\n\r\n")
    gate.loop()
    if (path, version) == (b"/", b"1.0"):
        with pytest.raises(ConnectionResetError):
            gate.clients[0].recv(100)
    else:
        assert gate.clients[0].recv(100) == b""
    assert gate.log.lines == [f"Error handling request GET {path.decode()}"]


@pytest.mark.parametrize(
    ("data", "status"),
    [(b"GET  / HTTP/1.1\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nExpect: x\r\nHost: a\r\n\r\n", 417)],
)
def test_a_malformed_request_is_answered_and_the_connection_closed(
    data: bytes, status: int, gate: Gate
) -> None:
    answer = gate.ask(data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"Connection: close\r\n" in answer
    gate.loop()
    assert gate.clients[0].recv(1) == b""
    assert gate.log.lines[0].startswith("Invalid request from ip=127.0.0.1: ")


@pytest.mark.parametrize("sent", [b"", b"GET / HT"])
def test_a_client_that_leaves_is_forgotten(sent: bytes, gate: Gate) -> None:
    client = gate.connect()
    client.sendall(sent)
    client.close()
    while gate.worker.connections():
        gate.step()
    assert gate.log.lines == []


def test_a_client_that_is_too_slow_is_dropped(gate: Gate) -> None:
    gate.connect()
    [connection] = gate.worker.idle
    gate.worker.expire(connection.timeout - 1)
    assert gate.worker.connections() == 1
    gate.worker.expire(connection.timeout + 1)
    assert gate.worker.connections() == 0
    assert gate.clients[0].recv(1) == b""


def large(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    size = int(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Length", str(size))])
    return [bytes(size)]


def test_a_response_that_is_not_read_takes_no_thread(make: Make) -> None:
    gate = make(large)
    client = gate.connect()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    [connection] = gate.worker.idle
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    client.sendall(GET.replace(b"/ ", b"/?200000 "))
    gate.step()
    assert connection.owes
    assert not gate.worker._at_work
    with client.makefile("rb", buffering=0) as file:
        received = b""
        while not received.endswith(b"\r\n\r\n") and b"\r\n\r\n" not in received:
            received += file.read(1000)
        size = len(received) - received.index(b"\r\n\r\n") - 4
        while size < 200_000:
            if connection.owes:
                gate.step()
            size += len(file.read(1 << 16))
    assert size == 200_000
    while connection.keeps is not None:
        gate.step()
    assert gate.ask(GET.replace(b"/ ", b"/?2 "), client).endswith(bytes(2))


def test_one_that_is_never_read_is_reset(make: Make) -> None:
    gate = make(large)
    client = gate.connect()
    [connection] = gate.worker.idle
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    client.sendall(GET.replace(b"/ ", b"/?250000 "))
    gate.step()
    while gate.worker.idle.any_ready():
        gate.step()
    gate.worker.expire(connection.timeout + 1)
    assert gate.worker.connections() == 0
    with pytest.raises(ConnectionResetError):
        list(iter(lambda: client.recv(1 << 16), b""))


@pytest.mark.parametrize(("length", "version"), [(True, b"1.1"), (False, b"1.1"), (True, b"1.0")])
def test_a_file_is_sent(length: bool, version: bytes, make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789" * 1000)
    opened = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        file = (tmp_path / "file").open("rb")
        opened.append(file)
        file.seek(5)
        start_response("200 OK", [("Content-Length", "8000")] if length else [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    gate = make(app)
    answer = gate.ask(GET.replace(b"1.1", version))
    size = 8000 if length else 9995
    head, _, body = answer.partition(b"\r\n\r\n")
    while len(body) < size:
        body += gate.clients[0].recv(1 << 16)
    assert b"Content-Length: %d" % size in head
    assert body == (b"0123456789" * 1000)[5 : 5 + size]
    assert opened[0].closed


def test_hooks_and_the_access_log_see_each_request(make: Make) -> None:
    seen: list[Any] = []

    def pre(worker: Any, request: Any) -> None:
        seen.append((request.method, request.path, request.query, dict(request.headers)["HOST"]))

    def post(worker: Any, request: Any, environ: Any, response: Any) -> None:
        seen.append((request.uri, environ["RAW_URI"], response.status, response.sent))

    gate = make(pre_request=pre, post_request=post, accesslog="-")
    gate.ask(GET.replace(b"/ ", b"/a?b "))
    assert seen == [("GET", "/a", "b", "a"), ("/a?b", "/a?b", "200 OK", 2)]
    [(response, request, environ, took)] = gate.log.accesses
    assert (response.status, request.method, environ["PATH_INFO"]) == ("200 OK", "GET", "/a")
    assert took.total_seconds() >= 0


def test_a_worker_that_has_served_enough_stops(make: Make) -> None:
    gate = make(max_requests=2)
    client = gate.connect()
    assert b"keep-alive" in gate.ask(client=client)
    assert gate.worker.alive
    assert b"Connection: close" in gate.ask(client=client)
    assert not gate.worker.alive


@pytest.mark.parametrize(("keepalive", "connections"), [(0, 1000), (5, 4)])
def test_connections_are_closed_where_none_can_be_kept(
    keepalive: int, connections: int, make: Make
) -> None:
    gate = make(keepalive=keepalive, worker_connections=connections)
    assert b"Connection: close" in gate.ask()


def test_at_its_limit_the_worker_closes_the_one_that_is_silent_for_longest(make: Make) -> None:
    gate = make(worker_connections=10)
    first, second = gate.connect(), gate.connect()
    gate.worker.make_room()
    assert first.recv(1) == b""
    assert gate.worker.connections() == 1
    assert gate.ask(client=second).endswith(b"ok")


def test_the_scheme_is_that_of_a_trusted_proxy_only(make: Make) -> None:
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["wsgi.url_scheme"])
        return hello(environ, start_response)

    request = GET.replace(b"Host", b"X-Forwarded-Proto: https\r\nHost")
    make(app).ask(request)
    make(app, forwarded_allow_ips="").ask(request)
    assert seen == ["https", "http"]


def test_exactly_one_worker_takes_the_token() -> None:
    token, another = _OnceToken(), _OnceToken()
    assert [token.take(), token.take(), another.take()] == [True, False, True]


class Waits:
    """A connection that a thread waits for."""

    def __init__(self) -> None:
        self.ended = False
        self.read = 0

    def cut(self) -> None:
        self.ended = True

    def progress(self) -> int:
        return self.read


def under_pressure(
    gate: Gate, waited: list[float], *, busy: int = 4, ready: bool = True
) -> list[Waits]:
    """Have threads wait for connections, each for so many seconds at the time 100."""
    gate.worker._at_work = set(range(busy))
    gate.worker.idle.any_ready = lambda: ready  # type: ignore[method-assign]
    connections: list[Any] = [Waits() for _ in waited]
    gate.worker._waits = {
        each: 100.0 - seconds for each, seconds in zip(connections, waited, strict=True)
    }
    return connections


def cut_of(gate: Gate, waited: list[float], **options: Any) -> list[bool]:
    """Return which of the connections end."""
    connections = under_pressure(gate, waited, **options)
    gate.worker._free_threads(100.0)
    return [each.ended for each in connections]


def test_slow_clients_end_only_where_requests_wait_for_their_threads(gate: Gate) -> None:
    longer = [4.0, 3.0, 2.0, 1.0]
    assert cut_of(gate, longer, busy=3) == [False] * 4
    assert cut_of(gate, longer, ready=False) == [False] * 4
    assert cut_of(gate, [4.0]) == [False]
    assert cut_of(gate, [0.1, 0.2, 0.29, 0.0]) == [False] * 4
    assert gate.log.lines == []
    assert cut_of(gate, longer) == [True, True, True, False]
    assert len(gate.log.lines) == 1


def test_slow_clients_that_come_in_their_place_have_less_time(gate: Gate) -> None:
    assert cut_of(gate, [0.2, 0.2]) == [False, False]
    assert cut_of(gate, [1.0, 0.2]) == [True, False]
    assert cut_of(gate, [0.2, 0.1]) == [True, False]
    gate.worker._cut_at -= 10
    assert cut_of(gate, []) == []
    assert cut_of(gate, [0.2, 0.2]) == [False, False]


def test_a_client_that_reads_slowly_is_not_silent(gate: Gate) -> None:
    reads, silent = under_pressure(gate, [0.1, 0.1])
    for step in range(20):
        reads.read += 1
        gate.worker._free_threads(100.0 + step / 10)
    assert (reads.ended, silent.ended) == (False, True)
