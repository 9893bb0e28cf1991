"""One health check over HTTP: the request, and which responses are healthy."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import pytest

from tests.proxy.health_checks import HASTY, check_answer, check_once, drip
from wsgigate.discovery import Instance
from wsgigate.proxy.health_probe import Prober
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.testing.backend import Backend, Received, ScriptedAnswer, cut, reply


def test_a_check_requests_the_path_and_names_the_gateway_in_user_agent(backend: Backend) -> None:
    outcome = check_once(backend.url)
    assert (outcome.ok, outcome.status, outcome.error) == (True, 200, "")
    (request,) = backend.requests
    assert request.line == "GET /health?deep=1 HTTP/1.1"
    assert sorted(request.fields) == [
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        ("Host", f"127.0.0.1:{backend.port}"),
        ("User-Agent", "wsgigate-health"),
    ]


def head_of(check: HealthCheck, instance: Callable[[Backend], Instance]) -> list[str]:
    """Return the request line and the fields that an instance gets."""
    with Backend(reply(b"")) as backend:
        found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
        prober = Prober()
        try:
            prober.probe("shop", instance(backend), check, found.put)
            outcome = found.get(timeout=30)
        finally:
            prober.stop()
        assert isinstance(outcome, CheckResult), outcome
        assert outcome.ok, outcome
        [request] = backend.requests
        port = str(backend.port)
    return request.head.decode().replace(port, "PORT").split("\r\n")


def test_a_check_sends_the_configured_host_fields_and_method() -> None:
    check = HealthCheck(
        "/up",
        timeout=5.0,
        host="shop.example",
        fields={"Authorization": "Bearer x", "user-agent": "kube-check_answer/1.2", "X-Empty": ""},
        method="HEAD",
    )
    line, *fields = head_of(check, lambda backend: Instance(backend.url))
    assert line == "HEAD /up HTTP/1.1"
    assert [field for field in fields if field] == [
        "Host: shop.example",
        "User-Agent: kube-check_answer/1.2",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Authorization: Bearer x",
        "X-Empty: ",
        "Connection: close",
    ]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_a_method_with_content_has_content_length_0(method: str) -> None:
    check = HealthCheck("/up", timeout=5.0, method=method)
    line, *fields = head_of(check, lambda backend: Instance(backend.url))
    assert line == f"{method} /up HTTP/1.1"
    assert "Content-Length: 0" in fields


def test_a_check_reads_no_proxy_and_no_netrc_from_the_environment(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert check_once(backend.url).ok
    assert backend.requests[0].values("Authorization") == []


@pytest.mark.parametrize("status", ["200 OK", "204 No Content", "206 Partial Content", "299 Odd"])
def test_any_2xx_is_healthy(status: str) -> None:
    outcome = check_answer(reply(status=status))
    assert (outcome.ok, outcome.status) == (True, int(status[:3]))


@pytest.mark.parametrize(
    ("status", "error"),
    [
        ("301 Moved", "Redirected"),
        ("304 Not Modified", "Redirected"),
        ("404 Not Found", "Status 404"),
        ("500 Internal Server Error", "Status 500"),
        ("503 Service Unavailable", "Status 503"),
    ],
)
def test_any_other_status_is_a_failure(status: str, error: str) -> None:
    outcome = check_answer(reply(status=status))
    assert (outcome.ok, outcome.status, outcome.error) == (False, int(status[:3]), error)


def test_a_redirect_is_not_followed() -> None:
    with Backend() as inside:
        for location in (
            f"{inside.url}/latest",
            "http://169.254.169.254/",
            "//evil",
            "http://[",
            "",
        ):
            outcome = check_answer(reply(status="302 Found", fields=[("Location", location)]))
            assert (outcome.ok, outcome.status, outcome.error) == (False, 302, "Redirected")
        assert inside.connections == 0


def test_an_interim_response_is_not_the_final_one() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert check_answer(early + reply()).status == 200
    assert check_answer(early + reply(status="503 Down")).error == "Status 503"


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        ([("Response-Time", "12ms")], "12ms"),
        ([("X-Response-Time", "3.1 ms")], "3.1 ms"),
        ([("X-Response-Time", "2"), ("response-time", "1")], "1"),
    ],
)
def test_the_response_time_is_that_of_the_instances_field(
    fields: list[tuple[str, str]], reported: str
) -> None:
    assert check_answer(reply(fields=fields)).response_time == reported


@pytest.mark.parametrize("fields", [[], [("Response-Time", "x" * 33)], [("Response-Time", "\xe9")]])
def test_without_a_valid_field_the_response_time_is_measured(fields: list[tuple[str, str]]) -> None:
    now = 10.0

    def answer(connection: socket.socket, _request: Received) -> None:
        nonlocal now
        now += 0.00153
        connection.sendall(reply(b"ok", fields=fields))

    with Backend(answer) as backend:
        outcome = check_once(backend.url, clock=lambda: now)
    assert outcome.response_time == "1.53ms"


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (drip(b"", b""), None),
        (drip(b"", b"x"), None),
        (drip(b"HTTP/1.1 200 OK\r\n", b"X-Drop: 1\r\n"), None),
        (drip(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"), None),
        (drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"x"), 200),
        (drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"), 200),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 200),
        (drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"), 200),
    ],
    ids=["silence", "status line", "head", "field", "length", "to the end", "chunks", "chunk size"],
)
def test_a_server_that_drips_does_not_extend_the_deadline(
    answer: ScriptedAnswer, status: int | None
) -> None:
    outcome = check_answer(answer, HASTY)  # what drips never ends by itself
    assert outcome == CheckResult(False, status, error="Timeout") or outcome.error == "Bad response"
    if outcome.error == "Bad response":  # 100 fields, before the time was up
        assert status is None


def test_endless_interim_responses_do_not_extend_the_deadline() -> None:
    outcome = check_answer(drip(b"", b"HTTP/1.1 102 Processing\r\n\r\n"), HASTY)
    assert (outcome.ok, outcome.status) == (False, None)
    assert outcome.error in ("Timeout", "Bad response")


@pytest.mark.parametrize("framing", [b"Content-Length: 1073741824\r\n", b""])
def test_of_a_large_body_only_the_beginning_is_read(framing: bytes) -> None:
    sent = 0

    def answer(connection: socket.socket, _request: Received) -> bool:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        try:
            while sent < 1_073_741_824:
                sent += connection.send(bytes(65_536))
        except OSError:
            pass
        return False

    outcome = check_answer(answer)
    assert (outcome.ok, outcome.status) == (True, 200)
    assert sent < 32_000_000  # what fits into the buffers between the two


def test_a_compressed_body_is_not_decompressed() -> None:
    assert check_answer(reply(b"not gzip at all", fields=[("Content-Encoding", "gzip")])).ok


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (cut(b""), "Connection closed"),
        (cut(b"\x16\x03\x01\x02\x00\r\n\r\n"), "Bad response"),
        (cut(b"SSH-2.0-OpenSSH_9.6\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 abc\r\n\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"), "Bad response"),
        (cut((b"HTTP/1.1 102 P\r\nX: " + b"y" * 60_000 + b"\r\n\r\n") * 5), "Bad response"),
        (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), "Incomplete response"),
        (
            cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
            "Incomplete response",
        ),
        (
            cut(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
            "Bad response",
        ),
    ],
)
def test_an_invalid_response_is_a_failure_whose_description_names_no_host(
    answer: ScriptedAnswer, error: str
) -> None:
    outcome = check_answer(answer)
    assert (outcome.ok, outcome.error) == (False, error)


@pytest.mark.parametrize(
    ("statuses", "status", "error"),
    [
        ([401], "401 Unauthorized", ""),
        ([200, 429], "429 Too Many Requests", ""),
        ([301], "301 Moved", ""),
        ([204], "200 OK", "Status 200"),
        ([204], "302 Found", "Redirected"),
    ],
)
def test_the_accepted_statuses_can_be_configured(
    statuses: list[int], status: str, error: str
) -> None:
    outcome = check_answer(reply(status=status), HealthCheck("/", statuses=statuses))
    assert (outcome.ok, outcome.error) == (not error, error)


@pytest.mark.parametrize(
    ("body", "ok"),
    [
        (b'{"status": "UP"}', True),
        (b'{"status": "DOWN"}', False),
        (b"", False),
        (b" " * 65_000 + b'"UP"', True),
        (b" " * 65_533 + b'"UP"', False),
    ],
)
def test_a_body_can_be_required_to_contain_a_text(body: bytes, ok: bool) -> None:
    outcome = check_answer(reply(body), HealthCheck("/", contains='"UP"', timeout=5.0))
    assert (outcome.ok, outcome.status) == (ok, 200)
    assert outcome.error == ("" if ok else "Unexpected content")
