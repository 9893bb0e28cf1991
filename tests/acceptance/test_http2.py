"""HTTP/2 to clients, as ``wsgigate run`` serves it under gunicorn and under granian."""

from __future__ import annotations

import hashlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.http2_client import Client
from tests.support.certificates import make_certificate
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, cut, reply

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
http2 = true
threads = 4
idle_timeout = "2s"
keep_alive = "2s"
tls = {{ cert = "{certificate}" }}
[gateway.identity]
X-User-Id = "sub"
[store]
url = "memory:"
[[middleware]]
use = "logger"
format = "json"
[services.svc]
instances = ["{url}"]
[[routes]]
path = "/svc"
service = "svc"
strip_prefix = true
websocket = true
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


class Gate:
    """A gateway that speaks HTTP/2, and the backend behind it."""

    def __init__(self, served: Any, certificate: Path, backend: Backend) -> None:
        self.served = served
        self.certificate = certificate
        self.backend = backend
        self.url = served.url.replace("http:", "https:")

    @property
    def log(self) -> str:
        return str(self.served.log)

    def client(self) -> Client:
        return Client(self.served.port, self.certificate)

    def http(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            http1=False, http2=True, verify=context, base_url=self.url, trust_env=False, timeout=20
        )


@pytest.fixture(scope="module")
def gates(serve_for_all: Serve, certificate: Path) -> Iterator[Callable[[str], Gate]]:
    """Return what gives the gateway under gunicorn, or under granian: one of each for all."""
    made: dict[str, Gate] = {}
    with ExitStack() as stack:

        def gate(name: str) -> Gate:
            if name not in made:
                backend = stack.enter_context(Backend())
                text = GATEWAY.format(url=backend.url, certificate=certificate)
                if name == "granian":  # which is refused, as one connection can hold its threads
                    text = text.replace("[gateway]", '[gateway]\nself_check = "warn"', 1)
                made[name] = Gate(serve_for_all(text, workers=1, server=name), certificate, backend)
            made[name].backend.answers = [reply(b"ok")]
            made[name].backend.requests.clear()
            return made[name]

        yield gate


@pytest.fixture(params=["gunicorn", "granian"])
def gate(request: pytest.FixtureRequest, gates: Callable[[str], Gate]) -> Iterator[Gate]:
    made = gates(request.param)
    yield made
    if request.param == "gunicorn":  # granian tells of each response that was cut
        assert "Traceback" not in made.log


@pytest.fixture
def under_gunicorn(gates: Callable[[str], Gate]) -> Iterator[Gate]:
    made = gates("gunicorn")
    yield made
    assert "Traceback" not in made.log


@pytest.fixture
def under_granian(gates: Callable[[str], Gate]) -> Gate:
    return gates("granian")


def test_a_request_is_forwarded_with_forwarding_fields(gate: Gate) -> None:
    gate.backend.answers = [reply(b"made", status="201 Created", fields=[("X-Made", "1")])]
    with gate.http() as http:
        answer = http.post("/svc/a%20b?x=%20&y", content=b"body", headers={"Version": "7"})
        assert (answer.http_version, answer.status_code) == ("HTTP/2", 201)
        assert (answer.content, answer.headers["X-Made"]) == (b"made", "1")
        (request,) = gate.backend.requests
        assert request.line == "POST /a%20b?x=%20&y HTTP/1.1"
        assert (request.body, request.values("Content-Length")) == (b"body", ["4"])
        assert request.values("Via") == [v for v in request.values("Via") if v[:4] == "2.0 "] != []
        assert request.value("X-Forwarded-Proto") == "https"
        assert request.value("X-Forwarded-Host") == f"127.0.0.1:{gate.served.port}"
        assert request.values("Version") == ["7"]
        assert request.values("Transfer-Encoding") == []
        for _ in range(3):
            assert http.get("/svc/again").status_code == 201
        assert http.get("/nowhere").json()["message"] == "Route not found!"


def test_a_client_may_speak_http_1_1_as_well(gate: Gate) -> None:
    context = ssl.create_default_context(cafile=str(gate.certificate))
    with httpx.Client(verify=context, trust_env=False) as http:
        answer = http.get(f"{gate.url}/svc")
    assert (answer.http_version, answer.content) == ("HTTP/1.1", b"ok")
    assert (gate.backend.requests[0].value("Via") or "").startswith("1.1 ")


def test_a_response_comes_as_it_is_made(gate: Gate) -> None:
    taken = threading.Event()

    def events(connection: socket.socket, _request: Received) -> bool:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        assert taken.wait(10)
        connection.sendall(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")
        return True

    gate.backend.answers = [events]
    with gate.http() as http, http.stream("GET", "/svc") as response:
        blocks = response.iter_raw()
        assert next(blocks) == b"data: 1\n\n"
        taken.set()
        assert b"".join(blocks) == b"data: 2\n\n"


def test_requests_of_one_connection_each_get_their_own_answer(gate: Gate) -> None:
    gate.backend.answers = [lambda sock, got: sock.sendall(reply(got.target.encode() + got.body))]
    with gate.client() as client:
        streams = {}
        for number in range(20):
            stream = client.ask(
                f"/svc/{number}", method="POST", fields=[("content-length", "3")], end=False
            )
            streams[stream] = b"/%d%03d" % (number, number)
        for number, stream in enumerate(streams):  # all their bodies come after all their heads
            client.send(stream, b"%03d" % number, end=True)
        for stream, expected in streams.items():
            answer = client.answer(stream)
            assert (answer.status, answer.body, answer.ended) == (200, expected, True)


def test_connections_are_served_beside_each_other(gate: Gate) -> None:
    """Four threads, four answers that wait until all four requests are there."""
    together = threading.Barrier(4)

    def answer(connection: socket.socket, request: Received) -> None:
        together.wait(10)
        connection.sendall(reply(request.target.encode()))

    gate.backend.answers = [answer]

    def ask(number: int) -> bool:
        with gate.http() as http:
            return http.get(f"/svc/{number}").text == f"/{number}"

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(ask, range(4)))


def test_the_requests_of_one_connection_are_served_beside_each_other(gate: Gate) -> None:
    """Of four threads a connection has three."""
    together = threading.Barrier(3)

    def answer(connection: socket.socket, request: Received) -> None:
        together.wait(10)
        connection.sendall(reply(request.target.encode()))

    gate.backend.answers = [answer]
    with gate.client() as client:
        streams = [client.ask(f"/svc/{number}") for number in range(3)]
        assert [client.answer(stream).body for stream in streams] == [b"/0", b"/1", b"/2"]


def test_a_connection_of_many_requests_leaves_a_thread_to_the_others(under_gunicorn: Gate) -> None:
    over = threading.Event()

    def answer(connection: socket.socket, request: Received) -> None:
        if request.target == "/held":
            assert over.wait(10)
        connection.sendall(reply(request.target.encode()))

    under_gunicorn.backend.answers = [answer]
    with under_gunicorn.client() as client, under_gunicorn.client() as other:
        streams = [client.ask("/svc/held") for _ in range(8)]
        assert other.answer(other.ask("/svc/other")).body == b"/other"
        over.set()
        assert {client.answer(stream).body for stream in streams} == {b"/held"}


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("how", ["cancels", "leaves"])
def test_a_request_that_its_client_cancels_ends_at_once(
    how: str, begun: bool, under_gunicorn: Gate
) -> None:
    """And its thread and its instance are free; what else the client asks for is answered."""
    gate = under_gunicorn
    ended = threading.Semaphore(0)

    def held(connection: socket.socket, _request: Received) -> bool:
        if begun:
            head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n")
        if not connection.recv(1):  # until the gateway hangs up
            ended.release()
        return False

    gate.backend.answers = [held] * 8 + [reply(b"ok")]  # type: ignore[assignment]
    before = gate.log.count('"status":499')
    with ExitStack() as stack:
        client = stack.enter_context(gate.client())
        for number in range(1, 9):  # two for each thread
            stream = client.ask("/svc/events")
            gate.backend.wait_for_requests(number)
            while begun and not client.answers[stream].body:
                assert client.receive()
            if how == "cancels":
                client.state.reset_stream(stream)
                client.flush()
            else:
                client.socket.close()
                client = stack.enter_context(gate.client())
            assert ended.acquire(timeout=5)
        assert client.answer(client.ask("/svc/next")).body == b"ok"
    if not begun:
        until(lambda: gate.log.count('"status":499') == before + 8)


def test_bodies_that_never_come_hold_no_more_than_half_of_the_threads(
    under_gunicorn: Gate,
) -> None:
    gate = under_gunicorn
    with gate.client() as client, gate.client() as other:
        for _ in range(20):
            client.ask("/svc/upload", method="POST", end=False)
        assert other.answer(other.ask("/svc/other")).body == b"ok"
        assert client.answer(client.ask("/svc/own")).body == b"ok"
    assert not any(request.complete for request in gate.backend.requests if request.method != "GET")


def test_a_body_is_whole_only_when_its_stream_has_ended(under_gunicorn: Gate) -> None:
    """A length that is reached is no end: what follows may make the request malformed."""
    for length, body in (("0", b"evil"), ("3", b"123"), ("3", b"123evil")):
        with under_gunicorn.client() as client:
            stream = client.ask(method="POST", fields=[("content-length", length)], end=False)
            for at in range(0, len(body), 3):
                client.send(stream, body[at : at + 3])
            answer = client.answer(stream)
            assert not answer.ended
            assert not answer.status
    with under_gunicorn.client() as client:
        for length, body in (("0", b""), ("3", b"123")):
            stream = client.ask(method="POST", fields=[("content-length", length)], end=False)
            client.send(stream, body, end=True)
            assert client.answer(stream).status == 200
    assert [request.body for request in under_gunicorn.backend.requests if request.complete] == [
        b"",
        b"123",
    ]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ],
)
def test_a_response_without_a_body_ends_with_its_head(
    method: str, answer: bytes, under_gunicorn: Gate
) -> None:
    under_gunicorn.backend.answers = [answer]
    with under_gunicorn.client() as client:
        got = client.answer(client.ask(method=method))
    assert (got.ended, got.frames) == (True, 0)


@pytest.mark.parametrize("kind", ["pings", "resets", "empty data"])
def test_a_flood_of_frames_ends_the_connection(kind: str, under_gunicorn: Gate) -> None:
    with under_gunicorn.client() as client:
        stream = client.ask(method="POST", end=False) if kind == "empty data" else 0
        for _ in range(250 if kind == "resets" else 1100):
            if client.closed:
                break
            if kind == "pings":
                client.state.ping(b"12345678")
            elif kind == "resets":
                client.state.reset_stream(client.ask(method="POST", end=False))
            else:
                client.state.send_data(stream, b"")
            client.flush()
        while client.receive():
            pass
        assert client.error == 0xB  # ENHANCE_YOUR_CALM
    with under_gunicorn.client() as client:
        assert client.answer(client.ask("/svc/next")).body == b"ok"


def test_a_large_upload_and_its_echo_pass(gate: Gate) -> None:
    body = hashlib.sha256(b"seed").digest() * (1 << 18)  # 8 MiB

    def answer(connection: socket.socket, request: Received) -> None:
        connection.sendall(reply(request.body))

    gate.backend.answers = [answer]
    with gate.http() as http:
        answered = http.post("/svc", content=body)
        assert answered.status_code == 200
        assert answered.content == body
    assert gate.backend.requests[0].complete


def test_a_body_without_a_length_arrives_whole(under_gunicorn: Gate) -> None:
    with under_gunicorn.http() as http:
        assert http.put("/svc", content=iter([b"abc", b"def"])).status_code == 200
    (request,) = under_gunicorn.backend.requests
    assert (request.body, request.complete) == (b"abcdef", True)
    assert request.values("Transfer-Encoding") == ["chunked"]
    assert request.values("Content-Length") == []


def test_a_body_that_its_client_breaks_off_never_arrives_whole(under_gunicorn: Gate) -> None:
    with under_gunicorn.client() as client:
        stream = client.ask(method="POST", end=False)
        client.send(stream, bytes(200_000))
        under_gunicorn.backend.wait_for_requests(1)
        client.state.reset_stream(stream)
        client.flush()
        assert client.answer(client.ask("/svc/next")).status == 200  # the connection goes on
    broken, following = under_gunicorn.backend.requests
    assert not broken.complete
    assert following.target == "/next"


def test_a_response_that_is_cut_is_cut_for_the_client_too(gate: Gate) -> None:
    gate.backend.answers = [
        cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + b"x" * 200_000)
    ]
    with gate.client() as client:
        answer = client.answer(client.ask())
        assert not answer.ended
        assert answer.status == 200


def test_bytes_of_fields_arrive_as_they_were_sent(under_gunicorn: Gate) -> None:
    name = "J\xc3\xb6rg"  # the UTF-8 of a name, byte by byte
    under_gunicorn.backend.answers = [reply(fields=[("X-Name", name)])]
    with under_gunicorn.client() as client:
        answer = client.answer(client.ask(fields=[("x-name", name), ("x-old", "J\xf6rg")]))
    (request,) = under_gunicorn.backend.requests
    assert request.values("X-Name") == [name]
    assert request.values("X-Old") == ["J\xf6rg"]
    assert answer.fields["x-name"] == name


def test_cookies_in_several_fields_are_one(gate: Gate) -> None:
    """RFC 9113 section 8.2.3."""
    with gate.client() as client:
        assert (
            client.answer(client.ask(fields=[("cookie", "a=1"), ("cookie", "b=2")])).status == 200
        )
    assert [value.replace("; ", ";") for value in gate.backend.requests[0].values("Cookie")] == [
        "a=1;b=2"
    ]


def test_fields_that_a_client_must_not_set_are_removed(gate: Gate) -> None:
    forged = [("x-user-id", "admin"), ("x-forwarded-for", "1.2.3.4"), ("te", "trailers")]
    with gate.client() as client:
        assert client.answer(client.ask(fields=forged)).status == 200
    (request,) = gate.backend.requests
    assert request.values("X-User-Id") == request.values("TE") == []
    assert request.value("X-Forwarded-For") == "127.0.0.1"


def head(**changed: str | None) -> list[tuple[str, str]]:
    usual = {"method": "GET", "scheme": "https", "authority": "a.test", "path": "/svc"}
    return [
        (f":{name}", value) for name, value in {**usual, **changed}.items() if value is not None
    ]


POST = head(method="POST")
EVIL = {
    "a body longer than its length": ([*POST, ("content-length", "3")], b"123evil"),
    "a body shorter than its length": ([*POST, ("content-length", "9")], b"evil"),
    "two lengths": ([*POST, ("content-length", "4"), ("content-length", "0")], b"evil"),
    "a list of lengths": ([*POST, ("content-length", "4, 4")], b"evil"),
    "a signed length": ([*POST, ("content-length", "+4")], b"evil"),
    "a length of none": ([*POST, ("content-length", "")], b"evil"),
    "chunked": ([*POST, ("transfer-encoding", "chunked")], b"4\r\nevil\r\n0\r\n\r\n"),
    "chunked and a length": (
        [*POST, ("content-length", "19"), ("transfer-encoding", "chunked")],
        b"0\r\n\r\nGET /evil HTTP/1.1",
    ),
    "chunked with an underscore": ([*POST, ("transfer_encoding", "chunked")], b"evil"),
    "Connection": ([*head(), ("connection", "x-evil")], None),
    "Keep-Alive": ([*head(), ("keep-alive", "evil")], None),
    "Proxy-Connection": ([*head(), ("proxy-connection", "evil")], None),
    "Upgrade": ([*head(), ("upgrade", "evil")], None),
    "Upgrade to a WebSocket": (
        [
            *head(),
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "evil"),
        ],
        None,
    ),
    "TE": ([*head(), ("te", "evil")], None),
    "a line end in a value": ([*head(), ("x", "a\r\nx-evil: 1")], None),
    "a line feed in a value": ([*head(), ("x", "a\nx-evil: 1")], None),
    "a carriage return in a value": ([*head(), ("x", "a\rx-evil: 1")], None),
    "a NUL in a value": ([*head(), ("x", "a\0evil")], None),
    "a whole request in a value": ([*head(), ("x", "a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n")], None),
    "a line end in a name": ([*head(), ("x: a\r\nx-evil", "1")], None),
    "a colon in a name": ([*head(), ("x-evil:", "1")], None),
    "a space in a name": ([*head(), ("x-evil ", "1")], None),
    "a name of nothing": ([*head(), ("", "evil")], None),
    "a name in capitals": ([*head(), ("X-Evil", "1")], None),
    "a path twice": ([*head(), (":path", "/svc/evil")], None),
    "a pseudo-field after a field": ([*head(path=None), ("x", "a"), (":path", "/svc/evil")], None),
    "an unknown pseudo-field": ([*head(), (":evil", "1")], None),
    "a pseudo-field of responses": ([*head(), (":status", "200")], None),
    "no method": ([*head(method=None), ("x", "evil")], None),
    "no path": ([*head(path=None), ("x", "evil")], None),
    "a path of nothing": ([*head(path=""), ("x", "evil")], None),
    "no scheme": ([*head(scheme=None), ("x", "evil")], None),
    "a path with a line end": (head(path="/svc HTTP/1.1\r\nX-Evil: 1\r\nX: "), None),
    "a path with a space": (head(path="/svc evil"), None),
    "a path with a tab": (head(path="/svc\tevil"), None),
    "a path with a NUL": (head(path="/svc\0evil"), None),
    "a path that is an address": (head(path="http://evil.test/svc/evil"), None),
    "a path that is a host": (head(path="//evil.test/evil"), None),
    "a path without a slash": (head(path="svc/evil"), None),
    "a path with dots": (head(path="/svc/../evil"), None),
    "a path with a fragment": (head(path="/svc#evil"), None),
    "a method with a line end": (head(method="GET /evil HTTP/1.1\r\nX: "), None),
    "a method with a space": (head(method="GET /evil"), None),
    "CONNECT": ([(":method", "CONNECT"), (":authority", "evil.test:443")], None),
    "TRACE": ([*head(method="TRACE"), ("x", "evil")], None),
    "a host with a line end": (head(authority="a.test\r\nX-Evil: 1"), None),
    "a host with a user": (head(authority="a.test@evil.test"), None),
    "a host with a path": (head(authority="a.test/evil"), None),
    "a host and another": ([*head(), ("host", "evil.test")], None),
    "two other hosts": (
        [*head(authority=None), ("host", "a.test"), ("host", "evil.test")],
        None,
    ),
    "no host": ([*head(authority=None), ("x", "evil")], None),
}
GRANIANS_OWN = {
    "a path with a fragment": "/",  # dropped before anybody sees it
    "a host and another": "/",  # it takes the other one, for the routes as for the instance
}


@pytest.mark.parametrize("what", EVIL)
def test_nothing_is_smuggled(what: str, gate: Gate, request: pytest.FixtureRequest) -> None:
    fields, body = EVIL[what]
    with gate.client() as client:
        stream = client.say(fields, end=body is None)
        if body is not None:
            client.send(stream, body, end=True)
        answer = client.answer(stream)
    with gate.client() as client:
        assert client.answer(client.ask("/svc/fine")).body == b"ok"
    *others, fine = gate.backend.requests
    assert fine.target == "/fine"
    if others and "granian" in request.node.callspec.id and what in GRANIANS_OWN:
        assert [other.target for other in others] == [GRANIANS_OWN[what]]
        return
    assert not 200 <= answer.status <= 299
    assert not any(other.complete for other in others)


@pytest.mark.parametrize(
    ("what", "status"), [("a long target", 414), ("a long field", 431), ("many fields", 431)]
)
def test_a_head_that_is_too_much_is_refused_as_anything_else_is(
    what: str, status: int, under_gunicorn: Gate
) -> None:
    fields = {
        "a long target": head(path="/svc/" + "a" * 9000),
        "a long field": [*head(), ("x", "a" * 9000)],
        "many fields": [*head(), *[("x", "a")] * 200],
    }[what]
    before = under_gunicorn.log.count(f'"status":{status},')
    with under_gunicorn.client() as client:
        answer = client.answer(client.say(fields))
        assert (answer.status, answer.ended) == (status, True)
        assert answer.fields["content-type"] == "application/problem+json"
        assert client.answer(client.ask("/svc/next")).body == b"ok"
    until(lambda: under_gunicorn.log.count(f'"status":{status},') == before + 1)


def _says_nothing(client: Client) -> None:
    pass


def _half_a_head(client: Client) -> None:
    client.socket.sendall(b"\0\0\x04\x01\0\0\0\0\x01\x82\x87")  # half of a HEADERS frame


def _half_a_body(client: Client) -> None:
    client.send(client.ask(method="POST", fields=[("content-length", "9")], end=False), b"half")


def _takes_nothing(client: Client) -> None:
    client.taking = False
    client.ask("/svc/large")


SLOW = {
    "says nothing": _says_nothing,
    "half a head": _half_a_head,
    "half a body": _half_a_body,
    "takes nothing": _takes_nothing,
}


@pytest.mark.parametrize("kind", [*SLOW, "a body in drops", "takes in drops", "pings"])
def test_slow_clients_do_not_hold_the_threads(kind: str, under_gunicorn: Gate) -> None:
    """Six of a kind, four threads: somebody else is served all the same."""
    large = reply(bytes(1 << 21))
    under_gunicorn.backend.answers = [
        lambda sock, got: sock.sendall(large if got.target == "/large" else reply(b"ok"))
    ]
    over = threading.Event()

    def drip(client: Client) -> None:
        stream = 1
        while not over.wait(0.2) and not client.closed:
            if kind == "pings":
                client.state.ping(b"12345678")
            elif kind == "takes in drops":
                client.take(1, stream)
            else:
                client.socket.sendall(b"\0\0\x01\0\0\0\0\0\x01.")  # one byte of DATA
            client.flush()

    with ExitStack() as stack, ThreadPoolExecutor(6) as threads:
        stack.callback(over.set)
        for _ in range(6):
            client = stack.enter_context(under_gunicorn.client())
            if kind in SLOW:
                SLOW[kind](client)
                continue
            if kind == "takes in drops":
                _takes_nothing(client)
            elif kind == "a body in drops":
                client.ask(method="POST", fields=[("content-length", "100000")], end=False)
            threads.submit(drip, client)
        other = stack.enter_context(under_gunicorn.client())
        assert other.answer(other.ask("/svc/other")).body == b"ok"
        over.set()
    assert not any(
        request.complete for request in under_gunicorn.backend.requests if request.method == "POST"
    )


def test_a_connection_is_closed_when_nothing_is_asked(under_gunicorn: Gate) -> None:
    with under_gunicorn.client() as client:
        assert client.answer(client.ask()).status == 200
        while client.receive():
            client.state.ping(b"12345678")  # which is not asking
            client.flush()
        assert client.closed


def test_a_reload_finishes_what_it_was_asked(serve: Serve, certificate: Path) -> None:
    with Backend() as backend:
        text = GATEWAY.format(url=backend.url, certificate=certificate)
        gate = Gate(serve(text, workers=1), certificate, backend)
        asked = threading.Event()

        def answer(connection: socket.socket, request: Received) -> None:
            asked.set()
            until(lambda: "Handling signal: hup" in gate.log)
            until(lambda: gate.log.count("Booting worker") == 2)
            connection.sendall(reply(b"finished"))

        backend.answers = [answer]
        with gate.client() as client:
            stream = client.ask()
            assert asked.wait(20)
            gate.served.signal(signal.SIGHUP)
            assert client.answer(stream).body == b"finished"
            while client.receive():  # then it is told to go elsewhere
                pass
        backend.answers = [reply(b"new")]
        with gate.client() as client:
            assert client.answer(client.ask()).body == b"new"
        assert "Traceback" not in gate.log
