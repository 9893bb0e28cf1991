"""A: request framing and smuggling."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.sockets import read_to_end
from wsgigate.testing.backend import reply

HEAD = b"POST /pub HTTP/1.1\r\nHost: a.test\r\n"


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return HEAD + b"".join(field + b"\r\n" for field in fields) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"

REFUSED = [
    ("A01", post(b"Content-Length: 6", CHUNKED, body=b"0\r\n\r\nG"), {400}),
    ("A01-0", post(b"Content-Length: 0", CHUNKED, body=b"0\r\n\r\n"), {400}),
    ("A02", post(CHUNKED, b"Content-Length: 4", body=b"5c\r\nGPOST / HTTP/1.1\r\n\r\n"), {400}),
    ("A03-same", post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), {400}),
    ("A03-other", post(b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), {400}),
    ("A03-list", post(b"Content-Length: 3, 3", body=b"abc"), {400}),
    *(
        (f"A04-{number}", post(b"Content-Length: " + value, body=b"abc"), {400})
        for number, value in enumerate((b"+3", b"-1", b"0x3", b"", b"1_0", b"1 0", b"\xb2"))
    ),
    ("A06", post(b"Content-Length: 1" + b"0" * 23), {413, 400}),
    ("A07", post(b"Content-Length: 1025", body=b"x" * 1025), {413}),
    *(
        (f"A08-{number}", post(b"Transfer-Encoding: " + value, body=b"0\r\n\r\n"), {400, 501})
        for number, value in enumerate(
            (b"xchunked", b'"chunked"', b"\x0bchunked", b"", b"chunked, identity", b"gzip")
        )
    ),
    ("A08-twice", post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), {400, 501}),
    ("A09-gzip", post(CHUNKED.replace(b"ch", b"gzip, ch"), body=b"0\r\n\r\n"), {501}),
    ("A09-identity", post(CHUNKED.replace(b"ch", b"identity, ch"), body=b"0\r\n\r\n"), {501}),
    ("A10", post(CHUNKED, body=b"0\r\n\r\n").replace(b"1.1", b"1.0", 1), {400}),
    (
        "A10-length",
        post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n").replace(b"1.1", b"1.0", 1),
        {400},
    ),
    ("A19", post(b"Transfer_Encoding: chunked", b"Content-Length: 5", body=b"abcde"), {400}),
    ("A21", post(b"Expect: 200-ok", b"Content-Length: 3", body=b"abc"), {417}),
]


@pytest.mark.parametrize(
    ("data", "statuses"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_ambiguous_framing_goes_nowhere(data: bytes, statuses: set[int], gate: Any) -> None:
    """A19: an underscore in a field's name is refused, where the catalogue has it dropped."""
    gate.refused(data, *statuses)


def test_a_length_is_plain_digits(gate: Any) -> None:
    """A05"""
    request, _ = gate.passed(post(b"Content-Length: 003", body=b"abc"))
    assert (request.value("Content-Length"), request.body) == ("3", b"abc")


def test_a_body_of_just_the_limit_passes(gate: Any) -> None:
    """A07"""
    request, _ = gate.passed(post(b"Content-Length: 1024", body=b"x" * 1024))
    assert request.complete


def test_chunks_pass_without_their_extensions(gate: Any) -> None:
    """A11"""
    request, _ = gate.passed(post(CHUNKED, body=b"3;a=b\r\nabc\r\n0\r\n\r\n"))
    assert (request.body, request.complete) == (b"abc", True)
    assert b"a=b" not in request.head


BROKEN = [
    *(b"zz\r\nabc", b"-3\r\nabc", b"+3\r\nabc", b"0x3\r\nabc", b" 3\r\nabc", b"3 \r\nabcX"),
    *(b"3\r\nabcd\r\n0\r\n\r\n", b"3\r\nabc", b"5\r\nab"),
]


@pytest.mark.parametrize("body", BROKEN)
def test_broken_chunks_are_never_completed(body: bytes, gate: Any) -> None:
    """A12, A16"""
    aborted(gate, post(CHUNKED, body=body))


def test_a_body_that_ends_early_is_never_completed(gate: Any) -> None:
    """A15"""
    aborted(gate, post(b"Content-Length: 100", body=b"0123456789"))


def aborted(gate: Any, data: bytes) -> None:
    before = len(gate.backend.requests)
    answer = gate.ask(data, end=True)
    assert answer.status == 400, answer
    assert not any(request.complete for request in gate.backend.requests[before:])


@pytest.mark.parametrize("body", [b"10000000000000003\r\n", b"1\r\nx\r\n" * 1100])
def test_chunks_without_end_are_refused_at_the_limit(body: bytes, gate: Any) -> None:
    """A13"""
    before = len(gate.backend.requests)
    answer = gate.ask(post(CHUNKED, body=body), end=True)
    assert answer.status in (400, 413), answer
    assert not any(request.complete for request in gate.backend.requests[before:])


def test_a_trailer_is_no_field(gate: Any) -> None:
    """A14"""
    request, _ = gate.passed(post(CHUNKED, body=b"3\r\nabc\r\n0\r\nX-User-Id: evil\r\n\r\n"))
    assert b"evil" not in request.head


@pytest.mark.parametrize("trailer", [b"Authorization: x", b"Transfer-Encoding: x", b"Host: x"])
def test_a_forbidden_trailer_is_refused(trailer: bytes, gate: Any) -> None:
    """A14"""
    before = len(gate.backend.requests)
    answer = gate.ask(post(CHUNKED, body=b"3\r\nabc\r\n0\r\n" + trailer + b"\r\n\r\n"))
    assert answer.status == 400, answer
    assert not any(request.complete for request in gate.backend.requests[before:])


def test_an_unread_body_is_not_the_next_request(gate: Any) -> None:
    """A17"""
    inner = b"GET /api/admin HTTP/1.1\r\nHost: a.test\r\n\r\n"
    first = gate.raw("/api", f"Content-Length: {len(inner)}", method="POST", body=inner)
    before, seen = len(gate.log()), len(gate.backend.requests)
    with gate.connect() as sock:
        sock.sendall(first + gate.raw("/pub/next", "Connection: close"))
        data = read_to_end(sock)
    statuses = re.findall(rb"HTTP/1\.1 (\d{3})", data)
    assert statuses in ([b"401", b"200"], [b"401"]), data
    gate.settled(before, len(statuses))
    targets = [request.target for request in gate.backend.requests[seen:]]
    assert targets == ["/pub/next"][: len(statuses) - 1]


def test_pipelined_requests_are_answered_in_order(gate: Any) -> None:
    """A18"""
    gate.backend.answers = [lambda sock, got: sock.sendall(reply(got.target.encode() + got.body))]
    before = len(gate.log())
    with gate.connect() as sock:
        sock.sendall(
            gate.raw("/pub/1", "Content-Length: 3", method="POST", body=b"abc")
            + gate.raw("/pub/2")
            + gate.raw("/pub/3", "Connection: close")
        )
        data = read_to_end(sock)
    assert re.findall(rb"\r\n\r\n(/pub/\d(?:abc)?)", data) == [b"/pub/1abc", b"/pub/2", b"/pub/3"]
    gate.settled(before, 3)


def test_expect_is_answered_and_goes_no_further(gate: Any) -> None:
    """A20"""
    before = len(gate.log())
    with gate.connect() as sock:
        sock.sendall(post(b"Expect: 100-continue", b"Content-Length: 3", b"Connection: close"))
        assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"abc")
        assert sock.recv(12) == b"HTTP/1.1 200"
        read_to_end(sock)
    gate.settled(before, 1)
    request = gate.backend.requests[-1]
    assert request.value("Expect") is None
    assert request.body == b"abc"


@pytest.mark.parametrize(
    ("data", "framing"),
    [
        (b"GET /pub HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", ("3", None)),
        (
            post(CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n").replace(b"POST", b"DELETE"),
            (None, "chunked"),
        ),
        (post(b"Content-Length: 3", body=b"abc"), ("3", None)),
        (post(CHUNKED, body=b"3\r\nabc\r\n0\r\n\r\n"), (None, "chunked")),
    ],
)
def test_a_body_is_forwarded_with_one_framing(
    data: bytes, framing: tuple[str | None, str | None], gate: Any
) -> None:
    """A22, A24"""
    request, _ = gate.passed(data)
    assert (request.value("Content-Length"), request.value("Transfer-Encoding")) == framing
    assert (request.body, request.complete) == (b"abc", True)


def test_a_post_without_a_body_has_a_length_of_zero(gate: Any) -> None:
    """A23"""
    request, _ = gate.passed(post())
    assert request.value("Content-Length") == "0"


def mutants() -> list[bytes]:
    """Return spellings of Transfer-Encoding that some parser takes for it and another does not."""
    odd = [bytes([code]) for code in (*range(0x01, 0x21), 0x7F, 0x85, 0xA0, 0xFF)]
    names = [b"Transfer-Encoding", b"transfer-encoding", b"TRANSFER-ENCODING"]
    lines = [name + colon + b"chunked" for name in names for colon in (b":", b": ", b":\t")]
    for byte in odd:
        lines += [
            byte + b"Transfer-Encoding: chunked",
            b"Transfer-Encoding" + byte + b": chunked",
            b"Transfer-Encoding:" + byte + b"chunked",
            b"Transfer-Encoding: chunked" + byte,
            b"Transfer-Encoding: chunked," + byte,
            b"X: x" + byte + b"Transfer-Encoding: chunked",
            b"Transfer" + byte + b"Encoding: chunked",
        ]
    return lines


def test_no_spelling_of_chunked_hides_beside_a_length(gate: Any) -> None:
    """A25: either it is refused, or what arrives is what the length says and no more."""
    gate.backend.answers = [reply(b"ok")]
    body = b"0\r\n\r\nGET /api/admin HTTP/1.1\r\nHost: a\r\n\r\n"
    for line in mutants():
        seen = len(gate.backend.requests)
        data = post(b"Content-Length: %d" % len(body), line, b"Connection: close", body=body)
        with gate.connect() as sock:
            sock.sendall(data)
            answer = read_to_end(sock)
        arrived = gate.backend.requests[seen:]
        if answer.startswith(b"HTTP/1.1 200"):
            assert [request.body for request in arrived] == [body], line
            assert arrived[0].values("Transfer-Encoding") == [], line
        else:
            assert re.match(rb"HTTP/1\.1 [45]", answer), (line, answer)
            assert arrived == [], line
        assert answer.count(b"HTTP/1.1 ") == 1, line
