"""The client's body: how it is framed, and where it ends."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.problem import Refusal
from wsgigate.proxy.client_body import ClientBody, client_body
from wsgigate.wsgi import BodyError


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


def test_no_byte_behind_the_body_is_asked_for() -> None:
    """R04: some servers wait for it until the client leaves, others hand out the next request."""
    source = Input()
    body = ClientBody(source, 5)
    assert [body.read(3), body.read(3), body.read(3), body.read(3)] == [b"xxx", b"xx", b"", b""]
    assert source.asked == [3, 2]


def test_a_body_that_ends_early_is_an_error_and_no_end() -> None:
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
def test_what_is_framed_in_another_way_is_refused(environ: dict[str, Any], status: int) -> None:
    """A03, A04, A09"""
    with pytest.raises(Refusal) as caught:
        client_body({**environ, "wsgi.input": Input()})
    assert caught.value.problem.status == status


@pytest.mark.parametrize(
    ("environ", "length"),
    [({"CONTENT_LENGTH": "003"}, 3), ({"CONTENT_LENGTH": "9" * 18}, 10**18 - 1), (CHUNKED, None)],
)
def test_a_body_is_as_long_as_it_says(environ: dict[str, Any], length: int | None) -> None:
    """A05"""
    body = client_body({**environ, "wsgi.input": Input()})
    assert body is not None
    assert body.length == length


@pytest.mark.parametrize("environ", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"}])
def test_no_length_is_no_body(environ: dict[str, Any]) -> None:
    """R04"""
    assert client_body({**environ, "wsgi.input": Input()}) is None
