"""A file's fallbacks, splits, mirrors, faults and maintenance, with services on real sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.test_build import APP, MEMORY, small, wrong
from wsgigate.config.load import parse, read
from wsgigate.testing.backend import Backend, Received, cut, reply

JSON_LOG = '[[middleware]]\nuse = "logger"\nformat = "json"\n'
ADMIN = "a-token-of-32-or-more-characters"
BAD = reply(b"bad", status="503 Busy")


@pytest.fixture
def first() -> Iterator[Backend]:
    with Backend(reply(b"first")) as backend:
        yield backend


@pytest.fixture
def second() -> Iterator[Backend]:
    with Backend(reply(b"second")) as backend:
        yield backend


@pytest.fixture
def nobody() -> Iterator[str]:
    """Yield the address of a port at which nobody listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def services(more: str = "", **urls: str) -> str:
    return (
        "".join(f'[services.{name}]\ninstances = ["{url}"]\n' for name, url in urls.items()) + more
    )


def route(*lines: str, path: str = "/a", service: str | None = "first") -> str:
    table = f'[[routes]]\npath = "{path}"\n' + (f'service = "{service}"\n' if service else "")
    return table + "".join(f"{line}\n" for line in lines)


class Gate:
    """A gateway made of a file's text; closed at the end of the test."""

    def __init__(self, text: str, path: str = "") -> None:
        self.gateway = small(text, path)
        self.client = Client(self.gateway, use_cookies=False)

    def ask(self, path: str = "/a", method: str = "GET", **options: Any) -> Any:
        return self.client.open(path, method=method, **{"buffered": True, **options})

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.gateway.close()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# -- fallbacks


def test_another_service_answers_for_one_that_nobody_reaches(
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


def test_what_there_is_no_room_for_goes_to_another_service(second: Backend) -> None:
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
            thread.join(10)
        assert len(hung.requests) == 1
    assert [request.body for request in second.requests] == [b"order"]


def test_a_services_own_fallback_holds_on_all_routes_that_do_not_say(
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


def test_two_that_fall_back_on_each_other_do_not_go_round(nobody: str) -> None:
    text = services(first=nobody) + 'fallback = { service = "second" }\n'
    text += services(second=nobody) + 'fallback = { service = "first" }\n' + route()
    with Gate(text) as gate:
        answer = gate.ask()
    assert answer.status_code == 503
    assert answer.headers.getlist("X-Gateway-Fallback") == ["service"]


def test_an_app_of_this_process_answers(site: ModuleType, nobody: str) -> None:
    with Gate(services(first=nobody) + route('fallback = { app = "full_site:echo" }')) as gate:
        answer = gate.ask("/a/b")
        assert answer.text == "GET /a/b"
        assert answer.headers["X-Gateway-Fallback"] == "app"


def test_a_route_to_an_app_can_fall_back_too(site: ModuleType, second: Backend) -> None:
    text = services(second=second.url) + '[[routes]]\npath = "/broken"\napp = "full_site:broken"\n'
    text += 'fallback = { service = "second", statuses = [500] }\n'
    with Gate(text) as gate:
        assert gate.ask("/broken").text == "second"


def test_a_fixed_answer(nobody: str, tmp_path: Path) -> None:
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


def test_earlier_answers_are_shown_before_the_other_is_asked(second: Backend) -> None:
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


def test_what_a_worker_keeps_can_be_bounded() -> None:
    with Backend(reply(b"x" * 11), BAD) as failing:
        text = services(first=failing.url)
        text += route('fallback = { stale = { max_size = "1KB", max_answer = "10B" } }')
        with Gate(text) as gate:
            gate.ask()
            assert gate.ask().status_code == 503


# -- splits


def split(first: Backend, second: Backend, weights: tuple[int, int], *more: str) -> str:
    shares = ", ".join(
        f'{{ service = "{name}", weight = {weight} }}'
        for name, weight in zip(("first", "second"), weights, strict=True)
    )
    text = services(first=first.url, second=second.url)
    return text + route(f"services = [{shares}]", *more, service=None)


def test_requests_are_divided_by_weight_and_the_log_says_where_they_went(
    first: Backend, second: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    with Gate(JSON_LOG + split(first, second, (1, 1))) as gate:
        found = [gate.ask().text for _ in range(40)]
    assert {"first", "second"} == set(found)
    told = [(line["service"], line["shaped"]) for line in lines(capsys)]
    assert told == [(name, f"split={name}") for name in found]


def test_a_caller_stays_with_its_service(first: Backend, second: Backend) -> None:
    text = split(first, second, (50, 50), 'split = { key = "cookie:session" }')
    found: list[str] = []
    for _ in range(2):  # workers know nothing of each other
        with Gate(text) as gate:
            found.append(
                "".join(gate.ask(headers={"Cookie": f"session={n}"}).text[0] for n in range(20))
            )
    assert found[0] == found[1]
    assert set(found[0]) == {"f", "s"}


def test_who_is_among_the_few_of_one_route_need_not_be_of_another(
    first: Backend, second: Backend
) -> None:
    text = split(first, second, (50, 50), 'split = { key = "cookie:session" }')
    found = []
    for name in ("one", "other"):
        with Gate(text + f'name = "{name}"\n') as gate:
            cookies = [{"Cookie": f"session={n}"} for n in range(20)]
            found.append([gate.ask(headers=cookie).text for cookie in cookies])
    assert found[0] != found[1]


@pytest.mark.parametrize(("named", "to"), [('override = "X-To"', "second"), ("", "first")])
def test_a_field_chooses_where_the_file_says_so(
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


# -- mirrors


def test_a_copy_goes_to_the_mirror(first: Backend, second: Backend) -> None:
    text = services(first=first.url, second=second.url)
    text += route('mirror = { service = "second" }', "strip_prefix = true")
    with Gate(text) as gate:
        fields = {"Authorization": "Bearer x", "Cookie": "a=1", "X-Gateway-Mirror": "1", "X-A": "b"}
        answer = gate.ask("/a/x?y=1", "POST", data=b"order", headers=fields)
        assert answer.text == "first"
        second.wait(lambda: any(request.complete for request in second.requests))
    for thread in threading.enumerate():  # which end with the gateway
        if thread.name == "wsgigate-mirror":
            thread.join(5)
            assert not thread.is_alive()
    [original], [copy] = first.requests, second.requests
    assert (copy.method, copy.target, copy.body) == ("POST", "/x?y=1", b"order")
    assert (original.method, original.target, original.body) == ("POST", "/x?y=1", b"order")
    assert (copy.value("X-Gateway-Mirror"), original.value("X-Gateway-Mirror")) == ("1", None)
    assert (copy.value("X-A"), original.value("X-A")) == ("b", "b")
    for name in ("Authorization", "Cookie"):
        assert (copy.value(name), original.value(name)) == (None, fields[name])


def test_nobody_waits_for_a_mirror_that_is_down_or_hangs(first: Backend, nobody: str) -> None:
    def hang(connection: socket.socket, _: Received) -> bool:
        connection.recv(1)
        return False

    with Backend(hang) as hung:
        for url in (nobody, hung.url):
            text = services(first=first.url, second=url)
            text += route('mirror = { service = "second", threads = 1, queue = 1 }')
            with Gate(text) as gate:
                assert [gate.ask().text for _ in range(20)] == ["first"] * 20


# -- faults


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
def test_faults_need_both_switches(site: ModuleType, text: str, status: int) -> None:
    with Gate(text) as gate:
        assert gate.ask("/echo").status_code == status


def test_faults_that_do_nothing_are_warned_of(site: ModuleType, tmp_path: Path) -> None:
    reading = read(MEMORY + APP + FAULTS, environ={})
    assert ("routes[0].middleware[0]", "has no effect: gateway.fault_injection is off") in (
        reading.warnings
    )
    reading = read(MEMORY + SWITCH + APP + FAULTS, environ={})
    assert reading.warnings == []


# -- maintenance


MAINTENANCE = f'[admin]\ntoken = "{ADMIN}"\n[maintenance]\n'


def switch(gate: Gate, **body: object) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    return gate.ask("/_gateway/maintenance", "POST", json=body, headers=headers)


def test_what_is_out_of_service_is_answered_by_the_gateway(
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


def test_who_looks_after_it_gets_through(first: Backend) -> None:
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


def test_a_page_and_when_to_come_again(first: Backend, tmp_path: Path) -> None:
    (tmp_path / "closed.html").write_text("<h1>Closed</h1>")
    text = MAINTENANCE + 'page = "closed.html"\nretry_after = "2m"\n'
    text += services(first=first.url) + route()
    with Gate(text, str(tmp_path / "gateway.toml")) as gate:
        switch(gate, on=True)
        answer = gate.ask()
    assert (answer.status_code, answer.text) == (503, "<h1>Closed</h1>")
    assert answer.headers["Retry-After"] == "120"
    assert answer.content_type == "text/html; charset=utf-8"


def test_a_service_out_of_service_has_its_fallback(first: Backend, second: Backend) -> None:
    text = MAINTENANCE + services(first=first.url) + 'fallback = { service = "second" }\n'
    text += services(second=second.url) + route()
    with Gate(text) as gate:
        switch(gate, on=True, scope="service:first")
        assert gate.ask().text == "second"
        switch(gate, on=True, scope="gateway")
        assert gate.ask().status_code == 503
    assert first.requests == []


def test_without_the_table_nothing_can_be_switched(first: Backend) -> None:
    text = MAINTENANCE.replace("[maintenance]\n", "") + services(first=first.url) + route()
    with Gate(text) as gate:
        assert switch(gate, on=True).status_code == 404


# -- what is wrong


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
def test_what_is_wrong_with_a_route_is_told_at_its_key(lines: str, key: str, words: str) -> None:
    service = None if "services" in lines else "a"
    [(path, said)] = wrong(ONE + route(lines, service=service))
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
def test_what_is_wrong_elsewhere_is_told_at_its_key(
    site: ModuleType, text: str, path: str, words: str
) -> None:
    errors = dict(wrong(text))
    assert words in errors[path]


def test_a_secret_is_never_shown() -> None:
    errors = wrong(
        f"{ONE}[maintenance]\nallow_header = {{ name = 'X A', secret = 'abcdefghij' }}\n"
    )
    assert "abcdefghij" not in str(errors)


def test_a_service_that_is_only_a_fallback_or_a_mirror_is_not_warned_of() -> None:
    text = MEMORY + ONE + services(c="http://127.0.0.1:9")
    text += route("fallback = { service = 'b' }", "mirror = { service = 'c' }", service="a")
    assert read(text, environ={}).warnings == []
    assert parse(text, environ={}).routes[0].mirror is not None
