"""Each request is counted once, whatever becomes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import flask
import pytest
from prometheus_client.parser import text_string_to_metric_families
from werkzeug.test import Client, create_environ, run_wsgi_app

from tests.support.metrics import Measured, measuring
from wsgigate import Limiter, MemoryStore
from wsgigate.http.wsgi import REJECTED_BY
from wsgigate.middleware.metrics import DURATION, Metrics
from wsgigate.telemetry.metrics import PROCESS
from wsgigate.telemetry.recent_errors import recent_errors
from wsgigate.testing.fakes import FakeClock

REQUESTS = "http_server_request_duration_seconds"
TOKEN = "a token of the tests, of 32 or more characters".replace(" ", "-")


@pytest.fixture
def measured() -> Iterator[Measured]:
    with measuring() as found:
        yield found


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgigate.route"], environ["wsgigate.service"] = "orders", "shop"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def streaming(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return iter([b"a", b"b"])


def failing(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    raise RuntimeError("failed")


def failing_late(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    yield b"a"
    raise RuntimeError("failed")


def upgraded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    environ["wsgigate.route"] = "chat"
    environ["wsgigate.tunnelled"] = (10, 20)
    start_response("101 Switching Protocols", [])
    return []


def close(result: object) -> None:
    getattr(result, "close", lambda: None)()


def call(wrapped: WSGIApplication, **changes: Any) -> None:
    """Call the app as a server does, to the end."""
    environ = create_environ("/") | changes
    try:
        result = wrapped(environ, lambda status, headers, exc_info=None: lambda data: None)
        try:
            for _ in result:
                pass
        finally:
            close(result)
    except RuntimeError:
        pass


def test_a_request_is_counted_by_method_route_status_and_service(measured: Measured) -> None:
    call(Metrics(app))
    assert measured.series(REQUESTS) == {("GET", "orders", "200", "shop"): 1.0}
    assert measured.value("wsgigate_requests_started") == 1
    assert measured.value("http_server_active_requests") == 0
    assert measured.value("wsgigate_response_bytes", http_route="orders") == 5


@pytest.mark.parametrize(
    ("inner", "changes", "labels", "aborted"),
    [
        (streaming, {}, ("GET", "", "200", ""), 0),
        (failing, {}, ("GET", "", "500", ""), 0),
        (failing_late, {}, ("GET", "", "200", ""), 1),
        (app, {"REQUEST_METHOD": "HEAD"}, ("HEAD", "orders", "200", "shop"), 0),
        (app, {"REQUEST_METHOD": "EVIL"}, ("_OTHER", "orders", "200", "shop"), 0),
        (app, {"CONTENT_LENGTH": "nonsense"}, ("GET", "orders", "200", "shop"), 0),
    ],
)
def test_whatever_becomes_of_a_request_it_is_counted_once(
    measured: Measured,
    inner: WSGIApplication,
    changes: dict[str, Any],
    labels: tuple[str, ...],
    aborted: int,
) -> None:
    call(Metrics(inner), **changes)
    assert measured.series(REQUESTS) == {labels: 1.0}
    assert measured.value("wsgigate_responses_aborted") == aborted
    assert measured.value("http_server_active_requests") == 0


def test_a_client_that_leaves_is_counted(measured: Measured) -> None:
    result = Metrics(streaming)(create_environ("/"), lambda *a: lambda data: None)
    next(iter(result))
    assert measured.value("http_server_active_requests") == 1
    close(result)
    assert measured.value("wsgigate_responses_aborted") == 1
    assert measured.value("http_server_active_requests") == 0


def test_a_websocket_is_not_among_the_durations_of_requests(measured: Measured) -> None:
    call(Metrics(upgraded))
    assert measured.series(REQUESTS) == {}
    assert measured.series("wsgigate_websocket_duration_seconds") == {("chat", ""): 1.0}
    assert measured.value("wsgigate_request_bytes") == 10
    assert measured.value("wsgigate_response_bytes") == 20
    assert measured.value("http_server_active_requests") == 0


def test_the_time_of_services_is_not_that_of_the_gateway(measured: Measured) -> None:
    def waiting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgigate.upstream_seconds"] = 2.0
        return app(environ, start_response)

    times = iter([10.0, 12.5])
    call(Metrics(waiting, clock=lambda: next(times)))
    totals = PROCESS.totals()
    assert totals[REQUESTS].series["GET", "orders", "200", "shop"][0] == 2.5
    assert totals["wsgigate_gateway_duration_seconds"].series["orders",][0] == 0.5


def test_the_body_of_a_request_is_counted_by_its_length(measured: Measured) -> None:
    Client(Metrics(app)).post("/", data=b"12345678")
    assert measured.value("wsgigate_request_bytes", service="shop") == 8


def test_a_sampled_trace_becomes_an_exemplar(measured: Measured) -> None:
    for trace_id, sampled in (("ab" * 16, True), ("cd" * 16, False)):
        trace = SimpleNamespace(trace_id=trace_id, sampled=sampled)
        call(Metrics(app), **{"wsgigate.trace": trace})
    found = PROCESS.totals(exemplars=True)[REQUESTS].exemplars
    ((_, buckets),) = found.items()
    assert [exemplar.trace_id for exemplar in buckets.values()] == ["ab" * 16]


def test_the_route_of_a_flask_app_is_its_rule(measured: Measured) -> None:
    site = flask.Flask("site")
    site.add_url_rule("/users/<int:number>", view_func=lambda number: "ok", endpoint="user")
    client = Client(Metrics(site))
    for path in ("/users/1", "/users/2", "/missing"):
        client.get(path)
    routes = {labels[1:3] for labels in measured.series(REQUESTS)}
    assert routes == {("/users/<int:number>", "200"), ("", "404")}


def test_the_route_can_be_a_function(measured: Measured) -> None:
    call(Metrics(streaming, route=lambda environ: "mine"))
    assert measured.value(REQUESTS, http_route="mine") == 1


# Where the metrics are served.


def test_the_metrics_are_served_to_those_who_have_the_token(measured: Measured) -> None:
    client = Client(Metrics(app, path="/metrics", token=TOKEN))
    client.get("/")
    response = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name for family in text_string_to_metric_families(response.text)}
    assert {REQUESTS, "wsgigate_requests_started", "wsgigate_workers"} <= families
    assert measured.value("wsgigate_requests_started") == 1


@pytest.mark.parametrize("sent", [{}, {"Authorization": "Bearer x"}, {"Authorization": TOKEN}])
def test_the_metrics_are_served_to_nobody_else(measured: Measured, sent: dict[str, str]) -> None:
    response = Client(Metrics(app, path="/metrics", token=TOKEN)).get("/metrics", headers=sent)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert REQUESTS not in response.text


def test_openmetrics_is_served_where_it_is_preferred(measured: Measured) -> None:
    client = Client(Metrics(app, path="/metrics", public=True))
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text"})
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_the_metrics_can_only_be_read(measured: Measured) -> None:
    client = Client(Metrics(app, path="/metrics", public=True))
    assert client.post("/metrics").status_code == 405
    head = client.head("/metrics")
    assert (head.status_code, head.data) == (200, b"")
    body, status, _ = run_wsgi_app(Metrics(app), create_environ("/metrics"))
    assert (b"".join(body), status) == (b"hello", "200 OK")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/metrics"}, "path requires token"),
        ({"path": "metrics", "public": True}, "path is as"),
        ({"path": "/metrics", "token": "short"}, "token has 32 or more characters"),
    ],
)
def test_an_invalid_argument_is_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Metrics(app, **options)


def test_other_buckets_are_used_for_what_follows(measured: Measured) -> None:
    before = DURATION.family.bounds
    try:
        DURATION.set_buckets((1.0, 2.0))
        call(Metrics(app))
        assert PROCESS.totals()[REQUESTS].family.bounds == (1.0, 2.0)
    finally:
        DURATION.set_buckets(before)


def test_a_rejection_counts_by_status_and_by_what_rejected(measured: Measured) -> None:
    limited = Limiter(app, "1/h", store=MemoryStore())
    client = Client(Metrics(limited))
    assert [client.get("/").status_code for _ in range(3)] == [200, 429, 429]
    assert measured.series("wsgigate_rejections") == {("429", "Limiter"): 2.0}


def test_a_rejection_that_a_fallback_has_replaced_is_none(measured: Measured) -> None:
    def replaced(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[REJECTED_BY] = "Circuit breaker open"
        return app(environ, start_response)

    Client(Metrics(replaced)).get("/")
    assert not measured.series("wsgigate_rejections")


def test_failures_are_kept_and_rejections_at_most_once_a_second(
    measured: Measured, clock: FakeClock
) -> None:
    def rejecting(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ["wsgigate.rejected_by"] = "Limiter"
        start_response("429 Too Many Requests", [])
        return []

    limited, broken = Metrics(rejecting, clock=clock), Metrics(failing, clock=clock)
    for _ in range(3):
        call(limited)
        call(broken, **{"wsgigate.request_id": "r-1"})
    clock.advance(1.0)
    call(limited)
    found = [
        (each["status"], each["reason"], each["error"]) for each in recent_errors(PROCESS.events)
    ]
    rejected, failed = (429, "Limiter", ""), (500, "", "RuntimeError")
    assert sorted(found) == [rejected, rejected, failed, failed, failed]
