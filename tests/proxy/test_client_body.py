"""The client's body: how it is framed, and where it ends."""

from __future__ import annotations

import io
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from wsgigate.http.bodies import ClientBody, buffer_body, client_body
from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import BodyError


class Input:
    """A ``wsgi.input`` that goes on for ever, and keeps how much was asked of it at a time."""

    def __init__(self, data: bytes | None = None) -> None:
        self._data = data
        self.asked: list[int] = []

    def read(self, size: int) -> bytes:
        self.asked.append(size)
        if self._data is None:
            return b"x" * size
        taken, self._data = self._data[:size], self._data[size:]
        return taken


def test_no_byte_after_the_body_is_read() -> None:
    """R04: some servers wait for it until the client leaves, others hand out the next request."""
    source = Input()
    body = ClientBody(source, 5)
    assert [body.read(3), body.read(3), body.read(3), body.read(3)] == [b"xxx", b"xx", b"", b""]
    assert source.asked == [3, 2]


def test_a_truncated_body_is_an_error() -> None:
    """A15"""
    body = ClientBody(Input(b"xxx"), 5)
    assert body.read(9) == b"xxx"
    with pytest.raises(BodyError, match="ended 2 bytes early"):
        body.read(9)
    assert body.error is not None


CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({**CHUNKED, "CONTENT_LENGTH": "3"}, 400),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, 501),
        ({**CHUNKED, "HTTP_TRANSFER_ENCODING": "gzip, chunked"}, 501),
        *(({"CONTENT_LENGTH": value}, 400) for value in ("x", "-1", "+1", "²", "1, 1", "9" * 19)),
    ],
)
def test_unsupported_framing_is_rejected(environ: dict[str, Any], status: int) -> None:
    """A03, A04, A09"""
    with pytest.raises(Refusal) as caught:
        client_body({**environ, "wsgi.input": Input()})
    assert caught.value.problem.status == status


@pytest.mark.parametrize(
    ("environ", "length"),
    [({"CONTENT_LENGTH": "003"}, 3), ({"CONTENT_LENGTH": "9" * 18}, 10**18 - 1), (CHUNKED, None)],
)
def test_a_body_has_the_length_of_content_length(
    environ: dict[str, Any], length: int | None
) -> None:
    """A05"""
    body = client_body({**environ, "wsgi.input": Input()})
    assert body is not None
    assert body.length == length


@pytest.mark.parametrize("environ", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"}])
def test_a_request_without_a_length_has_no_body(environ: dict[str, Any]) -> None:
    """R04"""
    assert client_body({**environ, "wsgi.input": Input()}) is None


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("buffered", [0, 1, 2], ids=lambda times: f"buffered {times} times")
@pytest.mark.parametrize(
    ("reads", "content_type", "chunked", "was_read"),
    [
        (lambda request: request.get_data(), "text/plain", False, True),
        (lambda request: request.get_data(), "text/plain", True, True),
        (lambda request: request.get_json(), "application/json", False, True),
        (lambda request: request.form, FORM, False, True),
        (lambda request: request.form, FORM, True, True),
        (lambda request: request.stream.read(1), "text/plain", False, True),
        (lambda request: request.stream, "text/plain", False, False),
        (lambda request: request.headers, "text/plain", False, False),
    ],
)
def test_a_body_that_the_app_has_read_causes_a_500(
    reads: Any, content_type: str, chunked: bool, was_read: bool, buffered: int
) -> None:
    environ = EnvironBuilder(
        "/", method="POST", data=b"[1]", content_type=content_type
    ).get_environ()
    if chunked:
        del environ["CONTENT_LENGTH"]
        environ |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    reads(Request(environ))
    for _ in range(buffered):
        buffer_body(environ, 1000)
    if was_read:
        with pytest.raises(Refusal) as refused:
            client_body(environ)
        assert refused.value.problem.status == 500
        assert "has read the request body" in refused.value.problem.detail
        environ["wsgi.input"] = io.BytesIO(b"[1]")
    body = client_body(environ)
    assert body is not None
    assert body.read(9) == b"[1]"


def test_reading_a_request_without_a_body_causes_no_error() -> None:
    environ = EnvironBuilder("/").get_environ()
    Request(environ).get_data()
    assert client_body(environ) is None
