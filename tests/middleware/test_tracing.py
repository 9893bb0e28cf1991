"""Whose trace is continued, what is sampled, and what the app and services get of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider

from wsgigate.http.wsgi import PEER_TRUSTED, TRACE
from wsgigate.middleware.tracing import Tracing
from wsgigate.testing import check_middleware
from wsgigate.testing.fakes import Server, new_environ

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

SENT = f"00-{TRACE_ID}-{SPAN_ID}-"


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"served"]


def seen(fields: dict[str, str] | None = None, trusted: bool = False, **options: Any) -> dict:
    """Return the environ that the app gets, for a client that sends *fields*."""
    environ = new_environ()
    environ.update({f"HTTP_{name}": value for name, value in (fields or {}).items()})
    if trusted:
        environ[PEER_TRUSTED] = True
    server = Server().serve(Tracing(app, **options), environ)
    assert b"".join(server.chunks) == b"served"
    return environ


def test_a_trace_begins_here() -> None:
    environ = seen()
    trace = environ[TRACE]
    assert re.fullmatch("[0-9a-f]{32}", trace.trace_id)
    assert re.fullmatch("[0-9a-f]{16}", trace.span_id)
    assert environ["HTTP_TRACEPARENT"] == f"00-{trace.trace_id}-{trace.span_id}-03"
    assert trace.parent is None


def test_each_request_has_ids_of_its_own() -> None:
    made = [seen()[TRACE] for _ in range(100)]
    assert len({trace.trace_id for trace in made}) == 100
    assert len({trace.span_id for trace in made}) == 100


def test_the_trace_of_a_client_is_continued_with_a_span_of_the_gateway() -> None:
    environ = seen({"TRACEPARENT": SENT + "01", "TRACESTATE": "a=1, b=2", "BAGGAGE": "user=7;p"})
    trace = environ[TRACE]
    assert trace.trace_id == TRACE_ID
    assert trace.span_id != SPAN_ID
    assert trace.parent.span_id == SPAN_ID
    assert environ["HTTP_TRACEPARENT"] == f"00-{TRACE_ID}-{trace.span_id}-01"
    assert environ["HTTP_TRACESTATE"] == "a=1,b=2"
    assert environ["HTTP_BAGGAGE"] == "user=7;p"


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "nonsense",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"{SENT}01-more",
        f"{SENT}01,{SENT}01",
        f"{SENT}01\r\nX-Admin: 1",
    ],
)
def test_a_malformed_context_begins_a_new_trace(sent: str) -> None:
    environ = seen({"TRACEPARENT": sent, "TRACESTATE": "a=1"})
    assert environ[TRACE].trace_id != TRACE_ID
    assert environ[TRACE].parent is None
    assert "HTTP_TRACESTATE" not in environ
    assert environ["HTTP_TRACEPARENT"].count("-") == 3


@pytest.mark.parametrize("field", ["TRACESTATE", "BAGGAGE"])
def test_a_client_cannot_make_the_fields_grow(field: str) -> None:
    environ = seen({"TRACEPARENT": SENT + "01", field: ",".join(f"k{n}=v" for n in range(5000))})
    assert f"HTTP_{field}" not in environ


@pytest.mark.parametrize(
    ("accept", "trusted", "continued"),
    [
        ("always", False, True),
        ("always", True, True),
        ("trusted", False, False),
        ("trusted", True, True),
        ("never", False, False),
        ("never", True, False),
    ],
)
def test_whose_trace_is_continued(accept: str, trusted: bool, continued: bool) -> None:
    environ = seen({"TRACEPARENT": SENT + "01", "TRACESTATE": "a=1"}, trusted, accept=accept)
    trace = environ[TRACE]
    assert (trace.trace_id == TRACE_ID) is continued
    assert ("HTTP_TRACESTATE" in environ) is continued
    if not continued:
        assert (trace.link.trace_id, trace.link.span_id) == (TRACE_ID, SPAN_ID)


@pytest.mark.parametrize(
    ("follows", "trusted", "flags", "sample", "sampled"),
    [
        ("trusted", False, "01", 0.0, False),  # a client that sets the flag of each request
        ("trusted", False, "00", 1.0, True),
        ("trusted", True, "01", 0.0, True),
        ("trusted", True, "00", 1.0, False),
        ("always", False, "01", 0.0, True),
        ("always", False, "00", 1.0, False),
        ("never", True, "01", 0.0, False),
        ("never", True, "00", 1.0, True),
    ],
)
def test_who_decides_what_is_sampled(
    follows: str, trusted: bool, flags: str, sample: float, sampled: bool
) -> None:
    environ = seen({"TRACEPARENT": SENT + flags}, trusted, accept_sampled=follows, sample=sample)
    assert environ[TRACE].sampled is sampled
    assert environ["HTTP_TRACEPARENT"].endswith("-01" if sampled else "-00")


def test_a_client_cannot_choose_an_id_that_is_sampled() -> None:
    chosen = f"00-{'0' * 15}1{'0' * 16}-{SPAN_ID}-01"  # below the bound of any ratio
    assert not seen({"TRACEPARENT": chosen}, sample=0.0)[TRACE].sampled
    ids = {seen({"TRACEPARENT": chosen}, sample=0.5)[TRACE].sampled for _ in range(200)}
    assert ids == {True, False}


def test_a_trusted_proxy_and_the_gateway_sample_alike() -> None:
    for number in range(50):
        trace_id = f"{'1' * 16}{number * (1 << 58):016x}"
        sent = {"B3": f"{trace_id}-{SPAN_ID}"}  # without a decision
        sampled = seen(sent, trusted=True, b3=True, sample=0.3)[TRACE].sampled
        assert sampled is (number * (1 << 58) < round(0.3 * (1 << 64)))


def test_b3_fields_are_read_if_wanted_and_written_anew() -> None:
    fields = {"X_B3_TRACEID": TRACE_ID, "X_B3_SPANID": SPAN_ID, "X_B3_SAMPLED": "1"}
    environ = seen(fields, trusted=True, b3=True)
    trace = environ[TRACE]
    assert trace.trace_id == TRACE_ID
    assert environ["HTTP_B3"] == f"{TRACE_ID}-{trace.span_id}-1"
    assert not any(key.startswith("HTTP_X_B3") for key in environ)
    assert seen(fields)[TRACE].trace_id != TRACE_ID


def test_an_inner_one_leaves_the_decision_of_the_outer() -> None:
    environ = new_environ()
    Server().serve(Tracing(Tracing(app, sample=0.0)), environ)
    assert environ[TRACE].sampled


def test_a_forked_process_has_other_ids(
    in_child: Callable[[Callable[[], bool]], bool], tmp_path: Path
) -> None:
    file = tmp_path / "id"
    assert in_child(lambda: bool(file.write_text(seen()[TRACE].trace_id)))
    assert file.read_text() != seen()[TRACE].trace_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accept": "all"}, 'accept is "always", "trusted" or "never", not'),
        ({"accept_sampled": ""}, 'accept_sampled is "always", "trusted" or "never", not'),
        ({"sample": 1.5}, "sample"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tracing(app, **options)


def test_it_is_a_middleware() -> None:
    check_middleware(Tracing)
    check_middleware(lambda inner: Tracing(inner, tracer_provider=TracerProvider()))
