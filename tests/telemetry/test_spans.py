"""The spans of sampled requests: their names, attributes, links and ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from tests.support.logs import silence
from wsgigate.client.adapter import Sessions
from wsgigate.discovery import Instance
from wsgigate.http.wsgi import REASON, ROUTE, TRACE, close_body
from wsgigate.middleware.tracing import Tracing
from wsgigate.proxy.attempts import Resilience
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.rules.retry import RetryRules
from wsgigate.testing.backend import Backend, cut, reply
from wsgigate.testing.fakes import Boom, Server, new_environ

_pool = silence("wsgigate.pool")

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Recorded:
    """What a provider of the application has recorded."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self, kind: SpanKind) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.kind is kind]

    @property
    def server(self) -> ReadableSpan:
        [span] = self.spans(SpanKind.SERVER)
        return span

    @property
    def attempts(self) -> list[ReadableSpan]:
        return self.spans(SpanKind.CLIENT)


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.provider.shutdown()


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    made = Sessions()
    yield made
    made.close()


def answer(status: str = "200 OK", body: bytes = b"served", **keys: str) -> Any:
    def app(environ, start_response):
        environ.update(keys)
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    return app


def serve(app: Any, recorded: Recorded, environ: Any = None, **options: Any) -> Server:
    return Server().serve(
        Tracing(app, tracer_provider=recorded.provider, **options), environ or new_environ()
    )


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_a_request_is_one_server_span(recorded: Recorded) -> None:
    environ = new_environ()
    environ.update(
        PATH_INFO="/orders/7",
        QUERY_STRING="token=secret",
        HTTP_HOST="shop.example:8443",
        HTTP_USER_AGENT="curl/8",
        HTTP_AUTHORIZATION="Bearer secret",
        SERVER_PROTOCOL="HTTP/1.1",
    )
    serve(answer(**{ROUTE: "orders"}), recorded, environ)
    span = recorded.server
    assert span.name == "GET orders"
    assert attributes(span) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/orders/7",
        "network.protocol.version": "1.1",
        "user_agent.original": "curl/8",
        "server.address": "shop.example",
        "server.port": 8443,
        "http.route": "orders",
        "client.address": "192.0.2.1",
        "http.response.status_code": 200,
    }
    assert span.status.status_code is StatusCode.UNSET
    assert span.parent is None


def test_an_unknown_method_has_a_bounded_name(recorded: Recorded) -> None:
    serve(answer(), recorded, new_environ("PURGE-" + "X" * 5000))
    span = recorded.server
    assert span.name == "HTTP"
    assert attributes(span)["http.request.method"] == "_OTHER"
    assert len(attributes(span)["http.request.method_original"]) == 1024


def test_the_span_of_the_caller_is_the_parent(recorded: Recorded) -> None:
    environ = new_environ()
    environ["HTTP_TRACEPARENT"] = f"00-{TRACE_ID}-{SPAN_ID}-00"
    serve(answer(), recorded, environ)
    span = recorded.server
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert environ[TRACE].span_id == f"{span.context.span_id:016x}"


def test_a_caller_whose_trace_is_not_continued_is_linked(recorded: Recorded) -> None:
    environ = new_environ()
    environ["HTTP_TRACEPARENT"] = f"00-{TRACE_ID}-{SPAN_ID}-01"
    serve(answer(), recorded, environ, accept="never")
    span = recorded.server
    assert span.parent is None
    assert [f"{link.context.span_id:016x}" for link in span.links] == [SPAN_ID]


def test_what_is_not_sampled_is_not_recorded(recorded: Recorded) -> None:
    serve(answer("500 Internal Server Error"), recorded, sample=0.0)
    assert not recorded.spans(SpanKind.SERVER)


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        ("404 Not Found", None, None),
        ("429 Too Many Requests", "the quota is used up", None),
        ("503 Service Unavailable", "the circuit is open", "503"),
    ],
)
def test_only_a_failure_of_the_server_is_an_error(
    recorded: Recorded, status: str, reason: str | None, error: str | None
) -> None:
    serve(answer(status, **({REASON: reason} if reason else {})), recorded)
    span = recorded.server
    assert attributes(span).get("error.type") == error
    assert (span.status.status_code is StatusCode.ERROR) is (error is not None)
    told = [event.attributes for event in span.events] or [{"reason": span.status.description}]
    assert told[0]["reason"] == reason


def test_an_exception_of_the_app_is_an_error(recorded: Recorded) -> None:
    def app(environ, start_response):
        raise Boom

    with pytest.raises(Boom):
        serve(app, recorded)
    span = recorded.server
    assert attributes(span)["error.type"].endswith("Boom")
    assert span.status.status_code is StatusCode.ERROR


def test_a_client_that_leaves_is_no_error(recorded: Recorded) -> None:
    def stream(environ, start_response):
        start_response("200 OK", [])
        return iter([b"first", b"second"])

    body = Tracing(stream, tracer_provider=recorded.provider)(new_environ(), lambda *_: print)
    for _ in range(2):
        close_body(body)
    span = recorded.server
    assert span.status.status_code is StatusCode.UNSET
    assert [event.name for event in span.events] == ["client disconnected"]


def test_spans_of_the_app_are_children(recorded: Recorded) -> None:
    def app(environ, start_response):
        with recorded.provider.get_tracer("app").start_as_current_span("query"):
            return answer()(environ, start_response)

    serve(app, recorded)
    [inner] = recorded.spans(SpanKind.INTERNAL)
    assert inner.parent is not None
    assert recorded.server.context is not None
    assert inner.parent.span_id == recorded.server.context.span_id
    assert not otel.get_current_span().get_span_context().is_valid


def test_a_provider_that_fails_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def get_tracer(self, name: str) -> Any:
            raise RuntimeError("no tracer")

    server = Server().serve(Tracing(answer(), tracer_provider=Broken()), new_environ())
    assert b"".join(server.chunks) == b"served"


def forwarded(
    recorded: Recorded, sessions: Sessions, *urls: str, rules: RetryRules | None = None
) -> Server:
    pool = Pool("svc", [Instance(url) for url in urls], balance="round-robin")
    forwarder = Forwarder(pool, sessions=sessions, resilience=Resilience(retry=rules))
    return serve(forwarder, recorded)


def test_each_attempt_is_a_client_span_that_its_instance_gets_as_parent(
    recorded: Recorded, sessions: Sessions
) -> None:
    with Backend(reply(b"busy", status="503 Service Unavailable"), reply(b"well")) as backend:
        rules = RetryRules(attempts=2, backoff=0.0)
        server = forwarded(recorded, sessions, backend.url, rules=rules)
        assert b"".join(server.chunks) == b"well"
        sent = [request.value("traceparent") for request in backend.requests]
    first, second = recorded.attempts
    assert sent == [
        f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-03"
        for span in (first, second)
        if span.context
    ]
    for span in (first, second):
        assert span.parent is not None
        assert recorded.server.context is not None
        assert span.parent.span_id == recorded.server.context.span_id
        assert span.name == "GET"
        assert attributes(span)["url.full"] == f"{backend.url}/"
        assert attributes(span)["server.port"] == int(backend.url.rpartition(":")[2])
    assert attributes(first)["error.type"] == "503"
    assert first.status.status_code is StatusCode.ERROR
    assert "http.request.resend_count" not in attributes(first)
    assert attributes(second)["http.request.resend_count"] == 1
    assert attributes(second)["http.response.status_code"] == 200


def test_an_attempt_without_a_response_is_an_error(recorded: Recorded, sessions: Sessions) -> None:
    with Backend(cut(b"")) as backend:
        forwarded(recorded, sessions, backend.url)
    assert {span.status.status_code for span in recorded.attempts} == {StatusCode.ERROR}
    assert attributes(recorded.server)["http.response.status_code"] == 502


def test_a_query_is_not_recorded(recorded: Recorded, sessions: Sessions) -> None:
    with Backend(reply(b"well")) as backend:
        environ = new_environ()
        environ["QUERY_STRING"] = "token=secret"
        pool = Pool("svc", [Instance(backend.url)])
        serve(Forwarder(pool, sessions=sessions), recorded, environ)
        assert backend.requests[0].target.endswith("?token=secret")
    [span] = recorded.attempts
    assert attributes(span)["url.full"] == f"{backend.url}/?REDACTED"
