"""HTTP/2 to clients, as ``wsgigate run`` serves it under gunicorn and under granian."""

from __future__ import annotations

import hashlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.acceptance.events import TwoEvents
from tests.acceptance.http2.gate import GATEWAY, Gate
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, Received, cut, reply

Serve = Callable[..., Any]


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
    events = TwoEvents()
    gate.backend.answers = [events]
    with gate.http() as http, http.stream("GET", "/svc") as response:
        blocks = response.iter_raw()
        assert next(blocks) == b"data: 1\n\n"
        events.taken.set()
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
        together.wait(30)
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
        together.wait(30)
        connection.sendall(reply(request.target.encode()))

    gate.backend.answers = [answer]
    with gate.client() as client:
        streams = [client.ask(f"/svc/{number}") for number in range(3)]
        assert [client.answer(stream).body for stream in streams] == [b"/0", b"/1", b"/2"]


def test_a_connection_of_many_requests_leaves_a_thread_to_the_others(under_gunicorn: Gate) -> None:
    over = threading.Event()

    def answer(connection: socket.socket, request: Received) -> None:
        if request.target == "/held":
            assert over.wait(30)
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
            assert ended.acquire(timeout=30)
        assert client.answer(client.ask("/svc/next")).body == b"ok"
    if not begun:
        until(lambda: gate.log.count('"status":499') == before + 8)


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


def test_an_underscore_does_not_make_an_identity_field(gate: Gate) -> None:
    """A server may refuse the request, or the gateway removes the field."""
    with gate.client() as client:
        status = client.answer(client.ask(fields=[("x_user_id", "admin")])).status
    assert status in (200, 400)
    assert all(b"admin" not in request.head for request in gate.backend.requests)


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
