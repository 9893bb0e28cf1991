"""A gateway under granian: what it does as under gunicorn, and what it can not."""

from __future__ import annotations

import http.client
import json
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.acceptance.events import TwoEvents
from tests.acceptance.files import LOGGED_SERVICE
from tests.support.sockets import read_to_end
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, cut, reply

Serve = Callable[..., Any]

GATEWAY = f"""
[gateway]
threads = 4
{LOGGED_SERVICE}
{{more}}
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.fixture
def backend(shared: Backend) -> Backend:
    """Return the backend of all the tests, as if it were new."""
    shared.answers = [reply(b"ok")]
    shared.requests.clear()
    return shared


@pytest.fixture(scope="module")
def gateway(serve_for_all: Serve, shared: Backend) -> Any:
    return serve_for_all(GATEWAY.format(url=shared.url, more=""), workers=1, server="granian")


@pytest.fixture
def own(serve: Serve, backend: Backend) -> Any:
    """Return a gateway for one test, which changes or stops it."""
    return serve(GATEWAY.format(url=backend.url, more=""), workers=1, server="granian")


def ask(gateway: Any, raw: bytes) -> bytes:
    """Send *raw*, after which the gateway is to close the connection; return its answer."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(raw)
        return read_to_end(connection)


def test_a_request_is_forwarded_with_forwarding_fields(
    gateway: Any, backend: Backend, http: requests.Session
) -> None:
    backend.answers = [reply(b"made", status="201 Created", fields=[("X-Made", "1")])]
    answer = http.post(f"{gateway.url}/svc/a%20b/%7e?x=%20&y", data=b"body")
    assert (answer.status_code, answer.content, answer.headers["X-Made"]) == (201, b"made", "1")
    assert "X-Request-ID" in answer.headers
    (request,) = backend.requests
    assert request.target == "/a%20b/~?x=%20&y"
    assert request.body == b"body"
    assert request.value("X-Forwarded-For") == "127.0.0.1"
    assert (request.value("Via") or "").startswith("1.1 ")


def test_a_rejection_is_a_problem_document(gateway: Any, http: requests.Session) -> None:
    answer = http.get(f"{gateway.url}/nowhere")
    assert (answer.status_code, answer.json()["message"]) == (404, "Route not found!")
    for path in ("/svc/../x", "/svc/%2e%2e/x", "/svc/%5cx", "/svc/%00"):
        assert b" 400 Bad Request" in ask(
            gateway, f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        )


def test_an_escaped_slash_is_a_plain_one(gateway: Any, backend: Backend) -> None:
    """granian decodes the path: what is matched is still what is forwarded. Else it is refused."""
    got = ask(gateway, b"GET /svc%2fa%2Fb HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert [each.target for each in backend.requests] == ([] if b" 400 " in got else ["/a/b"])


def test_the_time_for_a_head_is_that_of_the_file_and_what_is_not_applied_is_logged(
    serve: Serve, backend: Backend
) -> None:
    keys = "[gateway]\nhead_timeout = 0.3\nmax_connections_per_client = 9\n"
    table = GATEWAY.format(url=backend.url, more="").replace("[gateway]\n", keys)
    gateway = serve(table, workers=1, server="granian")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as client:
        assert client.recv(1) == b""
    assert "Self-check: gateway.max_connections_per_client: under granian" in gateway.log


@pytest.mark.parametrize("name", ["X-User-Id", "X_User_Id", "x_user-id"])
def test_no_spelling_of_an_identity_field_survives(
    name: str, gateway: Any, backend: Backend
) -> None:
    head = f"GET /svc HTTP/1.1\r\nHost: a\r\n{name}: admin\r\nConnection: close\r\n\r\n"
    assert b" 200 OK" in ask(gateway, head.encode())
    assert "admin" not in backend.requests[0].head.decode()


def test_the_process_s_environment_is_no_part_of_a_request(serve: Serve, backend: Backend) -> None:
    text = GATEWAY.format(url=backend.url, more="")
    gateway = serve(text, workers=1, server="granian", env={"HTTP_PASSWORD": "secret"})
    ask(gateway, b"GET /svc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"secret" not in backend.requests[0].head


def test_http_1_0_without_a_host(gateway: Any, backend: Backend) -> None:
    assert b" 200 OK" in ask(gateway, b"GET /svc HTTP/1.0\r\n\r\n")
    assert (backend.requests[0].value("Via") or "").startswith("1.0 ")


def test_http_1_1_without_a_host_is_refused(gateway: Any, backend: Backend) -> None:
    assert b" 400 Bad Request" in ask(gateway, b"GET /svc HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert not backend.requests


def test_a_body_without_a_length_is_refused(gateway: Any, backend: Backend) -> None:
    """granian would not tell it from one that was cut."""
    head = b"POST /svc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    body = b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert b" 411 Length Required" in ask(gateway, head + body)
    assert not backend.requests


def test_a_cut_upload_does_not_arrive_whole(gateway: Any, backend: Backend) -> None:
    logged = len(gateway.log)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection:
        connection.sendall(b"POST /svc HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc")
    until(lambda: '"status":400' in gateway.log[logged:])
    assert not any(request.complete for request in backend.requests)


def test_a_head_keeps_its_length(gateway: Any, backend: Backend) -> None:
    backend.answers = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"]
    head = ask(gateway, b"HEAD /svc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert b"\r\ncontent-length: 100\r\n" in head.lower()


def test_a_short_response_that_is_cut_is_a_502(gateway: Any, backend: Backend) -> None:
    backend.answers = [cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")]
    assert requests.get(f"{gateway.url}/svc", timeout=20).status_code == 502


def test_a_long_response_that_is_cut_is_cut_for_the_client_too(
    gateway: Any, backend: Backend
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n"
    backend.answers = [cut(head + b"x" * 1_000_000)]
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    connection.request("GET", "/svc")
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        connection.getresponse().read()
    connection.close()


FAILING = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return failing()


def failing():
    yield b"abc"
    raise ConnectionError("cut")
"""


def test_a_response_without_a_length_that_is_cut_is_cut_where_granian_can(
    gateway: Any, backend: Backend, run_for_all: Serve
) -> None:
    """What granian does with an app that fails is seen with a plain one."""
    command = ("-m", "granian", "--interface", "wsgi", "--port", "{port}", "served:app")
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    backend.answers = [cut(head + b"3\r\nabc\r\n")]
    asked = b"GET /svc HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    cuts = not ask(run_for_all(FAILING, *command), asked).endswith(b"0\r\n\r\n")
    got = ask(gateway, asked)
    assert not got.endswith(b"0\r\n\r\n") if cuts else got.endswith(b"3\r\nabc\r\n0\r\n\r\n")
    assert ("completes a response without a length" in gateway.log) is not cuts


def test_events_arrive_as_they_are_sent(gateway: Any, backend: Backend) -> None:
    events = TwoEvents()
    backend.answers = [events]
    with requests.get(f"{gateway.url}/svc", stream=True, timeout=20) as response:
        chunks = response.iter_content(None)
        assert next(chunks) == b"data: 1\n\n"
        events.taken.set()
        assert next(chunks) == b"data: 2\n\n"


def test_a_reload_reads_the_file_again_and_a_broken_one_changes_nothing(
    own: Any, backend: Backend
) -> None:
    def status(path: str) -> int:
        try:
            return requests.get(f"{own.url}{path}", timeout=20).status_code
        except requests.ConnectionError:
            return 0

    text = own.file.read_text()
    own.file.write_text(text.replace('path = "/svc"', 'path = "/new"'))
    own.signal(signal.SIGHUP)
    until(lambda: status("/new") == 200)
    own.file.write_text("broken")
    own.signal(signal.SIGHUP)
    until(lambda: "Reload rejected" in own.log)
    until(lambda: status("/svc") == 200)


def test_nothing_of_the_log_is_lost_at_the_end(own: Any, http: requests.Session) -> None:
    for number in range(50):
        assert http.get(f"{own.url}/svc/{number}").status_code == 200
    own.signal(signal.SIGTERM)
    assert own.process.wait(25) == 0
    lines = [json.loads(line) for line in own.log.splitlines() if line.startswith("{")]
    assert len(lines) == 50


def test_a_server_that_is_stopped_before_its_workers_are_ready_stops(
    serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\n\ntime.sleep(1)\n\n\ndef app(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return []\n"
    )
    text = '[[routes]]\npath = "/slow"\napp = "slow:app"\n'
    server = serve(text, server="granian", env={"PYTHONPATH": str(tmp_path)})
    until(lambda: len(server.workers()) == 2)
    server.stop(within=25)  # and not when they are killed, after 30 s
