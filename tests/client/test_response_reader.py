"""The response parser as a table, without a socket."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.objects import bytes_kept, kept
from wsgigate.client.response_reader import BrokenResponse, ResponseReader
from wsgigate.http.fields import is_token

OK = b"HTTP/1.1 200 OK\r\n"
NONE = b"Content-Length: 0\r\n\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"
FINAL = OK + b"Content-Length: 2\r\n\r\nok"

HEADS: list[tuple[bytes, dict[str, Any]]] = [
    # what came: what it is
    (FINAL, {"status": 200, "version": 11, "keep": True, "complete": True, "body": b"ok"}),
    (OK + NONE, {"keep": True, "complete": True, "body": b""}),
    (OK + b"Connection: close\r\n" + NONE, {"keep": False}),
    (OK + b"Connection: x, CLOSE\r\n" + NONE, {"keep": False}),
    (OK + b"Connection: keep-alive\r\n" + NONE, {"keep": True}),
    (b"HTTP/1.0 200 OK\r\n" + NONE, {"version": 10, "keep": False, "complete": True}),
    (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n" + NONE, {"keep": False}),
    (OK + b"\r\nto the end", {"keep": False, "complete": False, "body": b"to the end"}),
    (OK + b"X: a \t \r\nY:b\r\n" + NONE, {"fields": [("X", "a"), ("Y", "b")]}),
    (b"HTTP/1.1 200 Fine\r\n" + NONE, {"reason": "Fine"}),
    (b"HTTP/1.1 200 F\x07ne\r\n" + NONE, {"reason": ""}),
    (b"HTTP/1.1 200\r\n" + NONE, {"reason": ""}),
    (OK + b"Transfer-Encoding: Chunked\r\n\r\n", {"complete": False, "keep": True}),
    (CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", {"body": b"abc", "complete": True, "keep": True}),
    (CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\n\r\n", {"body": b"ab", "complete": True, "keep": True}),
    (CHUNKED + b"2\r\nab\r\n0\r\n\r\n\r", {"body": b"ab", "complete": True, "keep": False}),
    (CHUNKED + b"2\r\nab\r\n0\r\n\r\n\r\n", {"body": b"ab", "complete": True, "keep": False}),
    (CHUNKED + b"2\r\nab\r\n0\r\n\r\n" + FINAL, {"body": b"ab", "complete": True, "keep": False}),
    (FINAL + FINAL, {"body": b"ok", "complete": True, "keep": False}),
    (b"HTTP/1.1 204 None\r\n\r\n", {"complete": True, "keep": True}),
    (b"HTTP/1.1 204 None\r\n" + NONE, {"complete": True, "keep": True}),
    (b"HTTP/1.1 204 None\r\nContent-Length: 5\r\n\r\n", {"complete": True, "keep": False}),
    (b"HTTP/1.1 204 None\r\nTransfer-Encoding: chunked\r\n\r\n", {"complete": True, "keep": False}),
    (b"HTTP/1.1 304 Same\r\nContent-Length: 5\r\n\r\n", {"complete": True, "keep": True}),
    # what an interim answer says of its body is nothing to the final one's
    (
        b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + OK + b"\r\nplain",
        {"status": 200, "body": b"plain", "complete": False},
    ),
    (b"HTTP/1.1 103 Hints\r\nContent-Length: 9\r\n\r\n" + FINAL, {"body": b"ok", "keep": True}),
    (b"HTTP/1.1 103 Hints\r\nConnection: close\r\n\r\n" + FINAL, {"body": b"ok", "keep": True}),
]


@pytest.mark.parametrize(("data", "wanted"), HEADS)
def test_a_response_has_the_status_fields_and_body_of_its_input(
    data: bytes, wanted: dict[str, Any]
) -> None:
    reader = ResponseReader("GET")
    assert reader.feed_head(data)
    fields = [field for field in reader.fields if field[0] != "Content-Length"]
    found = {name: fields if name == "fields" else getattr(reader, name) for name in wanted}
    assert found == wanted


@pytest.mark.parametrize("more", [b"", FINAL])
def test_an_unrequested_101_is_rejected(more: bytes) -> None:
    """G24: what follows would be taken for the answer."""
    asked = ResponseReader("GET", upgrade=True)
    assert asked.feed_head(SWITCHED + more)
    assert (asked.status, asked.keep, asked.complete, asked.body) == (101, False, False, more)
    with pytest.raises(BrokenResponse, match="unexpected interim response 101"):
        ResponseReader("GET").feed_head(SWITCHED + more)


def test_more_than_ten_interim_responses_are_rejected() -> None:
    """G23"""
    hints = b"HTTP/1.1 103 Hints\r\n\r\n"
    assert ResponseReader("GET").feed_head(hints * 10 + FINAL)
    with pytest.raises(BrokenResponse, match="103"):
        ResponseReader("GET").feed_head(hints * 11 + FINAL)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"HTTP/1.1 20", "the response head was cut short"),
        (b"HTTP/1.1 103 Hints\r\n\r\n", "the response head was cut short"),
        (OK + b"Content-Length: 3\r\n\r\nok", "the response was cut short"),
        (CHUNKED + b"2\r\nok\r\n0\r\n", "the response was cut short"),
        (CHUNKED + b"2\r\nok\r\nzz\r\n", "malformed chunk"),
        (OK + b"\r\nok", None),
    ],
)
def test_the_end_of_the_input_is_the_end_only_if_the_framing_allows_it(
    data: bytes, error: str | None
) -> None:
    """G01 to G06"""
    reader = ResponseReader("GET")
    reader.feed_head(data)
    assert not reader.complete
    if error is None:
        reader.feed_end()
        assert (reader.complete, reader.keep) == (True, False)
    else:
        with pytest.raises(BrokenResponse, match=error):
            reader.feed_end()
        assert not reader.complete


def test_data_before_a_malformed_chunk_is_returned_first() -> None:
    reader = ResponseReader("GET")
    assert reader.feed_head(CHUNKED)
    assert reader.feed_body(b"2\r\nok\r\nzz\r\n") == b"ok"
    with pytest.raises(BrokenResponse, match="malformed chunk"):
        reader.feed_body(b"2\r\nok\r\n")
    alone = ResponseReader("GET")
    assert alone.feed_head(CHUNKED)
    with pytest.raises(BrokenResponse, match="malformed chunk"):
        alone.feed_body(b"zz\r\n")


def test_bytes_after_the_end_leave_the_response_valid() -> None:
    """G13"""
    reader = ResponseReader("GET")
    assert reader.feed_head(CHUNKED)
    assert reader.feed_body(b"2\r\nok\r\n") == b"ok"
    assert reader.feed_body(b"0\r\n\r\n\x00\x01") == b""
    assert (reader.complete, reader.keep, reader.error) == (True, False, None)


def test_framing_between_chunks_is_limited_and_the_total_is_not() -> None:
    extended = b"2;" + b"x" * 8000 + b"\r\n"
    reader = ResponseReader("GET")
    reader.feed_head(CHUNKED)
    for _ in range(20):
        assert reader.feed_body(extended) + reader.feed_body(b"ok\r\n") == b"ok"
    endless = ResponseReader("GET")
    endless.feed_head(CHUNKED + b"2;")
    for _ in range(8):
        assert endless.feed_body(b"x" * 8000) == b""
    with pytest.raises(BrokenResponse, match="bytes of chunk extensions or trailers"):
        endless.feed_body(b"x" * 8000)


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_a_head_in_pieces_is_scanned_once(step: int) -> None:
    head = OK + b"X: " + b"y" * 30_000 + b"\r\nContent-Length: 2\r\n\r\n"
    reader = ResponseReader("GET")
    held = set()
    for at in range(0, len(head), step):
        assert reader.complete is False
        done = reader.feed_head(head[at : at + step])
        held.update(id(each) for each in kept(reader) if isinstance(each, bytearray))
        assert done is (at + step >= len(head))
    assert reader.fields[-1] == ("Content-Length", "2")
    assert reader.feed_body(b"ok") == b"ok"
    assert len(held) <= 3, "what has come is added to, not copied"


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\n", b"X: y\r\n"],
        [b"HTTP/1.1 200 OK\r\nX: y", b"\n"],
        [b"HTTP/1.1 200 OK\r\nX: y\r", b"\n\n"],
        [b"HTT", b"X"],
        [b"HTTP/1.", b"1 200 OK\r\n" + b"x" * 65_536],
    ],
)
def test_input_that_cannot_become_a_head_is_rejected_early(pieces: list[bytes]) -> None:
    reader = ResponseReader("GET")
    for piece in pieces[:-1]:
        try:
            assert reader.feed_head(piece) is False
        except BrokenResponse:
            return
    with pytest.raises(BrokenResponse):
        reader.feed_head(pieces[-1])


def test_the_cache_of_field_names_is_bounded() -> None:
    """Few and short ones, whatever an instance sends; the answer is the same for the others."""

    def read(count: int, more: bytes) -> None:
        for number in range(count):
            reader = ResponseReader("GET")
            head = b"X-%d: y\r\nConnection: close\r\n" % number + more + NONE
            assert reader.feed_head(OK + head)
            assert (reader.complete, reader.keep) == (True, False)

    few = bytes_kept(lambda: read(1024, b""))
    assert bytes_kept(lambda: read(3000, b"X-Other: z\r\n")) < 1.5 * few
    assert bytes_kept(lambda: read(100, b"X-" + b"y" * 5000 + b": z\r\n")) < 50_000


NAMES = [
    b"Content-Length",
    b"content-LENGTH",
    b"Transfer-Encoding",
    b"Connection",
    b"X",
    b"Set-Cookie",
]
ODD_NAMES = [b"", b" X", b"X ", b"X\t", b"\x85", b"\xa0X", b"(X)", b"X\x00"]
VALUES = [b"", b" ", b"5", b"05", b"close", b"chunked", b"Chunked", b"a:b", b"\x80\xff", b"a\tb"]
ODD_VALUES = [
    *(b"5, 5", b"+5", b"-1", b"0x5", b"1_0", b"5 5", b"5\xa0", b"5\x85", b"\xb2", b"9" * 20),
    *(b"gzip, chunked", b"chunked\xa0", b"\x85chunked", b"\x0bchunked", b"\x0c5", b"\x1f", b"\x7f"),
]
SEPARATORS = [b":", b": ", b":\t ", b" :", b"::", b"", b":\xa0", b":\r"]
ENDS = [b"\r\n"] * 6 + [b" \r\n", b"\t\r\n", b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\x0b\r\n"]
LINES = st.tuples(
    st.sampled_from(NAMES * 3 + ODD_NAMES),
    st.sampled_from(SEPARATORS[:3] * 4 + SEPARATORS),
    st.sampled_from(VALUES * 2 + ODD_VALUES),
    st.sampled_from(ENDS),
).map(b"".join)


def read_slowly(head: bytes) -> list[tuple[str, str]] | None:
    """Return the fields of a head as RFC 9112 section 5 has them; None when it is malformed."""
    fields = []
    for line in head.removesuffix(b"\r\n\r\n").split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        value = value.strip(b" \t")
        if not colon or not is_token(name.decode("latin-1")) or set(value) & set(b"\r\n\0"):
            return None
        fields.append((name.decode("latin-1"), value.decode("latin-1")))
    return fields


@example([b"Transfer-Encoding: chunked\xa0\r\n"])
@example([b"Content-Length: 5\xa0\r\n"])
@given(st.lists(st.one_of(LINES, st.binary(max_size=12)), max_size=5))
def test_accepted_responses_equal_those_of_a_simple_reader(lines: list[bytes]) -> None:
    """The fields are not the parser's own report: both must be sure to see the same ones."""
    head, end, _ = (OK + b"".join(lines) + b"\r\n\r\n").partition(b"\r\n\r\n")
    reader = ResponseReader("GET")
    try:
        assert reader.feed_head(head + end)
    except BrokenResponse:
        return
    fields = read_slowly(head + end)
    assert reader.fields == fields
    lengths = [value for name, value in fields if name.lower() == "content-length"]
    codings = [value.lower() for name, value in fields if name.lower() == "transfer-encoding"]
    assert len(lengths + codings) <= 1
    if lengths:
        assert re.fullmatch("[0-9]{1,19}", lengths[0])
        assert reader.complete == (int(lengths[0]) == 0)
    elif codings:
        assert codings == ["chunked"]
        assert reader.feed_body(b"2\r\nok\r\n0\r\n\r\n") == b"ok"
        assert reader.complete
    else:
        assert (reader.complete, reader.keep) == (False, False)


STATUS_LINES = [
    *(OK, b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 204 No\r\n", b"HTTP/1.1 404\r\n", b"\r\n" + OK),
    b"HTTP/1.1 103 Hints\r\nConnection: close\r\n\r\n" + OK,
]


def outcome(reader: ResponseReader, data: bytes) -> object:
    """Return all that a reader reports of *data*, of an error only that there is one."""
    try:
        final = reader.feed_head(data)
    except BrokenResponse:
        return "broken"
    return (
        *(final, reader.status, reader.version, reader.reason, getattr(reader, "fields", None)),
        *(reader.body, reader.complete, reader.keep),
    )


@example(OK, [b"Content-Length: 2\r\n"], b"ok")
@example(OK, [b"Content-Length: 2\r\n"] * 2, b"ok")
@example(OK, [b"Content-Length: 2\r\n", b"X: a\x0b\r\n"], b"ok")
@example(OK, [b"Content-Length: 3\r\n", b"Connection: keep-alive\r\n"], b"ok")
@example(OK, [b"Content-Length: 1\r\n", b"Upgrade: x\r\n", b"Connection: upgrade\r\n"], b"ok")
@given(
    st.sampled_from(STATUS_LINES[:1] * 4 + STATUS_LINES),
    st.lists(
        st.one_of(st.just(b"Content-Length: 2\r\n"), st.just(b"Connection: keep-alive\r\n"), LINES),
        max_size=5,
    ),
    st.sampled_from([b"", b"o", b"ok", b"ok\r\n"]),
)
def test_a_usual_head_is_read_as_by_the_full_path(
    line: bytes, lines: list[bytes], body: bytes
) -> None:
    """A request for another protocol always takes the full path."""
    data = line + b"".join(lines) + b"\r\n" + body
    full = ResponseReader("GET", upgrade=True)
    assert outcome(ResponseReader("GET"), data) == outcome(full, data)


@given(st.binary(max_size=3), st.integers(0, 60))
def test_a_mutated_usual_head_is_read_as_by_the_full_path(added: bytes, at: int) -> None:
    usual = OK + b"X-Y: ab c\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok"
    data = usual[:at] + added + usual[at + 1 :]
    assert outcome(ResponseReader("GET"), data) == outcome(
        ResponseReader("GET", upgrade=True), data
    )
