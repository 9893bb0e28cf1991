"""Fallbacks and stale responses of a file."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import ModuleType

import pytest

from tests.config.gate import BAD, JSON_LOG, Gate, lines, route, services
from wsgigate.testing.backend import Backend, Received, cut, reply


def test_another_service_handles_the_requests_of_an_unreachable_one(
    second: Backend, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = JSON_LOG + services(first=nobody, second=second.url)
    text += route('fallback = { service = "second" }', "strip_prefix = true")
    with Gate(text) as gate:
        answer = gate.ask("/a/x?y=1")
        assert (answer.status_code, answer.text) == (200, "second")
        assert answer.headers["X-Gateway-Fallback"] == "service"
        assert gate.ask("/a", "POST", data=b"order").status_code == 503
    assert [request.target for request in second.requests] == ["/x?y=1"]
    one, other = lines(capsys)
    assert (one["service"], one["shaped"]) == ("second", "fallback=service")
    assert "refused" in one["reason"]
    assert (other["service"], "shaped" in other) == ("first", False)


def test_a_post_goes_to_the_other_service_only_if_nothing_of_it_was_sent(
    second: Backend, nobody: str
) -> None:
    fallback = 'fallback = { service = "second", methods = ["POST"] }'
    with Gate(services(first=nobody, second=second.url) + route(fallback)) as gate:
        assert gate.ask("/a", "POST", data=b"order").text == "second"
    assert [request.body for request in second.requests] == [b"order"]

    for answer in (cut(b""), BAD, cut(b"HTTP/1.1 200 OK\r\nConte")):
        with Backend(answer) as broken:
            text = services(first=broken.url, second=second.url) + route(fallback)
            with Gate(text) as gate:
                assert gate.ask("/a", "POST", data=b"order").status_code >= 502
                assert gate.ask("/a", "POST").status_code >= 502
            assert len(broken.requests) == 2
    assert len(second.requests) == 1


@pytest.mark.parametrize(
    ("reasons", "by_other"), [('["timeout"]', True), ('["refused", "answered"]', False)]
)
def test_a_service_that_hangs_is_a_timeout(second: Backend, reasons: str, by_other: bool) -> None:
    def hang(connection: socket.socket, _: Received) -> bool:
        connection.recv(1)
        return False

    with Backend(hang) as hung:
        text = services(first=hung.url) + 'timeout = "50ms"\n' + services(second=second.url)
        text += route(f'fallback = {{ service = "second", reasons = {reasons} }}')
        with Gate(text) as gate:
            assert gate.ask().status_code == (200 if by_other else 504)


def test_an_open_circuit_is_a_reason(second: Backend) -> None:
    with Backend(BAD) as failing:
        text = services(first=failing.url) + "breaker = { consecutive_failures = 1 }\n"
        text += services(second=second.url)
        text += route('fallback = { service = "second", reasons = ["circuit-open"] }')
        with Gate(text) as gate:
            assert gate.ask().status_code == 503
            assert gate.ask().text == "second"
        assert len(failing.requests) == 1


def test_requests_above_the_limit_go_to_the_fallback_service(second: Backend) -> None:
    let_go = threading.Event()

    def hang(connection: socket.socket, _: Received) -> None:
        let_go.wait(30)
        connection.sendall(reply(b"first"))

    with Backend(hang) as hung:
        text = services(first=hung.url) + "max_in_flight = 1\n" + services(second=second.url)
        text += route('fallback = { service = "second", reasons = ["busy"], methods = ["POST"] }')
        with Gate(text) as gate:
            thread = threading.Thread(target=gate.ask)
            thread.start()
            hung.wait_for_requests(1)
            assert gate.ask(method="POST", data=b"order").text == "second"
            let_go.set()
            thread.join(30)
        assert len(hung.requests) == 1
    assert [request.body for request in second.requests] == [b"order"]


def test_a_services_fallback_applies_to_routes_without_one(
    first: Backend, second: Backend, nobody: str
) -> None:
    text = services(lost=nobody) + 'fallback = { service = "second" }\n'
    text += services(first=first.url, second=second.url)
    text += route(service="lost") + route(
        'fallback = { service = "first" }', path="/b", service="lost"
    )
    with Gate(text) as gate:
        assert gate.ask("/a").text == "second"
        assert gate.ask("/b").text == "first"


def test_two_services_that_are_each_others_fallback_do_not_loop(nobody: str) -> None:
    text = services(first=nobody) + 'fallback = { service = "second" }\n'
    text += services(second=nobody) + 'fallback = { service = "first" }\n' + route()
    with Gate(text) as gate:
        answer = gate.ask()
    assert answer.status_code == 503
    assert answer.headers.getlist("X-Gateway-Fallback") == ["service"]


def test_a_wsgi_app_is_a_fallback(site: ModuleType, nobody: str) -> None:
    with Gate(services(first=nobody) + route('fallback = { app = "full_site:echo" }')) as gate:
        answer = gate.ask("/a/b")
        assert answer.text == "GET /a/b"
        assert answer.headers["X-Gateway-Fallback"] == "app"


def test_a_route_to_an_app_can_fall_back_too(site: ModuleType, second: Backend) -> None:
    text = services(second=second.url) + '[[routes]]\npath = "/broken"\napp = "full_site:broken"\n'
    text += 'fallback = { service = "second", statuses = [500] }\n'
    with Gate(text) as gate:
        assert gate.ask("/broken").text == "second"


def test_a_fixed_response_is_a_fallback(nobody: str, tmp_path: Path) -> None:
    (tmp_path / "closed.html").write_text("<h1>Closed</h1>")
    text = services(first=nobody)
    text += route("fallback = { body = '[]', status = 200, content_type = 'application/json' }")
    text += route("fallback = { file = 'closed.html', methods = ['GET', 'POST'] }", path="/b")
    with Gate(text, str(tmp_path / "gateway.toml")) as gate:
        answer = gate.ask("/a")
        assert (answer.status_code, answer.json) == (200, [])
        assert answer.headers["X-Gateway-Fallback"] == "fixed"
        for method in ("GET", "POST"):
            answer = gate.ask("/b", method)
            assert (answer.status_code, answer.text) == (503, "<h1>Closed</h1>")
            assert answer.content_type == "text/html; charset=utf-8"


def test_stale_responses_take_precedence_over_the_fallback_service(second: Backend) -> None:
    good = reply(b"good", fields=[("Cache-Control", "max-age=60")])
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n"
    with Backend(good, chunked, BAD) as failing:
        text = services(first=failing.url, second=second.url)
        text += route('fallback = { stale = true, service = "second" }')
        with Gate(text) as gate:
            for path in ("/a/1", "/a/2", "/a/3"):
                gate.ask(path)
            found = [(gate.ask(path), path) for path in ("/a/1", "/a/2", "/a/3")]
    assert [(a.text, a.headers["X-Gateway-Fallback"]) for a, _ in found] == [
        ("good", "stale"),
        ("ab", "stale"),
        ("second", "service"),
    ]
    assert found[0][0].headers["Age"] == "0"
    assert found[1][0].content_length == 2


def test_the_size_of_stale_responses_is_limited() -> None:
    with Backend(reply(b"x" * 11), BAD) as failing:
        text = services(first=failing.url)
        text += route('fallback = { stale = { max_size = "1KB", max_answer = "10B" } }')
        with Gate(text) as gate:
            gate.ask()
            assert gate.ask().status_code == 503
