"""What a GateWorker does with connections and requests, without a master and without its loop."""

from __future__ import annotations

import errno
import io
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.gate import GET, KEPT, Gate, Make, hello
from tests.support.objects import part
from wsgigate.servers.gunicorn_boot import OnceToken
from wsgigate.servers.gunicorn_threads import IdleConnections
from wsgigate.servers.gunicorn_worker import ConnectionCounts, GateWorker
from wsgigate.servers.http1_request import PREFACE


def test_exactly_one_worker_takes_the_token() -> None:
    token, another = OnceToken(), OnceToken()
    assert [token.take(), token.take(), another.take()] == [True, False, True]


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
    assert (gate.clients[0].recv(1), gate.worker.connections()) == (b"", 1)
    gate.clients[0].close()
    gate.worker.dispatch(10)
    assert gate.worker.connections() == 0


def test_a_stopping_worker_closes_after_the_next_request(gate: Gate) -> None:
    client = gate.connect()
    gate.ask(client=client)
    gate.worker.alive = False
    gate.worker.begin_stop(time.monotonic() + 30)
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
            gate.worker.begin_stop(time.monotonic() + 30)
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
    assert not gate.worker.at_work


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
    assert connection.flushing
    assert not gate.worker.at_work
    with client.makefile("rb", buffering=0) as file:
        received = b""
        while not received.endswith(b"\r\n\r\n") and b"\r\n\r\n" not in received:
            received += file.read(1000)
        size = len(received) - received.index(b"\r\n\r\n") - 4
        while size < 200_000:
            if connection.flushing:
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


def test_one_that_is_given_up_while_the_app_ends_it_is_followed_by_no_request(make: Make) -> None:
    class Slow(list[bytes]):
        def close(self) -> None:
            gate.worker.expire(connection.timeout + 1)

    gate = make(lambda environ, start_response: Slow(large(environ, start_response)))
    client = gate.connect()
    [connection] = gate.worker.idle
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    client.sendall(GET.replace(b"/ ", b"/?250000 ") * 2)
    gate.step()
    assert gate.worker.connections() == 0


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


def test_a_stopping_worker_lets_slow_requests_and_responses_finish(make: Make) -> None:
    gate = make(large)
    waiting, slow = gate.connect(), gate.connect()
    slow.sendall(GET[:20])
    gate.step()
    reads = gate.connect()
    connection = list(gate.worker.idle)[-1]
    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    reads.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
    reads.sendall(GET.replace(b"/ ", b"/?250000 "))
    gate.step()
    assert connection.flushing
    gate.worker.begin_stop(time.monotonic() + 2.0)
    gate.worker.expire(time.monotonic() + 3.0)
    assert gate.worker.connections() == 2
    assert waiting.recv(1) == b""


def test_a_connection_ends_once(gate: Gate) -> None:
    gate.connect()
    [connection] = gate.worker.idle
    gate.worker.idle.take_oldest()
    gate.worker.release(connection)
    gate.worker.abort(connection)
    gate.worker.release(connection)
    assert gate.worker.connections() == 1
    assert connection.sock.fileno() >= 0  # it lingers


def test_the_access_log_has_the_status_of_an_app_that_fails(make: Make) -> None:
    gate = make(fails, accesslog="-")
    gate.ask()
    [(response, *_)] = gate.log.accesses
    assert response.status == "500 Internal Server Error"
    assert response.sent > 0
    assert "access log" not in "".join(gate.log.lines)


def test_an_apps_own_lost_connection_is_logged(make: Make) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        raise ConnectionResetError(errno.ECONNRESET, "the database has left")

    gate = make(app)
    assert gate.ask().startswith(b"HTTP/1.1 500 ")
    assert gate.log.lines == ["Error handling request GET /"]


def test_an_app_that_raises_stop_iteration_is_answered(make: Make) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return [next(iter([]))]

    assert make(app).ask().startswith(b"HTTP/1.1 500 ")


def test_errors_of_the_app_go_where_the_log_goes_by_then(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("from the app", file=environ["wsgi.errors"])
        return hello(environ, start_response)

    gate = make(app)
    closed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", closed)
        client = gate.connect()
        gate.ask(client=client)
    assert closed.getvalue() == "from the app\n"
    closed.close()
    gate.ask(client=client)
    assert capsys.readouterr().err == "from the app\n"


def test_a_file_is_sent_from_where_its_reader_is(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        file = (tmp_path / "file").open("rb")
        file.read(3)  # the system's offset is 10 by now
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
        return wrapped

    assert make(app).ask().endswith(b"\r\n\r\n3456789")


PREAMBLE = b"PROXY TCP4 192.0.2.7 192.0.2.1 4100 80\r\n"


def test_the_proxy_protocol_is_that_of_allowed_peers_only(make: Make) -> None:
    allowed = make(proxy_protocol="v1", proxy_allow_ips="127.0.0.1")
    assert allowed.ask(PREAMBLE + GET).endswith(b"ok")
    other = make(proxy_protocol="v1", proxy_allow_ips="192.0.2.1")
    assert other.ask(PREAMBLE + GET).startswith(b"HTTP/1.1 403 ")


def limited(most: int, *trusted: str) -> type[GateWorker]:
    return GateWorker.having(max_connections_per_client=most, trusted_proxies=trusted)


def test_one_client_has_so_many_connections_and_no_more(make: Make) -> None:
    gate = make(kind=limited(2))
    first, second, third, fourth = (gate.connect() for _ in range(4))
    assert (third.recv(1), fourth.recv(1)) == (b"", b"")
    assert gate.worker.connections() == 2
    assert gate.log.lines == ["Connections closed: ip=127.0.0.1 has 2 (max_connections_per_client)"]
    assert gate.ask(client=second).endswith(b"ok")
    first.close()
    gate.step()
    assert gate.ask().endswith(b"ok")
    for client in gate.clients:
        client.close()
    while gate.worker.connections():
        gate.step()
    assert len(part(ConnectionCounts, gate.worker)) == 0
    assert gate.ask().endswith(b"ok")


def test_the_limit_of_connections_does_not_apply_to_trusted_proxies(make: Make) -> None:
    for gate in (make(kind=limited(1, "127.0.0.0/8")), make(proxy_protocol="v1", kind=limited(1))):
        assert [gate.ask(client=gate.connect())[-2:] for _ in range(3)] == [b"ok"] * 3


def test_a_trusted_proxy_that_leaves_gives_its_network_no_further_connection(make: Make) -> None:
    gate = make(kind=limited(1, "2001:db8::1"))

    def opened(host: str) -> socket.socket:
        ours, client = socket.socketpair()
        gate.clients.append(client)
        gate.worker.opened(ours, (host, 4100, 0, 0), gate.listener)
        return client

    proxy = opened("2001:db8::1")
    opened("2001:db8::2")
    proxy.close()
    gate.step()
    assert gate.worker.connections() == 1
    opened("2001:db8::3")  # of the same /64 network
    assert gate.worker.connections() == 1


def test_a_connection_whose_first_bytes_break_http2_ends_alone(make: Make) -> None:
    class Broken(GateWorker):
        def begin_http2(self, conn: Any) -> Any:
            raise ValueError("a bug")

    settings = {"http2_cleartext": "prior-knowledge", "forwarded_allow_ips": "127.0.0.1"}
    gate = make(kind=Broken, http_protocols="h2,h1", **settings)
    client = gate.connect()
    client.sendall(PREFACE)
    gate.step()
    gate.loop()
    assert (client.recv(1), gate.worker.connections()) == (b"", 0)
    assert gate.log.lines == ["HTTP/2 connection error"]
    assert gate.ask().endswith(b"ok")
