"""The client's response made from the instance's, with any transport."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from wsgigate.client.http11 import FieldList
from wsgigate.discovery import Instance
from wsgigate.http.target import Target
from wsgigate.http.wsgi import ClientLeft, Headers
from wsgigate.proxy.request import Outgoing, RequestMaker
from wsgigate.proxy.response import BadResponse, Body, ResponseMaker, UpstreamCut, reason_of
from wsgigate.testing.fakes import new_environ

INSTANCE = Instance("http://10.0.0.1:8000")


class Raw:
    """A body that comes in these parts; an error in place of one is raised."""

    def __init__(self, fields: Headers, parts: list[Any]) -> None:
        self.headers = FieldList(fields)
        self._parts = parts
        self.asked: list[bool] = []

    def read1(self, size: int, *, decode_content: bool) -> bytes:
        self.asked.append(decode_content)
        part = self._parts.pop(0) if self._parts else b""
        if isinstance(part, Exception):
            raise part
        return part


class Response(requests.Response):
    def __init__(self, status: int, fields: Headers, *parts: Any) -> None:
        super().__init__()
        self.status_code = status
        self.raw = Raw(fields, list(parts))
        self.reason = "Their Words"
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def head(
    fields: Headers, status: int = 200, *, method: str = "GET", **options: Any
) -> tuple[str, Headers, int | None]:
    environ = {**new_environ(method), "HTTP_HOST": "shop.test"}
    preserve = options.get("preserve_host", False)
    request: Outgoing = RequestMaker(strip_prefix="/api", preserve_host=preserve).make(
        environ, Target("/api/x", None, "shop.test"), INSTANCE
    )
    return ResponseMaker(**options).head(Response(status, fields), request, INSTANCE)


@pytest.mark.parametrize("status", [0, 99, 100, 101, 199, 600, 999])
def test_only_final_statuses_are_accepted(status: int) -> None:
    """G26"""
    with pytest.raises(BadResponse, match=str(status)):
        head([], status)


CHUNKED = ("Transfer-Encoding", "chunked")


@pytest.mark.parametrize(
    "fields",
    [
        [CHUNKED, ("Content-Length", "1")],
        [CHUNKED, CHUNKED],
        [("Transfer-Encoding", "gzip, chunked")],
        [("Content-Length", "1"), ("Content-Length", "1")],
        *([("Content-Length", value)] for value in ("", "x", "-1", "+1", "1, 1", "²", "9" * 19)),
        *([("X", f"a{chr(code)}b")] for code in (0, 7, 10, 13, 27, 127)),
        *([(name, "x")] for name in ("", "X Y", "X:", "É")),
        [("Connection", ",".join(f"x{number}" for number in range(101)))],
    ],
)
def test_malformed_fields_are_rejected(fields: Headers) -> None:
    """G08 to G11, G30"""
    with pytest.raises(BadResponse):
        head(fields)


def test_transfer_encoding_is_not_passed_on() -> None:
    assert head([("Transfer-Encoding", " Chunked "), ("X", "1")])[1:] == ([("X", "1")], None)


@pytest.mark.parametrize(
    ("status", "method", "told", "length"),
    [
        (200, "GET", [("Content-Length", "5")], 5),
        (200, "HEAD", [("Content-Length", "5")], 0),
        (204, "GET", [], 0),
        (205, "GET", [("Content-Length", "0")], 0),
        (304, "GET", [("Content-Length", "5")], 0),
    ],
)
def test_content_length_is_set_only_where_it_is_allowed(
    status: int, method: str, told: Headers, length: int
) -> None:
    """G14, G28"""
    line, headers, left = head([("Content-Length", "005")], status, method=method)
    assert (headers, left) == (told, length)
    assert "Their Words" not in line


def test_fields_named_by_connection_are_removed_except_essential_ones() -> None:
    """C09, C10, C11"""
    kept = [
        ("Cache-Control", "no-store"),
        ("Content-Type", "a/b"),
        ("Set-Cookie", "a=1"),
        ("X-Public", "1"),
        ("Content-Length", "2"),
    ]
    names = "close, X-SECRET, cache-control, content-type, set-cookie, content-length"
    hop = [(name, "x") for name in ("Trailer", "Upgrade", "Keep-Alive", "Proxy-Authenticate")]
    given = [("Connection", names), ("x-secret", "1"), ("Proxy-Connection", "x"), *hop, *kept]
    assert head(given)[1] == kept


OWN = [
    ("Location", "http://10.0.0.1:8000/a"),
    ("Content-Location", "/b"),
    ("Set-Cookie", "a=1; Path=/"),
]


def test_locations_of_the_instance_are_rewritten() -> None:
    """G33"""
    assert head(OWN)[1] == [
        ("Location", "/api/a"),
        ("Content-Location", "/api/b"),
        ("Set-Cookie", "a=1; Path=/api"),
    ]
    assert head(OWN, rewrite_location=False, rewrite_cookies=False)[1] == OWN
    assert head(OWN, rewrite_location=False)[1][:2] == OWN[:2]
    assert head(OWN, rewrite_cookies=False)[1][2] == OWN[2]
    known = [("Location", "http://shop.test/a"), ("Refresh", "5; url=https://10.0.0.1:8000/b")]
    led = [("Location", "/api/a"), ("Refresh", "5; url=https://shop.test/api/b")]
    assert head(known)[1] == head(known, preserve_host=True)[1] == led
    assert head(known, rewrite_location=False)[1] == known
    other = [("Location", "http://other.test/a")]
    assert head(other)[1] == head(other, preserve_host=True)[1] == other
    domain = [("Set-Cookie", "a=1; Domain=10.0.0.1")]
    assert head(domain)[1] == [("Set-Cookie", "a=1")]
    assert head(domain, preserve_host=True)[1] == domain


class Departed:
    def __init__(self, gone: bool = False) -> None:
        self.gone = gone
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


def body(*parts: Any, gone: bool = False, status: int = 200) -> tuple[Body, Response, list[Any]]:
    response, ended = Response(status, [], *parts), []
    watch: Any = Departed(gone)
    return Body(response, ended.append, watch, {}), response, ended


def test_the_end_of_a_body_releases_everything_once() -> None:
    """R02"""
    response, ended = Response(200, [], b"a", b"b"), []
    watch: Any = Departed()
    made: Any = Body(response, ended.append, watch, {})
    made.promised = 2
    assert list(made) == [b"a", b"b"]
    made.close()
    made.close()
    assert (response.closed, watch.closed, ended) == (1, 1, [None])
    assert response.raw.asked == [False] * 3


@pytest.mark.parametrize(
    ("parts", "gone", "promised", "error"),
    [
        ([b"a"], False, 2, UpstreamCut),
        ([b"a", OSError("cut")], False, None, UpstreamCut),
        ([b"a", ValueError("cut")], False, None, UpstreamCut),
        ([b"a", OSError("cut")], True, None, ClientLeft),
        ([b"a"], True, None, ClientLeft),
        ([b"a"], True, 2, ClientLeft),
    ],
)
def test_a_truncated_body_raises_an_error(
    parts: list[Any], gone: bool, promised: int | None, error: type[Exception]
) -> None:
    """G01 to G04"""
    made, _, ended = body(*parts, gone=gone)
    made.promised = promised
    assert next(made) == b"a"
    with pytest.raises(error):
        next(made)
    made.close()
    assert [type(each) for each in ended] == [error]


@pytest.mark.parametrize(("status", "asked"), [(204, [False]), (205, [])])
def test_skip_reads_a_response_only_if_it_cannot_have_a_body(
    status: int, asked: list[bool]
) -> None:
    """So that its connection is kept; one that may have a body there is closed instead."""
    made, response, _ = body(b"stray", status=status)
    made.skip()
    assert (response.raw.asked, response.closed) == (asked, 1)


def test_the_reason_is_the_innermost_error_and_short() -> None:
    inner = requests.ConnectionError("<object at 0x1>: no route")
    assert reason_of(requests.ConnectionError(inner)).endswith("no route")
    wrapped = OSError("<urllib3.HTTPConnection object at 0x7f>: refused")
    assert reason_of(wrapped) == "OSError: refused"
    assert len(reason_of(OSError("x" * 1000))) == 300
