"""Requests of clients as instances get them, seen on the wire.

Ids such as C02 are those of a catalogue of attacks and faults.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.proxy.clients import ServiceClient
from wsgigate.discovery import Instance
from wsgigate.http.fields import FieldRules
from wsgigate.http.wsgi import (
    CLAIMS,
    INSTANCE,
    PEER_TRUSTED,
    REASON,
    REQUEST_ID,
    SERVICE,
    BodyTooLarge,
)
from wsgigate.proxy.forwarder import Forwarder
from wsgigate.proxy.pool import Pool
from wsgigate.testing.backend import Backend, Received, cut, reply
from wsgigate.testing.fakes import Server

Forward = Callable[..., ServiceClient]


def test_a_request_arrives_as_it_was_sent(backend: Backend, forward: Forward) -> None:
    answer = forward(backend.url).put(
        "/a/b;c=1?x=%zz&y=%3a&z=a+b",
        data=b"body",
        headers={"X-Custom": "v", "Accept": "x/y", "Content-Type": "text/x"},
    )
    assert (answer.status_code, answer.data) == (200, b"ok")
    request = backend.requests[0]
    assert request.line == "PUT /a/b;c=1?x=%zz&y=%3a&z=a+b HTTP/1.1"
    assert request.body == b"body"
    assert request.value("X-Custom") == "v"
    assert request.value("Accept") == "x/y"
    assert request.value("Content-Type") == "text/x"
    assert request.value("Host") == f"127.0.0.1:{backend.port}"


def test_nothing_is_added_that_the_client_did_not_send(backend: Backend, forward: Forward) -> None:
    forward(backend.url).get("/")
    names = {name for name, _ in backend.requests[0].fields}
    assert names == {
        "Host",
        "Forwarded",
        "Via",
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Port",
        "X-Forwarded-Proto",
    }


def test_the_query_mark_alone_is_kept(backend: Backend, forward: Forward) -> None:
    """E23"""
    client = forward(backend.url)
    client.get("/a?", environ_overrides={"RAW_URI": "/a?"})
    client.get("/a", environ_overrides={"RAW_URI": "/a"})
    assert [request.target for request in backend.requests] == ["/a?", "/a"]


def test_bytes_of_a_field_value_pass_unchanged(backend: Backend, forward: Forward) -> None:
    """B10"""
    forward(backend.url).get("/", environ_overrides={"HTTP_X_RAW": "\xff\xe9"})
    assert b"X-Raw: \xff\xe9\r\n" in backend.requests[0].head


@pytest.mark.parametrize(
    "environ",
    [
        {"HTTP_X": "a\r\nX-Evil: 1"},  # B04
        {"HTTP_X": "a\x00b"},
        {"HTTP_": "v"},  # B06
        {"HTTP_X Y": "v"},
        {"REQUEST_METHOD": "GET\r\n"},
        {"REQUEST_METHOD": "A" * 21},
        {"CONTENT_LENGTH": "+3"},
        {"CONTENT_LENGTH": "1" * 19},
        {"HTTP_CONNECTION": ",".join(f"x{n}" for n in range(10_000))},  # C05
        {"HTTP_TRANSFER_ENCODING": "chunked", "CONTENT_LENGTH": "3"},
    ],
)
def test_a_malformed_request_is_not_forwarded(
    environ: dict[str, str], backend: Backend, forward: Forward
) -> None:
    answer = forward(backend.url).get("/", environ_overrides=environ)
    assert answer.status_code == 400
    assert backend.requests == []


@pytest.mark.parametrize("coding", ["gzip, chunked", "identity, chunked", "xchunked"])
def test_an_unsupported_transfer_coding_is_501(
    coding: str, backend: Backend, forward: Forward
) -> None:
    """A09"""
    answer = forward(backend.url).post(
        "/", environ_overrides={"HTTP_TRANSFER_ENCODING": coding, "wsgi.input_terminated": True}
    )
    assert answer.status_code == 501
    assert backend.requests == []


def test_an_unknown_http_version_is_505(backend: Backend, forward: Forward) -> None:
    """B09"""
    answer = forward(backend.url).get("/", environ_overrides={"SERVER_PROTOCOL": "HTTP/1.2"})
    assert answer.status_code == 505


HOP = {
    "HTTP_CONNECTION": "close, X-Foo, x_user_id, authorization, x-forwarded-for, via, host, cookie",
    "HTTP_X_FOO": "1",
    "HTTP_KEEP_ALIVE": "timeout=5",
    "HTTP_PROXY_CONNECTION": "keep-alive",
    "HTTP_TE": "trailers",
    "HTTP_TRAILER": "X",
    "HTTP_UPGRADE": "h2c",
    "HTTP_HTTP2_SETTINGS": "AAMAAABkAAQ",
    "HTTP_PROXY_AUTHORIZATION": "Basic eA==",
    "HTTP_PROXY": "http://evil",
    "HTTP_EXPECT": "100-continue",
    "HTTP_AUTHORIZATION": "Bearer x",
    "HTTP_COOKIE": "a=1; b=2",
}


def test_hop_by_hop_request_fields_are_not_forwarded(backend: Backend, forward: Forward) -> None:
    """C01 to C08, A20"""
    forward(backend.url).get("/", environ_overrides=HOP | {"REMOTE_ADDR": "192.0.2.7"})
    request = backend.requests[0]
    names = {name.lower() for name, _ in request.fields}
    assert not names & {
        "connection",
        "x-foo",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "upgrade",
        "http2-settings",
        "proxy-authorization",
        "proxy",
        "expect",
    }
    assert request.value("Authorization") == "Bearer x"
    assert request.value("Cookie") == "a=1; b=2"
    assert request.value("X-Forwarded-For") == "192.0.2.7"
    assert request.value("Via") == "1.1 wsgigate"


FORGED = {
    "REMOTE_ADDR": "192.0.2.7",
    "HTTP_X_FORWARDED_FOR": "6.6.6.6",
    "HTTP_X_FORWARDED_PROTO": "https",
    "HTTP_X_FORWARDED_HOST": "evil.test",
    "HTTP_X_FORWARDED_PORT": "1",
    "HTTP_X_FORWARDED_PREFIX": "/evil",
    "HTTP_X_FORWARDED_USER": "root",
    "HTTP_FORWARDED": "for=6.6.6.6",
    "HTTP_X_REAL_IP": "6.6.6.6",
    "HTTP_X_ORIGINAL_URL": "/admin",
    "HTTP_X_REWRITE_URL": "/admin",
    "HTTP_X_HTTP_METHOD_OVERRIDE": "DELETE",
}


def test_forwarding_fields_of_untrusted_clients_are_replaced(
    backend: Backend, forward: Forward
) -> None:
    """D08, D13"""
    forward(backend.url).get("/", base_url="http://a.test:8080", environ_overrides=FORGED)
    request = backend.requests[0]
    assert "6.6.6.6" not in request.head.decode()
    assert "evil" not in request.head.decode()
    assert "/admin" not in request.head.decode()
    assert request.value("X-Forwarded-For") == "192.0.2.7"
    assert request.value("X-Forwarded-Proto") == "http"
    assert request.value("X-Forwarded-Host") == "a.test:8080"
    assert request.value("X-Forwarded-Port") == "8080"
    assert request.value("Forwarded") == 'for=192.0.2.7;host="a.test:8080";proto=http'


def test_forwarding_fields_of_a_trusted_proxy_are_extended(
    backend: Backend, forward: Forward
) -> None:
    forward(backend.url).get("/", environ_overrides=FORGED | {PEER_TRUSTED: True})
    request = backend.requests[0]
    assert request.value("X-Forwarded-For") == "6.6.6.6, 192.0.2.7"
    assert request.value("X-Forwarded-Proto") == "https"
    assert request.value("X-Forwarded-Host") == "evil.test"
    assert (request.value("Forwarded") or "").startswith("for=6.6.6.6, for=192.0.2.7")
    assert request.value("X-Real-Ip") is None
    assert request.value("X-Forwarded-User") is None


IDENTITY = {"X-User-Id": "sub", "X-Roles": "roles", "X-Plan": "plan"}


@pytest.mark.parametrize("claims", [None, {"sub": "7", "roles": ["a", "b"]}])
def test_identity_fields_come_from_verified_claims_only(
    claims: dict[str, Any] | None, backend: Backend, forward: Forward
) -> None:
    """D01 to D04"""
    environ: dict[str, Any] = {
        "HTTP_X_USER_ID": "admin",
        "HTTP_X_ROLES": "admin",
        "HTTP_X_PLAN": "gold",
        "HTTP_CONNECTION": "X-User-Id",
        "HTTP_AUTHORIZATION": "Bearer token",
    }
    if claims is not None:
        environ[CLAIMS] = claims
    forward(backend.url, identity=IDENTITY).get("/", environ_overrides=environ)
    request = backend.requests[0]
    assert request.value("X-User-Id") == ("7" if claims else None)
    assert request.value("X-Roles") == ("a b" if claims else None)
    assert request.value("X-Plan") is None
    assert request.value("Authorization") == (None if claims else "Bearer token")  # J34


@pytest.mark.parametrize(("forward_it", "sent"), [(True, "Bearer t"), (False, None)])
def test_forward_authorization_forwards_the_credentials(
    forward_it: bool, sent: str | None, backend: Backend, forward: Forward
) -> None:
    client = forward(backend.url, identity=IDENTITY, forward_authorization=forward_it)
    client.get("/", environ_overrides={"HTTP_AUTHORIZATION": "Bearer t", CLAIMS: {"sub": "7"}})
    assert backend.requests[0].value("Authorization") == sent


@pytest.mark.parametrize(
    "sub",
    [
        *("a\r\nX-Evil: 1", "a\x00", "a\tb", "a\x85X-Evil: 1", "a\u2028b", "\ud800"),
        *(" admin", "admin ", "x" * 4097, "€" * 2000, ["a\nb"], ["x" * 3000, "y" * 3000]),
    ],
)
def test_a_claim_that_is_no_field_value_is_rejected(
    sub: str, backend: Backend, forward: Forward
) -> None:
    """B11"""
    answer = forward(backend.url, identity=IDENTITY).get(
        "/", environ_overrides={CLAIMS: {"sub": sub}}
    )
    assert answer.status_code == 403
    assert backend.requests == []


def test_connection_cannot_remove_the_request_id(backend: Backend, forward: Forward) -> None:
    environ = {
        "HTTP_X_TRACE": "abc",
        "HTTP_CONNECTION": "X-Trace",
        REQUEST_ID: "abc",
    }
    forward(backend.url).get("/", environ_overrides=environ)
    assert backend.requests[0].value("X-Trace") == "abc"


def test_a_request_that_has_passed_this_gateway_is_a_loop(
    backend: Backend, forward: Forward
) -> None:
    """C13"""
    client = forward(backend.url, via="edge-1")
    client.get("/", environ_overrides={"HTTP_VIA": "1.1 other"})
    assert backend.requests[0].value("Via") == "1.1 other, 1.1 edge-1"
    answer = client.get("/", environ_overrides={"HTTP_VIA": "1.1 other, 1.1 edge-1"})
    assert answer.status_code == 508


PREFIXES = [
    # strip, add, client's path, instance's path, X-Forwarded-Prefix
    ("/api/users", "", "/api/users/7", "/7", "/api/users"),
    ("/api/users", "", "/api/users", "/", "/api/users"),
    ("/api/users", "", "/api/users/", "/", "/api/users"),
    ("/api/users/", "", "/api/users/7", "/7", "/api/users"),
    ("/api", "/v1", "/api/a", "/v1/a", "/api"),
    ("", "/v1", "/a", "/v1/a", None),
    ("", "/v1", "/", "/v1/", None),
    ("/api", "", "/apisecret", "/apisecret", None),
    ("/t/{tenant}/*", "", "/t/acme/x/users", "/users", "/t/acme/x"),
    ("/t/{tenant}", "", "/t", "/t", None),
]


@pytest.mark.parametrize(("strip", "add", "path", "arrives", "prefix"), PREFIXES)
def test_a_prefix_is_stripped_and_added_by_whole_segments(
    strip: str,
    add: str,
    path: str,
    arrives: str,
    prefix: str | None,
    backend: Backend,
    forward: Forward,
) -> None:
    forward(backend.url, strip_prefix=strip, add_prefix=add).get(path)
    assert backend.requests[0].target == arrives
    assert backend.requests[0].value("X-Forwarded-Prefix") == prefix


def test_the_mount_path_of_the_gateway_is_not_forwarded(backend: Backend, forward: Forward) -> None:
    """E34, S06"""
    client = forward(backend.url, strip_prefix="/api")
    client.get("/api/7", base_url="http://a.test/gw")
    assert backend.requests[0].target == "/7"
    assert backend.requests[0].value("X-Forwarded-Prefix") == "/gw/api"


def test_preserve_host_forwards_the_clients_host(backend: Backend, forward: Forward) -> None:
    forward(backend.url, preserve_host=True).get("/", base_url="http://a.test:81")
    assert backend.requests[0].value("Host") == "a.test:81"


def test_field_rules_change_requests_and_responses(backend: Backend, forward: Forward) -> None:
    backend.answers = [reply(b"", fields=[("X-Powered-By", "x"), ("X-Keep", "1")])]
    answer = forward(
        backend.url,
        request_fields=FieldRules(set={"X-Env": "prod"}, remove=["X-Debug"]),
        response_fields=FieldRules(add={"X-Served-By": "gate"}, remove=["X-Powered-By"]),
    ).get("/", headers={"X-Debug": "1", "X-Env": "forged"})
    assert backend.requests[0].value("X-Env") == "prod"
    assert backend.requests[0].value("X-Debug") is None
    assert answer.headers["X-Served-By"] == "gate"
    assert answer.headers["X-Keep"] == "1"
    assert "X-Powered-By" not in answer.headers


def test_an_added_field_joins_the_clients(backend: Backend, forward: Forward) -> None:
    added = FieldRules(add={"X-Color": "blue", "Cookie": "b=2", "X-New": "1"})
    forward(backend.url, request_fields=added).get("/", headers={"X-Color": "red", "Cookie": "a=1"})
    request = backend.requests[0]
    assert request.value("X-Color") == "red, blue"
    assert request.value("Cookie") == "a=1; b=2"
    assert request.value("X-New") == "1"


FRAMINGS = [
    # method, environ, body, (Content-Length, Transfer-Encoding) at the instance
    ("GET", {}, b"", (None, None)),
    ("DELETE", {}, b"", (None, None)),
    ("POST", {"CONTENT_LENGTH": None}, b"", ("0", None)),  # A23
    ("POST", {"CONTENT_LENGTH": "0"}, b"", ("0", None)),
    ("POST", {"CONTENT_LENGTH": "003"}, b"abc", ("3", None)),  # A05
    ("GET", {"CONTENT_LENGTH": "3"}, b"abc", ("3", None)),  # A22
    ("GET", {"CONTENT_LENGTH": "0"}, b"", ("0", None)),
    (
        "POST",
        {"HTTP_TRANSFER_ENCODING": "Chunked", "wsgi.input_terminated": True},
        b"abc",
        (None, "chunked"),
    ),
]


@pytest.mark.parametrize(("method", "environ", "body", "framing"), FRAMINGS)
def test_a_body_is_framed_in_one_way(
    method: str,
    environ: dict[str, Any],
    body: bytes,
    framing: tuple[str | None, str | None],
    backend: Backend,
    forward: Forward,
) -> None:
    """A24: never by both, whatever the client said."""
    client = forward(backend.url)
    env = EnvironBuilder("/", method=method).get_environ()
    env.update({"wsgi.input": io.BytesIO(body), **environ})
    env = {key: value for key, value in env.items() if value is not None}
    _, status, _ = run_wsgi_app(client.application, env)
    assert status == "200 OK"
    request = backend.requests[0]
    assert (request.value("Content-Length"), request.value("Transfer-Encoding")) == framing
    assert (request.body, request.complete) == (body, True)


class Failing:
    """A ``wsgi.input`` that gives some bytes and then fails."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.first = True

    def read(self, _size: int) -> bytes:
        if self.first:
            self.first = False
            return b"begun"
        if self.error is not None:
            raise self.error
        return b""


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, 400), (OSError("gone"), 400), (ValueError("chunk"), 400), (BodyTooLarge("x"), 413)],
)
@pytest.mark.parametrize("chunked", [False, True])
def test_a_truncated_request_body_is_never_completed(
    error: Exception | None, status: int, chunked: bool, backend: Backend, forward: Forward
) -> None:
    """A12, A13, A15, A16: the instance sees no complete request, the client no success."""
    if chunked and error is None:
        return  # the end of a chunked body is the server's to tell
    client = forward(backend.url)
    env = EnvironBuilder("/", method="POST").get_environ()
    env["wsgi.input"] = Failing(error)
    if chunked:
        env |= {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
        env.pop("CONTENT_LENGTH", None)
    else:
        env["CONTENT_LENGTH"] = "100"
    _, line, _ = run_wsgi_app(client.application, env)
    assert int(line[:3]) == status
    backend.wait_for_requests(1)
    backend.wait_until_closed()
    assert [request.complete for request in backend.requests] == [False]
    assert client.pool.in_flight() == {backend.url: 0}


def test_a_response_before_the_end_of_an_upload_reaches_the_client(
    backend: Backend, forward: Forward
) -> None:
    """G39"""

    def early(connection: socket.socket, _request: Received) -> bool:
        connection.sendall(reply(b"too large", status="413 Content Too Large"))
        return False

    backend.answers = [early]
    answer = forward(backend.url).post("/", data=b"x" * 100_000)
    assert answer.status_code == 413


def test_requests_that_share_a_connection_share_no_cookies(
    backend: Backend, forward: Forward
) -> None:
    """D24: one user's cookie is not sent with the next user's request."""
    backend.answers = [reply(b"", fields=[("Set-Cookie", "sid=alice")]), reply(b"ok")]
    client = forward(backend.url)
    assert client.get("/").headers["Set-Cookie"] == "sid=alice"
    client.get("/")
    assert backend.requests[1].value("Cookie") is None
    assert backend.connections == 1


def test_the_environment_of_the_process_changes_nothing(
    backend: Backend, forward: Forward, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """D25"""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login evil password evil\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    answer = forward(backend.url).get("/", headers={"Authorization": "Bearer mine"})
    assert answer.status_code == 200
    assert backend.requests[0].value("Authorization") == "Bearer mine"


def test_the_instance_and_the_reason_of_a_failure_are_logged(
    backend: Backend, forward: Forward
) -> None:
    backend.answers = [cut(b"")]
    environ = EnvironBuilder("/").get_environ()
    run_wsgi_app(forward(backend.url).application, environ)[0]
    builder = EnvironBuilder("/")
    environ = builder.get_environ()
    forward(backend.url).application(environ, Server().start_response)
    assert environ[SERVICE] == "svc"
    assert environ[INSTANCE] == f"127.0.0.1:{backend.port}"
    assert environ[REASON] == ("RemoteDisconnected: Remote end closed connection without response")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout"),
        ({"connect_timeout": -1}, "connect_timeout"),
        ({"read_timeout": float("inf")}, "read_timeout"),
        ({"strip_prefix": "api"}, "strip_prefix"),
        ({"add_prefix": "/a/../b"}, "add_prefix"),
        ({"add_prefix": "/{id}"}, "add_prefix"),
        ({"via": "a b"}, "via"),
        ({"identity": {"X Y": "sub"}}, "identity"),
        ({"identity": {"Authorization": "sub"}}, "identity"),
        ({"identity": {"Connection": "sub"}}, "identity"),
    ],
)
def test_an_invalid_argument_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Forwarder(Pool("svc", [Instance("http://127.0.0.1:1")]), **options)
