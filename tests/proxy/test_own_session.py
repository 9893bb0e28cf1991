"""A custom session: any transport adapter of ``requests`` can reach the instances."""

from __future__ import annotations

import gzip
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from werkzeug.test import Client

from tests.proxy.conftest import client_of
from tests.support.certificates import make_certificate
from tests.support.interpreter import run_alone
from wsgigate.client.adapter import Sessions
from wsgigate.proxy.attempts import Resilience
from wsgigate.rules.retry import RetryRules
from wsgigate.testing.backend import Backend, ScriptedAnswer, cut, reply

Through = Callable[..., Client]


@pytest.fixture
def through() -> Iterator[Through]:
    """Yield a maker of clients of a forwarder whose session is a plain ``requests.Session``."""
    opened = Sessions(requests.Session)
    yield lambda url, **options: client_of(url, opened, **options)
    opened.close()


def test_a_request_and_its_response_are_forwarded(backend: Backend, through: Through) -> None:
    backend.answers = [reply(b"made", status="201 Created", fields=[("X-Own", "1")])]
    response = through(backend.url).post("/a%2Fb?c=d", data=b"body", headers={"X-Client": "2"})
    assert (response.status_code, response.headers["X-Own"], response.data) == (201, "1", b"made")
    [request] = backend.requests
    assert request.line == "POST /a%2Fb?c=d HTTP/1.1"
    assert (request.value("X-Client"), request.body) == ("2", b"body")


def test_bodies_are_streamed_in_both_directions(backend: Backend, through: Through) -> None:
    big = bytes(1_000_000)
    backend.answers = [reply(big)]
    client = through(backend.url)
    response = client.put("/", data=big, headers={"Content-Length": str(len(big))})
    assert response.data == big
    assert backend.requests[0].body == big


def test_a_compressed_body_arrives_as_it_was_sent(backend: Backend, through: Through) -> None:
    packed = gzip.compress(b"text")
    backend.answers = [reply(packed, fields=[("Content-Encoding", "gzip")])]
    assert through(backend.url).get("/").data == packed


def test_redirects_are_not_followed_and_cookies_are_not_kept(
    backend: Backend, through: Through
) -> None:
    fields = [("Location", "/there"), ("Set-Cookie", "a=1")]
    backend.answers = [reply(status="302 Found", fields=fields), reply()]
    client = through(backend.url)
    assert client.get("/").status_code == 302
    assert client.get("/").status_code == 200
    assert [request.values("Cookie") for request in backend.requests] == [[], []]


@pytest.mark.parametrize(
    ("answer", "status"),
    [(cut(b""), 502), (cut(b"HTTP/1.1 abc\r\n\r\n"), 502)],
    ids=["closed", "malformed"],
)
def test_an_invalid_response_is_502(answer: ScriptedAnswer, status: int, through: Through) -> None:
    with Backend(answer) as backend:
        assert through(backend.url).get("/").status_code == status


def test_an_instance_that_refuses_connections_is_503_and_one_that_is_silent_504(
    through: Through,
) -> None:
    with Backend(b"") as backend:
        assert through(backend.url, timeout=0.2).get("/").status_code == 504
    assert through(backend.url).get("/").status_code == 503


def test_a_body_that_is_cut_is_not_passed_on_as_complete(through: Through) -> None:
    with Backend(cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")) as backend:
        response = through(backend.url).get("/", buffered=False)
        with pytest.raises(ConnectionResetError):
            _ = response.data


def test_requests_are_retried(backend: Backend, through: Through) -> None:
    backend.answers = [reply(status="503 Busy"), reply(b"well")]
    resilience = Resilience(retry=RetryRules(statuses=(503,)))
    assert through(backend.url, resilience=resilience).get("/").data == b"well"
    assert len(backend.requests) == 2


def test_certificates_are_verified(tmp_path: Path, through: Through) -> None:
    certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def wrap(sock: Any) -> Any:
        return context.wrap_socket(sock, server_side=True)

    with Backend(tls=wrap) as backend:
        assert through(backend.url, verify=str(certificate)).get("/").data == b"ok"
        assert through(backend.url).get("/").json["error"] == "Certificate verification failed"


FORKED = """
import ctypes, os, sys
import requests
from wsgigate.client.adapter import Sessions, Timeout
from wsgigate.proxy.attempts import Sender
from wsgigate.proxy.disconnect import UNWATCHED

class Own(requests.adapters.BaseAdapter):
    def send(self, *arguments, **options):
        return self

def session():
    made = requests.Session()
    made.mount("http://", Own())
    return made

sender = Sender(Sessions(session), Timeout(1, 1, 1), True, None)
request = requests.Request("GET", "http://a.test").prepare()
request.origin = "http://a.test"
first = sender.send(request, UNWATCHED)
child = ctypes.PyDLL(None).fork()
if not child:
    os._exit(sender.send(request, UNWATCHED) is first)
same = sender.send(request, UNWATCHED) is first
sys.exit(not same or os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0)
"""


def test_a_process_forked_without_pythons_hooks_sends_over_no_connection_of_its_parent() -> None:
    """The parent has sent a request to the same instance before it forked."""
    run_alone(FORKED)
