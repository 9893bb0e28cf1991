"""Clients that attack over HTTP/2: smuggling, floods, heads that are too large, slow clients."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.acceptance.http2.client import Client
from tests.acceptance.http2.gate import Gate
from tests.support.waiting import until
from wsgigate.testing.backend import reply

Serve = Callable[..., Any]


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
