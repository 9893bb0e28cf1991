"""A record of the access log is one line, whatever its values contain."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.objects import bytes_kept
from wsgigate.telemetry.access_log import LONGEST, JsonLines, Record, TextLines

PLAIN = Record(
    time=1_750_000_000.1239,
    request_id="r1",
    client="192.0.2.1",
    method="GET",
    target="/users/7?token=secret",
    path="",
    status="200 OK",
    bytes=1234,
    duration=0.0123456,
    route=None,
    service=None,
    instance=None,
    subject=None,
    reason=None,
    error=None,
    aborted=False,
)

HOSTILE = [
    "%0d%0aFAKE LINE",
    "a\r\nFAKE LINE",
    "a\nb",
    "\x1b[31mred\x1b[0m",
    "a\x85b",
    "a\u2028b\u2029c",
    "a\x9b31mb",
    "\x00\x07\x7f",
    "\ud800",
    "\u202eevil",
    "a\U000e0001b",
    "\xff\xfe",
    '"},{"x":"',
    "back\\slash \\x0a",
    "x status=500 subject=admin",
    "é" * 10_000,
    "\x00" * 10_000,
]


def test_a_record_as_json():
    line = JsonLines().line(PLAIN)
    assert line == (
        b'{"time":"2025-06-15T15:06:40.123Z","request_id":"r1","client":"192.0.2.1",'
        b'"method":"GET","path":"/users/7","status":200,"bytes":1234,"duration_ms":12.346,'
        b'"route":null,"service":null,"instance":null,"subject":null}\n'
    )


def test_optional_members_come_last():
    record = PLAIN._replace(
        reason="over quota",
        error="OSError",
        aborted=True,
        subject="u1",
        shaped="split=b",
        rule="write orders",
    )
    assert list(json.loads(JsonLines().line(record)).items())[-6:] == [
        ("subject", "u1"),
        ("shaped", "split=b"),
        ("rule", "write orders"),
        ("reason", "over quota"),
        ("error", "OSError"),
        ("aborted", True),
    ]


def test_a_record_as_text():
    record = PLAIN._replace(
        service="users", subject="u1", aborted=True, shaped="split=users fallback=stale"
    )
    assert TextLines().line(record).decode() == (
        "2025-06-15T15:06:40.123Z 200      12.3ms      1234B 192.0.2.1       GET     /users/7"
        ' service=users subject=u1 request_id=r1 shaped="split=users fallback=stale" aborted\n'
    )


@pytest.mark.parametrize(
    ("status", "colour"), [("200 OK", 32), ("304 X", 36), ("404 X", 33), ("503 X", 31)]
)
def test_the_status_is_coloured_by_its_class(status, colour):
    line = TextLines(colour=True).line(PLAIN._replace(status=status)).decode()
    assert f" \x1b[{colour}m{status[:3]}\x1b[0m " in line
    assert "\x1b" not in TextLines().line(PLAIN._replace(status=status)).decode()


@pytest.mark.parametrize("status", ["", "2O0", "²00", "20", "099 X", "abc"])
def test_a_malformed_status_is_logged_as_none(status):
    assert json.loads(JsonLines().line(PLAIN._replace(status=status)))["status"] is None
    assert b" --- " in TextLines(colour=True).line(PLAIN._replace(status=status))


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize(
    "field", ["request_id", "client", "method", "target", "path", "route", "service", "instance",
              "subject", "reason", "error", "shaped", "rule"]
)  # fmt: skip
@pytest.mark.parametrize("make", [JsonLines, TextLines, lambda: TextLines("ascii", colour=True)])
def test_no_value_can_forge_a_line(make, field, value):
    """L01, L02, L08."""
    record = PLAIN._replace(**{field: value})
    if field == "path":
        record = record._replace(target=None)
    line = make().line(record)
    assert len(line) <= LONGEST
    text = line.decode().replace("\x1b[32m", "", 1).replace("\x1b[0m", "", 1)
    assert text.endswith("\n")
    body = text[:-1]
    assert body.isprintable()
    assert body.splitlines() == [body]
    unquoted = re.sub(r'"[^"]*"', '""', body)  # a reason is words, so it stands in quotes
    assert " status=500" not in unquoted or line.startswith(b"{")
    if line.startswith(b"{"):
        assert line.isascii()
        assert list(json.loads(line))[:4] == ["time", "request_id", "client", "method"]


def test_methods_that_clients_invent_are_not_cached():
    lines = JsonLines()

    def cached(method: str) -> int:
        return bytes_kept(
            lambda: [lines.line(PLAIN._replace(method=method % number)) for number in range(2000)]
        )

    line = lines.line(PLAIN._replace(method="M" * 21))
    assert json.loads(line)["method"] == "M" * 21
    assert cached(f"{'M' * 16}%04d") < 50_000


def test_control_characters_are_escaped():
    record = PLAIN._replace(subject="a\r\n\x1b\x85\u2028\\ z\U000e0001")
    escaped = rb"a\x0d\x0a\x1b\x85\u2028\x5c\x20z\U000e0001"
    assert b"subject=" + escaped + b" " in TextLines().line(record)
    reasoned = PLAIN._replace(reason='not "a"\n\\ reason')
    assert rb'reason="not \x22a\x22\x0a\x5c reason"' in TextLines().line(reasoned)


def test_letters_of_all_scripts_are_left_to_read():
    assert "subject=José李 ".encode() in TextLines().line(PLAIN._replace(subject="José李"))
    assert rb"subject=Jos\xe9\u674e " in TextLines("ascii").line(PLAIN._replace(subject="José李"))


def test_long_values_are_truncated():
    """L04."""
    record = PLAIN._replace(subject="x" * 513)
    assert json.loads(JsonLines().line(record))["subject"] == "x" * 511 + "…"
    record = PLAIN._replace(subject="x" * 512)
    assert json.loads(JsonLines().line(record))["subject"] == "x" * 512


def test_a_value_that_is_no_text_is_written_as_text():
    record = PLAIN._replace(subject=["a", 7])
    assert json.loads(JsonLines().line(record))["subject"] == "['a', 7]"


@pytest.mark.parametrize(
    ("target", "path", "logged"),
    [
        ("/a/b?token=x", "", "/a/b"),
        ("/a#access_token=x", "", "/a"),
        ("/a#b?c", "", "/a"),
        ("/%0d%0a/%zz", "", "/%0d%0a/%zz"),
        ("//a", "", "//a"),
        ("http://u:password@h.test/a/b?c", "", "/a/b"),
        ("http://h.test", "", "/"),
        ("http://h.test?token=x", "", "/"),
        ("/redirect/http://h.test/", "", "/redirect/http://h.test/"),
        ("*", "", "*"),
        ("h.test:443", "", "h.test:443"),
        (None, "/a/b", "/a/b"),
        (None, "/a b?c\r\n", "/a%20b%3Fc%0D%0A"),
        (None, "/caf\xc3\xa9", "/caf%C3%A9"),
        (None, "/a%2f", "/a%252f"),
        (None, "", ""),
        ("", "/x", "/x"),
        (None, "/\u20ac", "/%3F"),
    ],
)
def test_the_logged_path_has_no_query_and_no_authority(target, path, logged):
    """L03: the query and an authority may hold secrets."""
    line = JsonLines().line(PLAIN._replace(target=target, path=path))
    assert json.loads(line)["path"] == logged


@pytest.mark.parametrize("now", [0.0, 0.9999, 1.0, 1_750_000_000.0004, 4_102_444_799.9996])
def test_times_are_in_utc_and_truncated_to_milliseconds(now):
    lines = JsonLines()
    lines.line(PLAIN)  # whatever second it remembers
    written = json.loads(lines.line(PLAIN._replace(time=now)))["time"]
    expected = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(int(now)))
    assert written == f"{expected}.{int(now * 1000) % 1000:03d}Z"


def test_the_number_of_lost_records_is_logged():
    assert json.loads(JsonLines().dropped(1.5, 7)) == {
        "time": "1970-01-01T00:00:01.500Z",
        "event": "log records dropped",
        "count": 7,
    }
    assert TextLines().dropped(1.5, 7) == b"1970-01-01T00:00:01.500Z --- log records dropped: 7\n"


texts = st.text(max_size=600)


@given(st.lists(texts, min_size=13, max_size=13))
def test_any_record_is_one_line_of_valid_json(values):
    names = ("request_id", "client", "method", "target", "path", "route", "service", "instance",
             "subject", "reason", "error", "shaped", "rule")  # fmt: skip
    record = PLAIN._replace(**dict(zip(names, values, strict=True)))
    line = JsonLines().line(record)
    assert line.isascii()
    assert len(line) <= LONGEST
    assert line.count(b"\n") == 1
    assert json.loads(line)["status"] == 200
    text = TextLines().line(record)
    assert len(text) <= LONGEST
    assert text.decode()[:-1].isprintable()
