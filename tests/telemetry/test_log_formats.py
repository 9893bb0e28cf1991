"""Each format of the access log is one line that its readers parse back, whatever the values."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.telemetry.test_access_log import HOSTILE, PLAIN
from wsgigate.http.wsgi import ATTEMPTS, CLAIMS, TUNNELLED, UPSTREAM_SECONDS
from wsgigate.telemetry.access_log import LONGEST, LineFormat, Record
from wsgigate.telemetry.log_formats import (
    DEFAULTS,
    FIELDS,
    CombinedLines,
    LogfmtLines,
    SelectedJson,
    SelectedText,
    Selection,
)

ENVIRON: dict[str, Any] = {
    "REQUEST_METHOD": "GET",
    "QUERY_STRING": "page=2&access_token=s3cret",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "CONTENT_LENGTH": "12",
    "HTTP_HOST": "shop.example",
    "HTTP_USER_AGENT": "curl/8",
    "HTTP_REFERER": "https://user:s3cret@a.test/x?code=s3cret&b=1#frag",
    "HTTP_AUTHORIZATION": "Bearer s3cret",
    "HTTP_ACCEPT": "text/html",
    "wsgi.url_scheme": "https",
    ATTEMPTS: 2,
    UPSTREAM_SECONDS: 0.01,
    CLAIMS: {"tenant": "acme", "realm": {"roles": ["a", "b"]}, "client_secret": "s3cret"},
}

FULL = PLAIN._replace(
    trace_id="4bf92f3577b34da6a3ce929d0e0e4736",
    span_id="00f067aa0ba902b7",
    environ=ENVIRON,
    head=[("Content-Type", "text/html"), ("Set-Cookie", "a=s3cret"), ("X-A", "1"), ("x-a", "2")],
    route="orders",
    service="orders",
    subject="u1",
)


def read_logfmt(line: str) -> dict[str, Any]:
    """Parse a line as readers of logfmt do: quoted values are JSON texts."""
    pair = re.compile(r'([^\s="]+)=("(?:[^"\\]|\\.)*"|[^\s="]*)(?: |$)')
    found, place = {}, 0
    while place < len(line):
        match = pair.match(line, place)
        assert match, line[place:]
        name, value = match.groups()
        assert name not in found
        found[name] = json.loads(value) if value.startswith('"') else value
        place = match.end()
    return found


COMBINED = re.compile(
    r'(?P<client>[^ ]+) - (?P<subject>[^ ]+) \[(?P<time>[^\]]+)\] "(?P<request>(?:[^"\\]|\\.)*)" '
    r'(?P<status>\d{3}|-) (?P<bytes>\d+|-) "(?P<referer>(?:[^"\\]|\\.)*)" '
    r'"(?P<agent>(?:[^"\\]|\\.)*)"'
)


def one(lines: LineFormat, record: Record = FULL) -> str:
    """Return the line of *record* without its end; it is one line of printable ASCII."""
    line = lines.line(record)
    assert len(line) <= LONGEST
    text = line.decode("ascii")
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert text.splitlines() == [text[:-1]]
    return text[:-1]


def selected(*names: str, preset: str = "", redact: Any = ()) -> dict[str, Any]:
    selection = Selection(names, preset=preset, redact=redact)
    found: dict[str, Any] = json.loads(one(SelectedJson(selection, nulls=not preset)))
    return found


def test_fields_are_in_the_order_in_which_they_are_given() -> None:
    assert list(selected("status", "time", "user_agent").items()) == [
        ("status", 200),
        ("time", "2025-06-15T15:06:40.123Z"),
        ("user_agent", "curl/8"),
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("method", "GET"),
        ("path", "/users/7"),
        ("query", "page=2&access_token=***"),
        ("protocol", "HTTP/1.1"),
        ("scheme", "https"),
        ("host", "shop.example"),
        ("tls", True),
        ("referer", "https://a.test/x?code=***&b=1"),
        ("bytes", 1234),
        ("bytes_in", 12),
        ("duration_ms", 12.346),
        ("upstream_ms", 10.0),
        ("gateway_ms", 2.346),
        ("attempts", 2),
        ("level", "INFO"),
        ("message", "GET /users/7 200"),
        ("trace_id", FULL.trace_id),
        ("span_id", FULL.span_id),
        ("reason", None),
        ("aborted", None),
        ("request.Accept", "text/html"),
        ("request.Authorization", "***"),
        ("request.X-Absent", None),
        ("response.content-type", "text/html"),
        ("response.Set-Cookie", "***"),
        ("response.X-A", "1, 2"),
        ("claim.tenant", "acme"),
        ("claim.realm.roles", ["a", "b"]),
        ("claim.client_secret", "***"),
        ("claim.absent", None),
    ],
)
def test_each_field_has_its_value(name: str, value: object) -> None:
    assert selected(name) == {name: value}


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        ({}, "bytes_in", None),
        ({"CONTENT_LENGTH": "²"}, "bytes_in", None),
        ({"CONTENT_LENGTH": "9" * 30}, "bytes_in", None),
        ({TUNNELLED: (7, 9)}, "bytes_in", 7),
        ({}, "gateway_ms", 12.346),
        ({}, "query", None),
        ({}, "tls", False),
    ],
)
def test_what_is_missing_or_malformed(environ: Any, name: str, value: object) -> None:
    lines = SelectedJson(Selection([name]), nulls=True)
    assert json.loads(one(lines, FULL._replace(environ=environ))) == {name: value}


def test_names_to_mask_can_be_added() -> None:
    fields = selected(
        "claim.tenant", "request.Accept", "query", redact=["tenant", "accept", "Page"]
    )
    assert fields == {
        "claim.tenant": "***",
        "request.Accept": "***",
        "query": "page=***&access_token=***",
    }


def test_the_names_of_opentelemetry() -> None:
    found = selected(*DEFAULTS["otel"], "request.Accept", preset="otel")
    assert found == {
        "timestamp": "2025-06-15T15:06:40.123Z",
        "severity_text": "INFO",
        "body": "GET /users/7 200",
        "wsgigate.request_id": "r1",
        "trace_id": FULL.trace_id,
        "span_id": FULL.span_id,
        "client.address": "192.0.2.1",
        "http.request.method": "GET",
        "url.path": "/users/7",
        "url.query": "page=2&access_token=***",
        "url.scheme": "https",
        "server.address": "shop.example",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "http.response.status_code": 200,
        "http.response.body.size": 1234,
        "http.request.body.size": 12,
        "http.server.request.duration": 0.012346,
        "wsgigate.upstream_ms": 10.0,
        "wsgigate.gateway_ms": 2.346,
        "wsgigate.attempts": 2,
        "http.route": "orders",
        "wsgigate.service": "orders",
        "user.id": "u1",
        "http.request.header.accept": "text/html",
    }
    odd = SelectedJson(Selection(["method"], preset="otel"), nulls=False)
    assert json.loads(one(odd, FULL._replace(method="BREW"))) == {"http.request.method": "_OTHER"}


def test_the_names_of_elastic_common_schema() -> None:
    found = selected(*DEFAULTS["ecs"], preset="ecs")
    assert found["@timestamp"] == "2025-06-15T15:06:40.123Z"
    assert found["log.level"] == "info"
    assert (found["ecs.version"], found["event.category"]) == ("8.17.0", ["web"])
    assert found["event.duration"] == 12_346_000
    assert (found["trace.id"], found["http.request.id"]) == (FULL.trace_id, "r1")
    assert (found["http.response.status_code"], found["http.version"]) == (200, "1.1")
    assert found["http.request.referrer"] == "https://a.test/x?code=***&b=1"
    assert found["tls.established"] is True


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["colour"], "fields: unknown field 'colour'; known are time, level, message, request_id"),
        (["request."], "fields: unknown field 'request.'"),
        (["request.a b"], "fields: unknown field"),
        (["claim."], "fields: unknown field"),
        (["claim.a..b"], "fields: claim.a..b: "),
        (["status", "status"], "fields: status is given twice"),
        (["status"] * 65, "fields: at most 64 fields, got 65"),
    ],
)
def test_wrong_fields_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Selection(names)


MAKES = [
    lambda: SelectedJson(Selection(list(FIELDS)), nulls=True),
    lambda: SelectedJson(Selection(DEFAULTS["otel"], preset="otel"), nulls=False),
    lambda: SelectedJson(Selection(DEFAULTS["ecs"], preset="ecs"), nulls=False),
    lambda: LogfmtLines(Selection([*FIELDS, "request.Accept", "claim.tenant", "response.X-A"])),
    CombinedLines,
    lambda: SelectedText(Selection(["user_agent", "claim.tenant"]), "ascii", colour=False),
]

PLACES = [
    *("request_id", "client", "method", "target", "path", "route", "service", "instance"),
    *("subject", "reason", "error", "shaped", "rule", "trace_id", "span_id"),
    *("QUERY_STRING", "SERVER_PROTOCOL", "HTTP_HOST", "HTTP_USER_AGENT", "HTTP_REFERER"),
    *("HTTP_ACCEPT", "CONTENT_LENGTH", CLAIMS, "head"),
]


def with_value(place: str, value: str) -> Record:
    """Return a record that has *value* at *place*."""
    if place == "head":
        return FULL._replace(head=[("X-A", value)])
    if place == CLAIMS:
        return FULL._replace(environ={**ENVIRON, CLAIMS: {"tenant": value}})
    if hasattr(FULL, place):
        record = FULL._replace(**{place: value})
        return record._replace(target=None) if place == "path" else record
    return FULL._replace(environ={**ENVIRON, place: value})


def parsed(line: str) -> None:
    """Parse *line* by a reader of its format."""
    if line.startswith("{"):
        assert isinstance(json.loads(line), dict)
    elif " - " in line and COMBINED.fullmatch(line):
        return
    elif line.startswith("time="):
        assert read_logfmt(line)["status"] == "200"
    else:
        assert re.match(r"2025-06-15T\S+ 200 ", line)


@pytest.mark.parametrize("make", MAKES)
def test_no_value_can_forge_a_line(make: Any) -> None:
    """L01, L02, L04, L08."""
    lines = make()
    for place in PLACES:
        for value in HOSTILE:
            parsed(one(lines, with_value(place, value)))


@given(place=st.sampled_from(PLACES), value=st.text(st.characters(), max_size=2000))
@pytest.mark.parametrize("make", MAKES)
def test_every_line_parses_back(make: Any, place: str, value: str) -> None:
    parsed(one(make(), with_value(place, value)))


def test_logfmt_reads_back_as_it_was() -> None:
    lines = LogfmtLines(Selection(["method", "subject", "status", "reason", "user_agent"]))
    hostile = 'a "b" c=d \\ e\nf'
    environ = {"HTTP_USER_AGENT": ""}
    line = one(lines, FULL._replace(subject=hostile, environ=environ))
    assert read_logfmt(line) == {
        "method": "GET",
        "subject": hostile,
        "status": "200",
        "user_agent": "",
    }


def test_combined_is_what_apache_writes() -> None:
    assert one(CombinedLines()) == (
        '192.0.2.1 - u1 [15/Jun/2025:15:06:40 +0000] "GET /users/7?page=2&access_token=*** '
        'HTTP/1.1" 200 1234 "https://a.test/x?code=***&b=1" "curl/8"'
    )
    hostile = FULL._replace(
        subject="a b", environ={**ENVIRON, "HTTP_USER_AGENT": 'x" 200 "\\\r\n\xff\u2028'}
    )
    found = COMBINED.fullmatch(one(CombinedLines(), hostile))
    assert found
    assert found["subject"] == "a\\x20b"
    assert found["agent"] == r"x\" 200 \"\\\x0d\x0a\xff\xe2\x80\xa8"


@pytest.mark.parametrize("make", MAKES)
def test_more_fields_than_a_line_has_room_for(make: Any) -> None:
    names = [f"request.X-{number}-{'n' * 60}" for number in range(64)]
    environ = {
        **ENVIRON,
        **{f"HTTP_X_{number}_{'N' * 60}": "\x7f" * 3000 for number in range(64)},
    }
    for lines in (
        SelectedJson(Selection(names), nulls=True),
        LogfmtLines(Selection(names)),
        SelectedText(Selection(names), "ascii", colour=False),
    ):
        line = one(lines, FULL._replace(environ=environ))
        if line.startswith("{"):
            assert json.loads(line)["truncated"] is True
    long = dict.fromkeys(PLACES[-8:-2], "\x01" * 5000)
    parsed(one(make(), FULL._replace(environ={**ENVIRON, **long}, reason="\x01" * 9999)))


@pytest.mark.parametrize("make", MAKES)
def test_the_number_of_dropped_records_has_a_line(make: Any) -> None:
    assert b"7" in make().dropped(1_750_000_000.0, 7)
