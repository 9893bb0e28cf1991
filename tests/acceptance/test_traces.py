"""Spans of all workers reach a collector, and link a client, the gateway and a service."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.servers import Served
from tests.support.waiting import until
from wsgigate.testing.backend import Backend, reply

Serve = Callable[..., Served]

CONFIG = """
[gateway]
name = "shop-gateway"

[tracing]
endpoint = "{collector}"
headers = {{ X-Api-Key = "of the collector" }}
resource = {{ "deployment.environment.name" = "test" }}

[services.orders]
instances = ["{service}"]

[[routes]]
name = "orders"
path = "/orders"
service = "orders"
"""


DOWN = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


class Collector:
    """A collector on a real port that keeps what it receives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[dict[str, str], Any]] = []
        self.keys: set[str | None] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.receive(self.path, self.headers.get("X-Api-Key"), body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def receive(self, path: str, key: str | None, body: bytes) -> None:
        assert path == "/v1/traces"
        message = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            self.keys.add(key)
            for resource in message.resource_spans:
                told = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [(told, span) for span in scope.spans]

    @property
    def spans(self) -> list[tuple[dict[str, str], Any]]:
        """The spans so far, each with the attributes of its resource."""
        with self._lock:
            return list(self._spans)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def service() -> Iterator[Backend]:
    with Backend(reply(b"well")) as made:
        yield made


def test_spans_of_all_workers_arrive_and_the_last_at_the_end(
    serve: Serve, collector: Collector, service: Backend
) -> None:
    text = CONFIG.format(collector=collector.url, service=service.url)
    served = serve(text, env={"OTEL_BSP_SCHEDULE_DELAY": "100"})

    def request() -> None:
        assert requests.get(f"{served.url}/orders", timeout=30).content == b"well"

    def workers() -> set[str]:
        request()
        return {resource["service.instance.id"] for resource, _ in collector.spans}

    until(lambda: len(workers()) == 2)
    served.stop()
    spans = collector.spans
    assert collector.keys == {"of the collector"}
    for resource, _ in spans:
        assert resource["service.name"] == "shop-gateway"
        assert resource["deployment.environment.name"] == "test"
    sent = len(service.requests)
    kinds = [span.kind for _, span in spans]
    assert (kinds.count(2), kinds.count(3)) == (sent, sent)  # of servers, of clients
    by_id = {span.span_id.hex(): span for _, span in spans}
    for received in service.requests:
        _, trace_id, parent, _ = (received.value("traceparent") or "").split("-")
        attempt = by_id[parent]
        assert attempt.trace_id.hex() == trace_id
        server = by_id[attempt.parent_span_id.hex()]
        assert server.name == "GET orders"
        assert server.trace_id.hex() == trace_id


def test_a_collector_that_is_down_delays_no_request_and_is_logged(
    serve: Serve, service: Backend
) -> None:
    text = CONFIG.format(collector="http://127.0.0.1:9", service=service.url)
    served = serve(text, workers=1, env=DOWN)
    for _ in range(20):
        assert requests.get(f"{served.url}/orders", timeout=30).content == b"well"
    until(lambda: "Spans cannot be exported" in served.log)
    assert "of the collector" not in served.log
    served.stop()
