"""Splits, mirrors, faults and maintenance of a file, with services on real sockets."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.config.files import APP, MEMORY, errors_of
from tests.config.gate import ADMIN, JSON_LOG, Gate, lines, route, services
from wsgigate.config.load import parse, read
from wsgigate.testing.backend import Backend, Received

# Splits.


def split(first: Backend, second: Backend, weights: tuple[int, int], *more: str) -> str:
    shares = ", ".join(
        f'{{ service = "{name}", weight = {weight} }}'
        for name, weight in zip(("first", "second"), weights, strict=True)
    )
    text = services(first=first.url, second=second.url)
    return text + route(f"services = [{shares}]", *more, service=None)


def test_requests_are_split_by_weight_and_the_log_has_the_service(
    first: Backend, second: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    with Gate(JSON_LOG + split(first, second, (1, 1))) as gate:
        found = [gate.ask().text for _ in range(40)]
    assert {"first", "second"} == set(found)
    told = [(line["service"], line["shaped"]) for line in lines(capsys)]
    assert told == [(name, f"split={name}") for name in found]


def test_a_split_keeps_a_caller_on_one_service(first: Backend, second: Backend) -> None:
    text = split(first, second, (50, 50), 'split = { key = "cookie:session" }')
    found: list[str] = []
    for _ in range(2):  # workers know nothing of each other
        with Gate(text) as gate:
            found.append(
                "".join(gate.ask(headers={"Cookie": f"session={n}"}).text[0] for n in range(20))
            )
    assert found[0] == found[1]
    assert set(found[0]) == {"f", "s"}


def test_splits_of_different_routes_are_independent(first: Backend, second: Backend) -> None:
    text = split(first, second, (50, 50), 'split = { key = "cookie:session" }')
    found = []
    for name in ("one", "other"):
        with Gate(text + f'name = "{name}"\n') as gate:
            cookies = [{"Cookie": f"session={n}"} for n in range(20)]
            found.append([gate.ask(headers=cookie).text for cookie in cookies])
    assert found[0] != found[1]


@pytest.mark.parametrize(("named", "to"), [('override = "X-To"', "second"), ("", "first")])
def test_the_override_field_selects_the_service(
    first: Backend, second: Backend, named: str, to: str
) -> None:
    with Gate(split(first, second, (1, 0), f"split = {{ {named} }}")) as gate:
        assert gate.ask(headers={"X-To": "second"}).text == to


def test_each_service_of_a_split_has_its_own_fallback(
    first: Backend, second: Backend, nobody: str
) -> None:
    text = services(lost=nobody) + 'fallback = { service = "second" }\n'
    text += services(first=first.url, second=second.url)
    text += route('services = [{ service = "lost" }]', service=None)
    with Gate(text) as gate:
        assert gate.ask().text == "second"


# Mirrors.


def test_a_copy_goes_to_the_mirror(first: Backend, second: Backend) -> None:
    text = services(first=first.url, second=second.url)
    text += route('mirror = { service = "second" }', "strip_prefix = true")
    before = set(threading.enumerate())
    with Gate(text) as gate:
        fields = {"Authorization": "Bearer x", "Cookie": "a=1", "X-Gateway-Mirror": "1", "X-A": "b"}
        answer = gate.ask("/a/x?y=1", "POST", data=b"order", headers=fields)
        assert answer.text == "first"
        second.wait(lambda: any(request.complete for request in second.requests))
    for thread in set(threading.enumerate()) - before:  # which end with the gateway
        if thread.name == "wsgigate-mirror":
            thread.join(30)
            assert not thread.is_alive()
    [original], [copy] = first.requests, second.requests
    assert (copy.method, copy.target, copy.body) == ("POST", "/x?y=1", b"order")
    assert (original.method, original.target, original.body) == ("POST", "/x?y=1", b"order")
    assert (copy.value("X-Gateway-Mirror"), original.value("X-Gateway-Mirror")) == ("1", None)
    assert (copy.value("X-A"), original.value("X-A")) == ("b", "b")
    for name in ("Authorization", "Cookie"):
        assert (copy.value(name), original.value(name)) == (None, fields[name])


def test_requests_do_not_wait_for_a_mirror_that_fails_or_hangs(first: Backend, nobody: str) -> None:
    def hang(connection: socket.socket, _: Received) -> bool:
        connection.recv(1)
        return False

    with Backend(hang) as hung:
        for url in (nobody, hung.url):
            text = services(first=first.url, second=url)
            text += route('mirror = { service = "second", threads = 1, queue = 1 }')
            with Gate(text) as gate:
                assert [gate.ask().text for _ in range(20)] == ["first"] * 20


# Faults.


FAULTS = '[[routes.middleware]]\nuse = "faults"\nenabled = true\nabort_percent = 100\n'
SWITCH = "[gateway]\nfault_injection = true\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (SWITCH + APP + FAULTS, 503),
        (SWITCH + APP + FAULTS + "abort_status = 418\n", 418),
        (SWITCH + APP + FAULTS + 'when = { X-Drill = "yes" }\n', 200),
        (SWITCH + APP + FAULTS.replace("enabled = true\n", ""), 200),
        (APP + FAULTS, 200),
    ],
)
def test_faults_require_both_switches(site: ModuleType, text: str, status: int) -> None:
    with Gate(text) as gate:
        assert gate.ask("/echo").status_code == status


def test_inactive_faults_are_a_warning(site: ModuleType, tmp_path: Path) -> None:
    parsed = read(MEMORY + APP + FAULTS, environ={})
    assert ("routes[0].middleware[0]", "has no effect: gateway.fault_injection is off") in (
        parsed.warnings
    )
    parsed = read(MEMORY + SWITCH + APP + FAULTS, environ={})
    assert parsed.warnings == []


# Maintenance.


MAINTENANCE = f'[admin]\ntoken = "{ADMIN}"\n[maintenance]\n'


def switch(gate: Gate, **body: object) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    return gate.ask("/_gateway/maintenance", "POST", json=body, headers=headers)


def test_the_gateway_responds_for_a_service_in_maintenance(
    first: Backend, second: Backend, site: ModuleType
) -> None:
    text = '[gateway]\nfallback = "full_site:fallback"\n' + MAINTENANCE
    text += services(first=first.url, second=second.url)
    text += route() + route(path="/b", service="second") + route('name = "third"', path="/c") + APP
    text = text.replace("[maintenance]\n", '[maintenance]\nexempt = ["/echo/health"]\n')
    with Gate(text) as gate:

        def out() -> list[str]:
            paths = ("/a", "/b", "/c", "/echo", "/else", "/_gateway/health", "/echo/health")
            return [path for path in paths if gate.ask(path).status_code == 503]

        assert out() == []
        for scope, closed in (
            ("service:first", ["/a", "/c"]),
            ("route:third", ["/c"]),
            ("route:/b", ["/b"]),
            ("gateway", ["/a", "/b", "/c", "/echo", "/else"]),
        ):
            assert switch(gate, on=True, scope=scope).status_code == 200
            assert out() == closed
            assert switch(gate, on=False, scope=scope).status_code == 200
            assert out() == []


def test_exempt_requests_bypass_maintenance(first: Backend) -> None:
    text = MAINTENANCE + 'allow = ["10.0.0.0/8"]\n'
    text += 'allow_header = { name = "X-Pass", secret = "let-me-pass-please" }\n'
    text += services(first=first.url) + route()
    with Gate(text) as gate:
        switch(gate, on=True)
        switch(gate, on=True, scope="service:first")
        assert gate.ask().status_code == 503
        assert gate.ask(environ_base={"REMOTE_ADDR": "10.1.1.1"}).text == "first"
        assert gate.ask(headers={"X-Pass": "let-me-pass-please"}).text == "first"
        assert gate.ask(headers={"X-Pass": "let-me-pass-pleasE"}).status_code == 503
    assert first.requests[-1].value("X-Pass") is None


def test_maintenance_responds_with_the_page_and_retry_after(first: Backend, tmp_path: Path) -> None:
    (tmp_path / "closed.html").write_text("<h1>Closed</h1>")
    text = MAINTENANCE + 'page = "closed.html"\nretry_after = "2m"\n'
    text += services(first=first.url) + route()
    with Gate(text, str(tmp_path / "gateway.toml")) as gate:
        switch(gate, on=True)
        answer = gate.ask()
    assert (answer.status_code, answer.text) == (503, "<h1>Closed</h1>")
    assert answer.headers["Retry-After"] == "120"
    assert answer.content_type == "text/html; charset=utf-8"


def test_a_service_in_maintenance_uses_its_fallback(first: Backend, second: Backend) -> None:
    text = MAINTENANCE + services(first=first.url) + 'fallback = { service = "second" }\n'
    text += services(second=second.url) + route()
    with Gate(text) as gate:
        switch(gate, on=True, scope="service:first")
        assert gate.ask().text == "second"
        switch(gate, on=True, scope="gateway")
        assert gate.ask().status_code == 503
    assert first.requests == []


def test_there_is_no_maintenance_switch_without_the_table(first: Backend) -> None:
    text = MAINTENANCE.replace("[maintenance]\n", "") + services(first=first.url) + route()
    with Gate(text) as gate:
        assert switch(gate, on=True).status_code == 404


# Errors and warnings.


ONE = services(a="http://127.0.0.1:9", b="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("lines", "key", "words"),
    [
        ("fallback = {}", "fallback", "requires one of stale, service"),
        (
            "fallback = { service = 'b', body = 'x' }",
            "fallback",
            "service and body are mutually exclusive",
        ),
        ("fallback = { service = 'bb' }", "fallback.service", 'there is no service "bb"'),
        (
            "fallback = { service = 'b', status = 200 }",
            "fallback.status",
            "applies to a fixed response only",
        ),
        (
            "fallback = { body = '', status = 204 }",
            "fallback.status",
            "a status from 200 to 599 that has a body",
        ),
        ("fallback = { file = 'nowhere.html' }", "fallback.file", "cannot be read"),
        ("fallback = { app = 'nowhere:app' }", "fallback.app", "nowhere"),
        (
            "fallback = { stale = { max_size = 1, max_answer = 2 } }",
            "fallback.stale.max_size",
            "no less than max_answer",
        ),
        ("fallback = { stale = true, reasons = ['luck'] }", "fallback.reasons[0]", 'got "luck"'),
        (
            "service = 'b'\nservices = [{ service = 'a' }]",
            "",
            "service and services are mutually exclusive; give one of them",
        ),
        (
            "services = [{ service = 'a' }, { service = 'a' }]",
            "services[1].service",
            '"a" is listed twice',
        ),
        (
            "services = [{ service = 'a', weight = 0 }]",
            "services",
            "at least one service needs a weight above 0",
        ),
        ("services = [{ service = 'c' }]", "services[0].service", 'there is no service "c"'),
        ("split = { key = 'address' }", "split", "requires services"),
        ("services = [{ service = 'a' }]\nsplit = { key = 'moon' }", "split.key", "key is one of"),
        ("mirror = { service = 'c' }", "mirror.service", 'there is no service "c"'),
        ("mirror = { service = 'b', percent = 0 }", "mirror.percent", "a number above 0"),
        ("mirror = {}", "mirror.service", "is required"),
    ],
)
def test_errors_of_a_route_are_reported_at_their_key(lines: str, key: str, words: str) -> None:
    service = None if "services" in lines else "a"
    [(path, said)] = errors_of(ONE + route(lines, service=service))
    assert path == ("routes[0]." + key).rstrip(".")
    assert words in said


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        (
            services(a="http://127.0.0.1:9")
            + "fallback = { service = 'c' }\n"
            + route(service="a"),
            "services.a.fallback.service",
            'there is no service "c"',
        ),
        ("[maintenance]\npage = 'nowhere.html'\n" + ONE, "maintenance.page", "cannot be read"),
        ("[maintenance]\nexempt = ['/a*b']\n" + ONE, "maintenance.exempt", "is neither a path"),
        ("[maintenance]\nallow = ['moon']\n" + ONE, "maintenance.allow[0]", "'moon' is neither"),
        (
            "[maintenance]\nallow_header = { name = 'X-A', secret = 'short' }\n" + ONE,
            "maintenance.allow_header",
            "the secret has 16 or more",
        ),
        (SWITCH + APP + FAULTS + "delay = '61s'\n", "routes[0].middleware[0].delay", "0 to 60"),
    ],
)
def test_errors_of_other_tables_are_reported_at_their_key(
    site: ModuleType, text: str, path: str, words: str
) -> None:
    errors = dict(errors_of(text))
    assert words in errors[path]


def test_secrets_are_in_no_error() -> None:
    errors = errors_of(
        f"{ONE}[maintenance]\nallow_header = {{ name = 'X A', secret = 'abcdefghij' }}\n"
    )
    assert "abcdefghij" not in str(errors)


def test_a_service_that_is_only_a_fallback_or_a_mirror_causes_no_warning() -> None:
    text = MEMORY + ONE + services(c="http://127.0.0.1:9")
    text += route("fallback = { service = 'b' }", "mirror = { service = 'c' }", service="a")
    assert read(text, environ={}).warnings == []
    assert parse(text, environ={}).routes[0].mirror is not None
