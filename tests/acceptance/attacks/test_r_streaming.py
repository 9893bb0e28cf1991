"""R: the WSGI contract and streaming, as far as a server in front of it shows.

R01, R02, R09 and R10 are also held to without a server, in tests/proxy and tests/middleware; R13 is
the gibibyte of test_gateway. R15 is not tried, as it wants gevent or a Python without a
global lock; the transport only uses names that monkey patching replaces.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.sockets import read_to_end
from wsgigate.testing.backend import Received, reply

ROUTES = """
[[routes]]
path = "/boom"
app = "attack_plugins:boom"
[[routes]]
path = "/exits"
app = "attack_plugins:exits"
[[routes]]
path = "/late-boom"
app = "attack_plugins:late_boom"
[[routes]]
path = "/odd"
app = "attack_plugins:odd"
[[routes]]
path = "/writes"
app = "attack_plugins:writes"
[[routes]]
path = "/reads-some"
service = "svc"
middleware = [{ use = "attack_plugins:reads_some" }]
"""


@pytest.fixture(scope="module")
def plugged(make_gate: Any) -> Any:
    """Return a gateway with apps and middlewares of others in it, bad ones."""
    return make_gate(routes=ROUTES)


@pytest.mark.parametrize("path", ["/boom", "/exits"])
def test_what_fails_before_it_answers_is_a_500(path: str, plugged: Any) -> None:
    """R03, Q14: its reason is for the log only, and the worker goes on."""
    answer = plugged.ask(plugged.raw(path))
    assert answer.status == 500
    assert json.loads(answer.body)["message"] == "Gateway error occurred"
    assert b"secret" not in answer.body


def test_what_fails_while_it_answers_is_cut(plugged: Any) -> None:
    """R03"""
    before = len(plugged.log())
    with plugged.connect() as sock:
        sock.sendall(plugged.raw("/late-boom"))
        data = read_to_end(sock)
    assert data.endswith(b"begun\r\n")
    assert b"secret" not in data
    plugged.settled(before, 1)


def test_a_body_without_a_length_is_empty(gate: Any) -> None:
    """R04: nothing waits for one."""
    request, _ = gate.passed(b"POST /pub HTTP/1.0\r\nHost: a.test\r\n\r\n")
    assert (request.body, request.value("Content-Length")) == (b"", "0")


def test_a_body_that_was_read_before_us_is_never_sent_in_part(plugged: Any) -> None:
    """R05"""
    seen = len(plugged.backend.requests)
    data = plugged.raw("/reads-some", "Content-Length: 5", method="POST", body=b"12345")
    answer = plugged.ask(data)
    assert answer.status in (400, 500)
    assert not any(request.complete for request in plugged.backend.requests[seen:])


def test_a_client_that_breaks_off_takes_the_upload_with_it(gate: Any) -> None:
    """R06"""
    seen, before = len(gate.backend.requests), len(gate.log())
    with gate.connect() as sock:
        sock.sendall(gate.raw("/pub", "Content-Length: 1000", method="POST", body=b"begun"))
    gate.settled(before, 1)
    assert not any(request.complete for request in gate.backend.requests[seen:])


def test_the_first_event_comes_before_the_second_is_there(gate: Any) -> None:
    """R07"""
    taken = threading.Event()

    def events(connection: socket.socket, _request: Received) -> bool:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        connection.sendall(head + b"data: 1\n\n")
        assert taken.wait(30)
        connection.sendall(b"data: 2\n\n")
        return False

    gate.backend.answers = [events]
    before = len(gate.log())
    with gate.connect() as sock:
        sock.sendall(gate.raw("/pub", "Connection: close"))
        data = b""
        while b"data: 1\n\n" not in data:
            data += sock.recv(65536)
        taken.set()
        data += read_to_end(sock)
    assert b"data: 2\n\n" in data
    gate.settled(before, 1)


def test_a_client_that_leaves_frees_the_backend(gate: Any) -> None:
    """R08"""
    closed = threading.Event()

    def endless(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        try:
            while not closed.wait(0.05):
                connection.sendall(b"data: x\n\n")
        except OSError:
            closed.set()
        return False

    gate.backend.answers = [endless]
    before = len(gate.log())
    with gate.connect() as sock:
        sock.sendall(gate.raw("/pub"))
        sock.recv(100)
    assert closed.wait(30)
    gate.settled(before, 1)
    assert gate.log()[-1]["aborted"] is True


@pytest.mark.parametrize(
    ("method", "answer", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304),
    ],
)
def test_a_response_without_a_body_has_none(
    method: str, answer: bytes, status: int, gate: Any
) -> None:
    """R09"""
    data = gate.raw("/pub", method=method)
    _, back = gate.passed(data, status, method=method, answer=answer)
    assert back.body == b""
    assert back.values("Transfer-Encoding") == []


def test_a_response_that_cannot_be_serialized_is_a_500(plugged: Any) -> None:
    """R11: gunicorn's own, as it is found out only there."""
    before = len(plugged.log())
    with plugged.connect() as sock:
        sock.sendall(plugged.raw("/odd", "Connection: close"))
        data = read_to_end(sock)
    assert data.startswith(b"HTTP/1.1 500")
    assert b"Traceback" not in data
    plugged.settled(before, 1)


def test_an_app_may_write(plugged: Any) -> None:
    """R12"""
    answer = plugged.ask(plugged.raw("/writes"))
    assert (answer.status, answer.body) == (200, b"written and returned")


def test_many_at_once_get_each_their_own(gate: Any) -> None:
    """R14"""
    gate.backend.answers = [lambda sock, got: sock.sendall(reply(got.target.encode()))]
    before = len(gate.log())

    def ask(number: int) -> bool:
        with gate.connect() as sock:
            sock.sendall(gate.raw(f"/pub/{number}", "Connection: close"))
            data = read_to_end(sock)
        return re.findall(rb"/pub/(\d+)", data) == [str(number).encode()]

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(200)))
    gate.settled(before, 200)
