"""B: the syntax of lines and fields."""

from __future__ import annotations

from typing import Any

import pytest

LINE = b"GET /pub HTTP/1.1\r\nHost: a.test\r\n"

REFUSED = [
    ("B01", b"GET /pub HTTP/1.1\nHost: a.test\n\n", {400}),
    ("B02-lf", b"GET /pub HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n", {400}),
    *(
        (f"B02-{code:02x}", LINE + b"X: a" + bytes([code]) + b"b\r\n\r\n", {400})
        for code in (0x0D, 0x00, 0x07, 0x7F)
    ),
    ("B03-fold", LINE + b"X: a\r\n b\r\n\r\n", {400}),
    ("B03-first", b"GET /pub HTTP/1.1\r\n Host: a.test\r\n\r\n", {400}),
    *(
        (f"B05-{number}", LINE + line + b"\r\n\r\n", {400})
        for number, line in enumerate((b"X-A : b", b": v", b"foo", b"X-\xc3\xa9: b", b"X A: b"))
    ),
    ("B06", LINE + b"_: v\r\n\r\n", {400}),
    ("B07-count", LINE + b"X: y\r\n" * 101 + b"\r\n", {431}),
    ("B07-size", LINE + b"X: " + b"y" * 8191 + b"\r\n\r\n", {431}),
    ("B07-cookie", LINE + b"Cookie: " + b"y" * 32768 + b"\r\n\r\n", {431}),
    ("B07-line", b"GET /pub/" + b"x" * 8190 + b" HTTP/1.1\r\nHost: a.test\r\n\r\n", {414}),
    *(
        (f"B08-{number}", line + b"\r\nHost: a.test\r\n\r\n", {400, 505})
        for number, line in enumerate(
            (
                b"GET  /pub HTTP/1.1",
                b"GET\t/pub HTTP/1.1",
                b"GET /pub HTTP/1.1 ",
                b"GET /pub",
                b"GET /pub HTTP/2.0",
                b"GET /pub http/1.1",
            )
        )
    ),
    ("B09", b"GET /pub HTTP/1.2\r\nHost: a.test\r\n\r\n", {505}),
]


@pytest.mark.parametrize(
    ("data", "statuses"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_a_malformed_head_goes_nowhere(data: bytes, statuses: set[int], gate: Any) -> None:
    gate.refused(data, *statuses)


def test_bytes_of_a_value_pass_unchanged(gate: Any) -> None:
    """B10"""
    request, _ = gate.passed(LINE + b"X-Raw: \xff\xe9\r\n\r\n")
    assert b"X-Raw: \xff\xe9\r\n" in request.head


@pytest.mark.parametrize("sub", ["7\r\nX-Evil: 1", "7\x00", "7\x85", " 7", "7" * 5000])
def test_a_claim_that_is_no_field_value_is_not_forwarded(sub: str, gate: Any) -> None:
    """B11: the token is refused as a whole, or the request with it."""
    token = gate.mint(sub)
    gate.refused(gate.raw("/api/x", f"Authorization: Bearer {token}"), 401, 403)


def test_a_claim_beyond_ascii_is_forwarded_as_utf_8(gate: Any) -> None:
    """Also where a byte of it would be a line break as a character: U+00C5 has the byte 85."""
    token = gate.mint("Å € 7")
    request, _ = gate.passed(gate.raw("/api/x", f"Authorization: Bearer {token}"))
    assert b"X-User-Id: \xc3\x85 \xe2\x82\xac 7\r\n" in request.head
