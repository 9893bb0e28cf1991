"""Heads and chunked bodies as the server reads them: what is refused, and with which status."""

from __future__ import annotations

from typing import Any

import pytest

from wsgigate.servers.http1_request import (
    BadRequest,
    ChunkedDecoder,
    Head,
    HeadParser,
    HeadRules,
)

FORWARDED = {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_SSL": "on"}


def parse(
    *lines: str, parser: HeadParser | None = None, first: str = "GET / HTTP/1.1"
) -> tuple[Head, dict[str, Any]]:
    environ: dict[str, Any] = {"wsgi.url_scheme": "http"}
    data = "\r\n".join([first, *lines]).encode("latin-1")
    head = (parser or HeadParser(HeadRules())).parse(data, environ)
    return head, environ


def status_of(*lines: str, **options: Any) -> int:
    with pytest.raises(BadRequest) as caught:
        parse(*lines, **options)
    return caught.value.problem.status


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a/b?c=d", "/a/b", "c=d"),
        ("/?", "/", ""),
        ("/a?b?c", "/a", "b?c"),
        ("/%c3%a9%2f", "/\xc3\xa9/", ""),
        ("//b/c", "//b/c", ""),
        ("/a#b?c", "/a", ""),
        ("http://a.test/x?y", "/x", "y"),
        ("http://a.test", "", ""),
    ],
)
def test_a_target_is_split_and_decoded(target: str, path: str, query: str) -> None:
    _, environ = parse(first=f"GET {target} HTTP/1.1")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"]) == (path, query)
    assert (environ["RAW_URI"], environ["SCRIPT_NAME"]) == (target, "")


@pytest.mark.parametrize(
    "first",
    [
        *("", "GET", "GET /", "GET / ", "GET  / HTTP/1.1", "GET / HTTP/1.1 ", " GET / HTTP/1.1"),
        *("get / HTTP/1.1", "G#T / HTTP/1.1", "GE / HTTP/1.1", f"{'A' * 21} / HTTP/1.1"),
        *("G@T / HTTP/1.1", "GET a HTTP/1.1", "GET * HTTP/1.1", "GET \xe9 HTTP/1.1"),
        *("GET /\x00 HTTP/1.1", "GET /\t HTTP/1.1", "GET http://[ HTTP/1.1", "GET a:80 HTTP/1.1"),
        *("GET / HTTP/2.0", "GET / HTTP/0.9", "GET / http/1.1", "GET / HTTP/1.10", "GET / HTTP/1."),
        *("GET / HTTP/1.\u0661".encode().decode("latin-1"),),
    ],
)
def test_a_malformed_request_line_is_refused(first: str) -> None:
    assert status_of(first=first) == 400


@pytest.mark.parametrize(
    "line",
    [
        *("Host", " Host: b", "Host : b", ": b", "X\xe9: b", "X_A: b", "X: a\x00b", "X: a\x7fb"),
        *("X: a\rb", "X: a\nb", " folded", "\tfolded", "Host: a", "host: a", "X(: b"),
        *("Content-Length: 1\r\nContent-Length: 1", "Content-Length: +1", "Content-Length: 1_0"),
        *("Content-Length:", "Content-Length: \xb2", f"Content-Length: {'9' * 19}"),
        *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, gzip", "Transfer-Encoding:"),
        *("Transfer-Encoding: chunked, chunked", "Transfer-Encoding: chunked\r\nContent-Length: 1"),
        *("Content-Type: a\r\nContent-Type: a",),
    ],
)
def test_a_malformed_or_ambiguous_field_is_refused(line: str) -> None:
    assert status_of("Host: a", line) in (400, 501)


@pytest.mark.parametrize(
    ("lines", "options", "status"),
    [
        (["Expect: x"], {}, 417),
        (["Transfer-Encoding: x"], {}, 501),
        (["Transfer-Encoding: chunked"], {"first": "POST / HTTP/1.0"}, 400),
        ([], {"first": f"GET /{'a' * 9000} HTTP/1.1"}, 414),
        ([f"X: {'a' * 8190}"], {}, 431),
        (["X: a"] * 101, {}, 431),
    ],
)
def test_what_is_not_supported_or_too_long_has_a_status_of_its_own(
    lines: list[str], options: dict[str, Any], status: int
) -> None:
    assert status_of(*lines, **options) == status


def test_fields_are_joined_and_spaces_around_their_values_removed() -> None:
    _, environ = parse("X-A: \t1 ", "x-a:2", "Cookie: a=b", "Cookie: c=d", "X-Empty:", "X-B: \xe9")
    assert environ["HTTP_X_A"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=b; c=d"
    assert (environ["HTTP_X_EMPTY"], environ["HTTP_X_B"]) == ("", "\xe9")


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", None, True),
        ("1.0", None, False),
        ("1.1", "close", False),
        ("1.1", "Keep-Alive, CLOSE", False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive, x", True),
        ("1.1", "upgrade", True),
    ],
)
def test_the_connection_field_says_whether_a_connection_stays_open(
    version: str, connection: str | None, keep: bool
) -> None:
    lines = [] if connection is None else [f"Connection: {connection}"]
    assert parse(*lines, first=f"GET / HTTP/{version}")[0].keep == keep


def test_an_expectation_of_an_older_client_is_ignored() -> None:
    assert parse("Expect: 100-Continue")[0].expects
    assert not parse("Expect: 100-continue", first="GET / HTTP/1.0")[0].expects


def test_a_later_minor_version_is_read_as_what_it_is() -> None:
    head, environ = parse(first="GET / HTTP/1.2")
    assert (head.version, environ["SERVER_PROTOCOL"], head.keep) == ((1, 2), "HTTP/1.2", True)


def test_underscores_are_read_as_the_rules_say() -> None:
    dropped = HeadParser(HeadRules(header_map="drop"))
    kept = HeadParser(HeadRules(header_map="dangerous"))
    assert "HTTP_X_A" not in parse("X_A: b", parser=dropped)[1]
    assert parse("X_A: b", parser=kept)[1]["HTTP_X_A"] == "b"
    assert status_of("X_A: b") == 400  # what another parser accepts is not remembered
    named = HeadParser(HeadRules(), forwarders=frozenset({"SCRIPT_NAME"}))
    assert status_of("X_A: b", parser=named) == 400


def test_a_proxy_may_say_where_the_app_is_mounted() -> None:
    trusted = HeadParser(HeadRules(), forwarders=frozenset({"SCRIPT_NAME"}))
    _, environ = parse("SCRIPT_NAME: /app", first="GET /app/x HTTP/1.1", parser=trusted)
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app", "/x")
    assert status_of("SCRIPT_NAME: /app", first="GET /x HTTP/1.1", parser=trusted) == 500
    twice = ["SCRIPT_NAME: /app", "SCRIPT_NAME: /app"]
    assert status_of(*twice, first="GET /app/x HTTP/1.1", parser=trusted) == 400


def test_a_client_of_that_proxy_may_not() -> None:
    """A proxy drops names with an underscore, and forwards Script-Name as any other field."""
    for forwarder in ("SCRIPT_NAME", "*"):
        trusted = HeadParser(HeadRules(), forwarders=frozenset({forwarder}))
        lines = ["Script-Name: /app"]
        _, environ = parse(*lines, first="GET /app/x HTTP/1.1", parser=trusted)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", "/app/x")
        lines += ["SCRIPT_NAME: /app/x"]
        _, environ = parse(*lines, first="GET /app/x HTTP/1.1", parser=trusted)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/app/x", "")


@pytest.mark.parametrize(
    ("lines", "scheme"),
    [
        (["X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: https", "X-Forwarded-SSL: on"], "https"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: ftp"], "http"),
        ([], "http"),
    ],
)
def test_a_trusted_proxy_says_the_scheme(lines: list[str], scheme: str) -> None:
    parser = HeadParser(HeadRules(), secure=FORWARDED)
    assert parse(*lines, parser=parser)[1]["wsgi.url_scheme"] == scheme
    assert parse(*lines)[1]["wsgi.url_scheme"] == "http"


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Forwarded-Proto: https", "X-Forwarded-SSL: off"],
        ["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"],
    ],
)
def test_contradictory_schemes_are_refused(lines: list[str]) -> None:
    assert status_of(*lines, parser=HeadParser(HeadRules(), secure=FORWARDED)) == 400


def test_unusual_methods_are_accepted_where_that_is_set() -> None:
    assert parse(first="BREW / HTTP/1.1")[0].method == "BREW"
    parser = HeadParser(HeadRules(any_method=True, upper_method=True))
    assert parse(first="brew / HTTP/1.1", parser=parser)[0].method == "BREW"


@pytest.mark.parametrize(
    "body",
    [
        *(b"zz\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b" 1\r\n", b"1 \r\n", b"\r\n", b"1\nab"),
        *(b"1\r\nabc", b"1\r\na\n", b"1;\r\n", b"1;=b\r\n", b'1;a="b\r\n', b"1;a b\r\n"),
        *(b"f" * 16 + b"\r\n", b"1" * 8190, b"0\r\nX: a\n\r\n\r\n", b"0\r\nX\r\n\r\n"),
        *(b"0\r\nHost: a\r\n\r\n", b"0\r\nX_A: b\r\n\r\n", b"0\r\nX: \x00\r\n\r\n"),
        *(b"0\r\n X: a\r\n\r\n", b"0\r\nX: " + b"a" * 8190 + b"\r\n\r\n"),
        *(b"0\r\n" + b"X: a\r\n" * 101 + b"\r\n", b"0\r\n" + b"X" * 40_000),
        b"1;a=" + b"b" * 8000 + b"\r\na\r\n" + (b"1;a=" + b"b" * 8000 + b"\r\na\r\n") * 2,
    ],
)
def test_a_malformed_chunked_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        ChunkedDecoder().feed(body)
    assert caught.value.problem.status in (400, 431)


@pytest.mark.parametrize("name", ["Transfer_Encoding", "Content_Length", "content_length"])
@pytest.mark.parametrize("header_map", ["dangerous", "refuse"])
def test_no_field_with_an_underscore_changes_the_framing(name: str, header_map: Any) -> None:
    head = f"POST / HTTP/1.1\r\nHost: a\r\n{name}: 5".encode()
    with pytest.raises(BadRequest):
        HeadParser(HeadRules(header_map=header_map)).parse(head, {})
