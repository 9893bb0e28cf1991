"""The access log: fields, samples, slow requests, exemptions, redaction, and where it goes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wsgigate
from wsgigate.http.wsgi import (
    ATTEMPTS,
    CLAIMS,
    INSTANCE,
    REASON,
    REQUEST_ID,
    ROUTE,
    SERVICE,
    TRACE,
    UPSTREAM_SECONDS,
)
from wsgigate.middleware.logger import Logger
from wsgigate.testing import FakeClock
from wsgigate.testing.fakes import Server, new_environ


class Trace:
    span_id = "00f067aa0ba902b7"

    def __init__(self, trace_id: str = "4bf92f3577b34da6a3ce929d0e0e4736") -> None:
        self.trace_id = trace_id


def answering(status: str = "200 OK", headers: Any = (), **environ: Any) -> Any:
    def app(given: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given.update(environ)
        start_response(status, list(headers))
        return [b"x"]

    return app


def written(app: Any, environs: Iterable[dict[str, Any]] = ({},), **options: Any) -> list[str]:
    """Return the lines of a Logger with *options* about requests."""
    stream = io.StringIO()
    logger = Logger(app, stream=stream, **options)
    for environ in environs:
        Server().serve(logger, {**new_environ(), **environ})
    assert logger.close(30)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("format", ["json", "text", "otel", "ecs", "logfmt"])
def test_each_format_has_the_trace_and_the_request_id(format: str) -> None:
    [line] = written(answering(), [{REQUEST_ID: "r1", TRACE: Trace()}], format=format)
    assert Trace().trace_id in line
    assert "r1" in line


@pytest.mark.parametrize("format", ["json", "text", "otel", "ecs", "logfmt", "combined", "auto"])
def test_each_format_has_the_status(format: str) -> None:
    assert "404" in written(answering("404 Not Found"), format=format)[0]


def test_fields_of_requests_responses_and_claims() -> None:
    app = answering(headers=[("X-Cache", "HIT")], **{CLAIMS: {"tenant": "acme"}})
    fields = ["status", "request.Accept", "response.X-Cache", "claim.tenant"]
    [line] = written(app, [{"HTTP_ACCEPT": "text/html"}], format="json", fields=fields)
    assert list(json.loads(line).values()) == [200, "text/html", "HIT", "acme"]
    [line] = written(app, format="text", fields=["claim.tenant"])
    assert line.endswith(' claim.tenant="acme"')


def test_a_sample_keeps_errors_and_rejections_and_is_decided_by_the_id() -> None:
    def kept(app: Any, environs: list[dict[str, Any]], share: float = 0.2) -> list[str]:
        lines = written(app, environs, sample=share, format="json")
        return [json.loads(line)["request_id"] for line in lines]

    ids = [{REQUEST_ID: f"r{number}"} for number in range(1000)]
    found = kept(answering(), ids)
    assert 150 < len(found) < 250
    assert found == kept(answering(), ids)
    assert set(found) < set(kept(answering(), ids, 0.5))
    assert kept(answering(), ids, 0.0) == []
    for app in (
        answering("500 X"),
        answering("404 X"),
        answering("302 X", **{REASON: "only observed: over the quota"}),
    ):
        assert len(kept(app, ids[:20], 0.0)) == 20


@pytest.mark.parametrize(("digits", "kept"), [("0" * 14, 0), ("f" * 14, 1), ("zz", 0)])
def test_a_sample_agrees_with_the_samplers_of_traces(digits: str, kept: int) -> None:
    trace = Trace("a" * 18 + digits)
    assert len(written(answering(), [{TRACE: trace, REQUEST_ID: "r0"}], sample=0.1)) == kept


def test_a_request_without_an_id_is_sampled_too() -> None:
    assert written(answering(), [{}] * 20, sample=0.0) == []
    assert len(written(answering(), [{}] * 20, sample=1.0)) == 20


def test_a_slow_request_is_a_warning_that_says_where_the_time_went(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    known = {
        UPSTREAM_SECONDS: 2.0,
        ATTEMPTS: 2,
        ROUTE: "orders",
        SERVICE: "orders",
        INSTANCE: "10.0.0.1:80",
        REQUEST_ID: "r1",
        TRACE: Trace(),
    }

    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        clock.advance(2.5)
        return answering(**known)(environ, start_response)  # type: ignore[no-any-return]

    lines = written(app, [{}] * 3, slow=2.0, sample=0.0, clock=clock)
    assert len(lines) == 3  # of slow requests all are kept
    [message] = caplog.messages
    assert caplog.records[0].levelname == "WARNING"
    assert message == (
        "Slow request: 'GET' / of 192.0.2.1 took 2.500 s, more than 2 s: 2.000 s for orders in 2 "
        "attempts, 0.500 s in the gateway, the client and the body included (instance 10.0.0.1:80, "
        f"route orders, request r1, trace {Trace().trace_id})"
    )
    assert vars(caplog.records[0])["wsgigate"]["upstream"] == 2.0


def test_a_request_that_is_not_slow_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert len(written(answering(), slow=1000.0)) == 1
    assert written(answering("101 X"), slow=1e-9, clock=iter(range(99)).__next__) != []
    assert not caplog.messages


def test_exempt_requests_have_no_record() -> None:
    environs = [{"PATH_INFO": path} for path in ("/health", "/orders")]
    lines = written(answering("500 X"), environs, exempt={"paths": ["/health"]}, format="json")
    assert [json.loads(line)["path"] for line in lines] == ["/orders"]


SECRET = st.text(st.sampled_from("abcdefXYZ0123456789"), min_size=12, max_size=40)

NAMED = (
    "access_token",
    "api_key",
    "password",
    "client_secret",
    "code",
    "state",
    "signature",
    "sig",
)


@given(secret=SECRET, name=st.sampled_from(NAMED))
@pytest.mark.parametrize("format", ["json", "text", "otel", "ecs", "logfmt", "combined"])
def test_no_credential_is_ever_logged(format: str, secret: str, name: str) -> None:
    """L03."""
    environ = {
        "HTTP_AUTHORIZATION": f"Bearer {secret}",
        "HTTP_PROXY_AUTHORIZATION": secret,
        "HTTP_COOKIE": f"session={secret}",
        "HTTP_X_API_KEY": secret,
        "HTTP_X_GITLAB_TOKEN": secret,
        "HTTP_REFERER": f"https://u:{secret}@a.test/cb?{name}={secret}#{secret}",
        "QUERY_STRING": f"a=1&{name}={secret}&{name.upper()}={secret}&%73ecret={secret}",
        "RAW_URI": f"https://u:{secret}@a.test/x?{name}={secret}",
        CLAIMS: {"client_secret": secret, "nested": {"token": secret}},
    }
    app = answering(headers=[("Set-Cookie", f"a={secret}"), ("X-Auth-Token", secret)])
    fields = [
        *("time", "path", "query", "referer", "user_agent", "request.Authorization"),
        *("request.Cookie", "request.Proxy-Authorization", "request.X-Api-Key"),
        *("request.X-Gitlab-Token", "response.Set-Cookie", "response.X-Auth-Token"),
        *("claim.client_secret", "claim.nested"),
    ]
    options: dict[str, Any] = {} if format == "combined" else {"fields": fields}
    for each in (options, {}):
        [line] = written(app, [environ], format=format, **each)
        assert secret not in line


def test_a_file_gets_the_lines(tmp_path: Path) -> None:
    logger = Logger(answering(), file=str(tmp_path / "access.log"))
    Server().serve(logger, new_environ())
    assert logger.close(30)
    [line] = (tmp_path / "access.log").read_text().splitlines()
    assert json.loads(line)["status"] == 200


def test_an_output_that_fails_loses_records_and_counts_them(tmp_path: Path) -> None:
    """L05."""
    folder = tmp_path / "none"
    logger = Logger(answering(), file=str(folder / "access.log"))
    assert Server().serve(logger, new_environ()).status == "200 OK"
    assert logger.flush(30)
    assert logger.dropped == 1
    folder.mkdir()
    Server().serve(logger, new_environ())
    assert logger.close(30)
    lines = [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]
    assert [line.get("count") for line in lines] == [1, None]


def test_a_handler_gets_the_lines() -> None:
    stream = io.StringIO()
    logger = Logger(answering(), handler=logging.StreamHandler(stream), format="logfmt")
    Server().serve(logger, new_environ())
    assert logger.close(30)
    assert " status=200 " in stream.getvalue()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 1.5}, "sample is a share from 0 to 1, got 1.5"),
        ({"slow": 0}, "slow is a number above 0, got 0"),
        ({"backups": -1}, "backups is 0 to 1000 files, got -1"),
        ({"facility": "mine"}, "facility is one of kern, user"),
        ({"fields": ["x"]}, "fields: unknown field 'x'"),
        ({"fields": ["time"], "format": "combined"}, 'fields: the format "combined" has fixed'),
        ({"file": "a", "journal": True}, "file and journal are mutually exclusive"),
        ({"file": "a", "syslog": "udp://a"}, "file and syslog are mutually exclusive"),
        ({"max_size": 9}, "max_size: requires file"),
        ({"rotate_every": 9}, "rotate_every: requires file"),
        ({"syslog": "http://a"}, "syslog: expected"),
        ({"exempt": {"path": "/"}}, "exempt"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Logger(answering(), **options)


FILE = """
store.url = "memory:"
[admin]
[[middleware]]
use = "logger"
file = "access.log"
format = "ecs"
max_size = "10MiB"
rotate_every = "1d"
sample = 0.5
slow = "2s"
exempt = { paths = ["/probe"] }
redact = ["X-Tenant"]
"""


def test_the_file_of_a_gateway_has_the_keys(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text(FILE)
    gateway = wsgigate.load(str(tmp_path / "gateway.toml"))
    for path in ("/probe", "/missing"):
        environ = {**new_environ(), "PATH_INFO": path, "HTTP_HOST": "a.test"}
        assert Server().serve(gateway, environ).status.startswith("404")
    gateway.close()
    stack = gateway.app
    while not isinstance(stack, Logger):
        stack = stack.app  # type: ignore[attr-defined]
    assert stack.close(30)
    [line] = (tmp_path / "access.log").read_text().splitlines()
    assert json.loads(line)["url.path"] == "/missing"
