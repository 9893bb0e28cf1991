"""The dispatcher and the forwarder conform to PEP 3333, by its validator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from wsgiref.types import WSGIApplication
from wsgiref.validate import validator

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import close_body
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.routing import Route
from wsgigate.testing.backend import Backend, cut, reply

TYPED = [("Content-Type", "text/plain")]  # the validator wants one, RFC 9110 does not
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
HINTED = b"HTTP/1.1 103 Early Hints\r\n\r\n" + reply(b"hinted", fields=TYPED)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

REQUESTS = [
    # method, path, body, the backend's answer, status
    ("GET", "/svc", b"", reply(b"ok", fields=TYPED), 200),
    ("GET", "/svc", b"", CHUNKED, 200),
    ("GET", "/svc", b"", HINTED, 200),
    ("HEAD", "/svc", b"", HEAD + b"Content-Length: 9\r\n\r\n", 200),
    ("POST", "/svc", b"body", reply(b"made", status="201 Created", fields=TYPED), 201),
    ("DELETE", "/svc", b"", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    ("GET", "/svc", b"", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", 304),
    ("GET", "/svc", b"", cut(b"nonsense"), 502),
    ("GET", "/nothing", b"", reply(b""), 404),
    ("POST", "/read", b"", reply(b""), 405),
    ("HEAD", "/nothing", b"", reply(b""), 404),
    ("GET", "/svc/../x", b"", reply(b""), 400),
]


@pytest.fixture
def app(backend: Backend, sessions: Sessions) -> WSGIApplication:
    forwarder = Forwarder(Pool("svc", [Instance(backend.url)]), sessions=sessions)
    checked: Any = validator(forwarder)
    routes = [Route("/svc", checked), Route("/read", checked, methods=["GET"])]
    return validator(Dispatcher(routes))


@pytest.mark.parametrize(("method", "path", "body", "answer", "status"), REQUESTS)
def test_every_kind_of_response_conforms_to_pep_3333(
    method: str,
    path: str,
    body: bytes,
    answer: Any,
    status: int,
    backend: Backend,
    app: WSGIApplication,
) -> None:
    backend.answers = [answer]
    environ = EnvironBuilder(path, method=method, data=body or None).get_environ()
    environ["RAW_URI"] = environ["REQUEST_URI"] = path
    chunks, line, _ = run_wsgi_app(app, environ)
    consumed: Iterator[bytes] = iter(chunks)
    total = b"".join(consumed)
    close_body(chunks)
    assert int(line[:3]) == status
    assert (total == b"") == (method == "HEAD" or status in (204, 304))


def test_a_response_that_is_never_read_frees_its_connection(
    backend: Backend, app: WSGIApplication
) -> None:
    """R02"""
    backend.answers = [HEAD + b"Content-Length: 9\r\n\r\nhalf"]
    chunks, _, _ = run_wsgi_app(app, EnvironBuilder("/svc").get_environ())
    close_body(chunks)
    backend.wait_until_closed()
