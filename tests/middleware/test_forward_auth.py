"""Forward authentication by a real service: what it gets, what it decides, and its failures."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.certificates import Authority, make_certificate
from tests.support.forward_auth import AuthGate, allow, deny, gate
from tests.support.ports import refused_port
from wsgigate import AnyOf, ApiKeyAuthenticator, ApiKeys, ClientAddress, ForwardAuth, Problem
from wsgigate.auth.identity import IDENTITY
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import Backend, cut

AUTHELIA: dict[str, Any] = {
    "auth_response_headers": ["Remote-User", "Remote-Groups", "Remote-Email"],
    "header_field": "Remote-User",
    "claim_headers": {"email": "Remote-Email", "groups": "Remote-Groups"},
}


def test_the_service_gets_the_request_without_its_body() -> None:
    with gate() as (it, service):
        it.ask(
            "/orders/7?a=1&b=%2F",
            method="POST",
            data=b"body",
            base_url="https://shop.example:8443",
            headers={"Cookie": "session=1", "Authorization": "Bearer x", "X-Own": "y"},
            environ={"REMOTE_ADDR": "192.0.2.7"},
        )
        [request] = service.requests
    assert request.line == "GET /verify?tenant=7 HTTP/1.1"
    assert request.value("Host") == f"127.0.0.1:{service.port}"
    assert request.value("X-Forwarded-Method") == "POST"
    assert request.value("X-Forwarded-Uri") == "/orders/7?a=1&b=%2F"
    assert request.value("X-Forwarded-Proto") == "https"
    assert request.value("X-Forwarded-Host") == "shop.example:8443"
    assert request.value("X-Forwarded-Port") == "8443"
    assert request.value("X-Forwarded-For") == "192.0.2.7"
    assert request.value("Cookie") == "session=1"
    assert request.value("Authorization") == "Bearer x"
    assert request.value("X-Own") == "y"
    assert request.value("Content-Length") is None
    assert request.value("Content-Type") is None
    assert it.bodies == [b"body"]


def test_only_the_chosen_fields_are_sent() -> None:
    with gate(auth_request_headers=["Cookie"]) as (it, service):
        it.ask(headers={"Cookie": "session=1", "X-Own": "y", "User-Agent": "browser"})
        names = {name.lower() for name, _ in service.requests[0].fields}
    assert names == {
        *("host", "cookie", "accept-encoding", "forwarded"),
        *("x-forwarded-method", "x-forwarded-uri", "x-forwarded-proto", "x-forwarded-host"),
        *("x-forwarded-port", "x-forwarded-for"),
    }


def test_the_mount_of_the_app_is_a_part_of_the_uri() -> None:
    with gate() as (it, service):
        it.ask(base_url="http://localhost/shop", path="/a%20b")
        assert service.requests[0].value("X-Forwarded-Uri") == "/shop/a%20b"


def test_fields_of_the_answer_and_the_identity_are_set() -> None:
    answer = allow(
        ("Remote-User", "ann"),
        ("Remote-Groups", "admins,dev ops"),
        ("Remote-Email", "ann@example.com"),
        ("X-Other", "not asked for"),
        status="202 Accepted",
    )
    with gate(answer, **AUTHELIA) as (it, _):
        assert it.ask().status_code == 200
        [environ] = it.seen
    assert environ["HTTP_REMOTE_USER"] == "ann"
    assert environ["HTTP_REMOTE_GROUPS"] == "admins,dev ops"
    assert "HTTP_X_OTHER" not in environ
    caller = environ[IDENTITY]
    assert (caller.subject, caller.scheme) == ("ann", "forward-auth")
    assert dict(caller.claims) == {
        "sub": "ann",
        "email": "ann@example.com",
        "groups": ("admins", "dev ops"),
    }


def test_a_name_in_utf_8_is_read_as_such() -> None:
    with gate(allow(("Remote-User", "zoë".encode().decode("latin-1"))), **AUTHELIA) as (it, _):
        it.ask()
        assert it.seen[0][IDENTITY].subject == "zoë"
        assert it.seen[0]["HTTP_REMOTE_USER"].encode("latin-1") == "zoë".encode()


def test_an_answer_without_a_user_is_no_identity() -> None:
    with gate(allow(("Remote-User", "")), **AUTHELIA) as (it, _):
        assert it.ask().status_code == 200
        assert IDENTITY not in it.seen[0]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "acme"),  # a service that only allows requests
        ({"header_field": "Remote-User"}, None),
        ({"header_field": "Remote-User", "required": False}, "acme"),
    ],
)
def test_the_identity_of_an_outer_authenticator(
    options: dict[str, Any], expected: str | None
) -> None:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    with gate(**options) as (it, _):
        client = Client(ApiKeyAuthenticator(it.app, keys))
        client.get("/", headers={"X-API-Key": key})
        found = it.seen[0].get(IDENTITY)
        assert (found and found.subject) == expected
        it.ask(environ={IDENTITY: "forged"})
        assert IDENTITY not in it.seen[1]


def test_another_answer_is_the_response() -> None:
    answer = deny(
        "401 Unauthorized",
        ("WWW-Authenticate", "Negotiate"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("Content-Type", "text/html"),
        ("Server", "inner"),
        ("Keep-Alive", "timeout=5"),
        body=b"<p>Sign in</p>",
    )
    with gate(answer) as (it, _):
        response = it.ask()
        assert response.status == "401 Unauthorized"
        assert response.data == b"<p>Sign in</p>"
        assert response.headers["WWW-Authenticate"] == "Negotiate"
        assert response.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
        assert response.headers["Content-Type"] == "text/html"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Server" not in response.headers
        assert "Keep-Alive" not in response.headers
        assert it.reason == "the service answered 401"
        assert not it.seen
        head = it.ask(method="HEAD")
        assert (head.data, head.headers["Content-Length"]) == (b"", "14")


@pytest.mark.parametrize(
    ("keep", "location", "expected"),
    [
        (True, "/login?rd=x", "/login?rd=x"),
        (True, "https://id.example/login", "https://id.example/login"),
        (False, "/login?rd=x", "{url}/login?rd=x"),
        (False, "https://id.example/login", "https://id.example/login"),
    ],
)
def test_a_redirect_is_passed_on_and_not_followed(keep: bool, location: str, expected: str) -> None:
    answer = deny("302 Found", ("Location", location))
    with gate(answer, preserve_location_header=keep) as (it, service):
        response = it.ask()
        assert response.status_code == 302
        assert response.headers["Location"] == expected.format(url=service.url)
        assert len(service.requests) == 1


def test_cookies_of_an_answer_that_lets_pass() -> None:
    answer = allow(("Set-Cookie", "session=new; Path=/"), ("Set-Cookie", "other=1"))
    with gate(answer, add_auth_cookies_to_response=["session"]) as (it, _):
        it.app_fields = [("Set-Cookie", "session=old"), ("Set-Cookie", "cart=7")]
        response = it.ask()
        assert response.headers.getlist("Set-Cookie") == ["cart=7", "session=new; Path=/"]


def test_the_method_and_the_body_are_sent_on_request() -> None:
    options: dict[str, Any] = {"preserve_request_method": True, "forward_body": True}
    with gate(**options, max_body_size=5) as (it, service):
        fields = {"Content-Type": "text/csv"}
        assert it.ask(method="PUT", data=b"1,2,3", headers=fields).status_code == 200
        [request] = service.requests
        assert request.line.startswith("PUT ")
        assert request.body == b"1,2,3"
        assert request.value("Content-Type") == "text/csv"
        assert it.bodies == [b"1,2,3"]
        assert it.ask(method="PUT", data=b"1,2,3,").status_code == 413
        assert it.ask(method="DELETE").status_code == 200
        assert len(service.requests) == 2


def test_a_chunked_body_is_sent_and_a_truncated_one_is_not() -> None:
    with gate(preserve_request_method=True, forward_body=True) as (it, service):
        chunked = {
            "HTTP_TRANSFER_ENCODING": "chunked",
            "wsgi.input": BytesIO(b"1,2,3"),
            "wsgi.input_terminated": True,
        }
        assert it.ask(method="POST", environ=chunked).status_code == 200
        assert service.requests[0].body == it.bodies[0] == b"1,2,3"
        truncated = {"CONTENT_LENGTH": "9", "wsgi.input": BytesIO(b"1,2,3")}
        assert it.ask(method="POST", environ=truncated).status_code == 400
        assert len(service.requests) == 1
        assert it.app.errors == 0


def test_a_request_without_a_host_is_asked_about() -> None:
    def old(environ: Any, start_response: Any) -> Iterable[bytes]:
        environ["SERVER_PROTOCOL"] = "HTTP/1.0"
        del environ["HTTP_HOST"]
        return it.app(environ, start_response)

    with gate() as (it, service):
        assert Client(old).get("/a").status_code == 200
        assert service.requests[0].value("X-Forwarded-Uri") == "/a"
        assert service.requests[0].value("X-Forwarded-Host") is None


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        (deny("500 Oops"), 503, "it answered 500"),
        (deny("503 Busy"), 503, "it answered 503"),
        (deny("304 Not Modified", body=b""), 503, "it answered 304"),
        (cut(b""), 503, "the connection was closed"),
        (b"nonsense\r\n\r\n", 503, "its answer is not valid HTTP"),
        (cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"), 503, "its answer is not valid"),
        (deny(body=b"x" * 2_000_000), 503, "its answer is larger than 1048576 bytes"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 503, "its answer is not valid HTTP"),
    ],
)
def test_what_is_no_answer_lets_nothing_pass(answer: Any, status: int, reason: str) -> None:
    with gate(answer) as (it, _):
        response = it.ask()
        assert response.status_code == status
        assert response.headers["Retry-After"] == "1"
        assert reason in it.reason
        assert "127.0.0.1" not in it.reason + response.text
        assert not it.seen
        assert it.app.errors == 1


def test_a_service_that_hangs_is_a_504() -> None:
    with gate(b"", timeout=0.2) as (it, _):
        assert it.ask().status_code == 504
        assert it.reason == "the service cannot be asked: there was no answer in time"


def test_a_service_that_is_down_may_be_passed_by() -> None:
    with refused_port() as port:
        it = AuthGate(f"http://127.0.0.1:{port}", on_error="allow", **AUTHELIA)
        assert it.ask(headers={"Remote-User": "root"}).status_code == 200
    assert "HTTP_REMOTE_USER" not in it.seen[0]
    assert IDENTITY not in it.seen[0]
    assert it.app.errors == 1


def test_anonymous_requests_pass_if_allowed() -> None:
    with gate(deny(), deny("403 Forbidden"), required=False, **AUTHELIA) as (it, _):
        assert it.ask(headers={"Remote-User": "root"}).status_code == 200
        assert "HTTP_REMOTE_USER" not in it.seen[0]
        assert it.ask().status_code == 403


def test_exempt_requests_and_preflights_are_not_asked_about() -> None:
    fields = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    with gate(deny(), exempt={"paths": ["/health"]}, **AUTHELIA) as (it, service):
        assert it.ask("/health", headers={"Remote-User": "root"}).status_code == 200
        assert it.ask(method="OPTIONS", headers=fields).status_code == 200
        assert not service.requests
        assert "HTTP_REMOTE_USER" not in it.seen[0]
    with gate(deny(), preflights=True) as (it, _):
        assert it.ask(method="OPTIONS", headers=fields).status_code == 401


def test_a_websocket_is_asked_about_as_well() -> None:
    fields = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "x",
        "Sec-WebSocket-Version": "13",
        "Cookie": "session=1",
    }
    with gate(deny()) as (it, service):
        assert it.ask(headers=fields).status_code == 401
        [request] = service.requests
        assert request.value("Cookie") == "session=1"
        for name in ("Upgrade", "Connection", "Sec-WebSocket-Key"):
            assert request.value(name) is None


def test_forwarding_fields_of_a_trusted_proxy_are_believed() -> None:
    fields = {
        "X-Forwarded-For": "203.0.113.9",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "shop.example",
    }
    for trusted, host in ((["127.0.0.1"], "shop.example"), ([], "localhost")):
        with gate() as (it, service):
            client = Client(ClientAddress(it.app, trusted_proxies=trusted))
            client.get("/", headers=fields, environ_overrides={"REMOTE_ADDR": "127.0.0.1"})
            [request] = service.requests
            assert request.value("X-Forwarded-Host") == host
            chain = request.value("X-Forwarded-For")
            assert chain == ("203.0.113.9, 127.0.0.1" if trusted else "127.0.0.1")


def test_answers_are_not_remembered_by_default() -> None:
    with gate() as (it, service):
        for _ in range(3):
            it.ask(headers={"Cookie": "session=1"})
        assert len(service.requests) == 3
        assert service.connections == 1


def test_an_answer_is_remembered_for_its_time() -> None:
    options: dict[str, Any] = {"cache": 30, "cache_key_headers": ["Cookie"], **AUTHELIA}
    answers = [allow(("Remote-User", "ann")), allow(("Remote-User", "bob"))]
    with gate(*answers, **options) as (it, service):
        for _ in range(3):
            it.ask(headers={"Cookie": "session=1"})
        assert [each[IDENTITY].subject for each in it.seen] == ["ann"] * 3
        it.timer.advance(29.9)
        it.ask(headers={"Cookie": "session=1"})
        assert len(service.requests) == 1
        it.timer.advance(0.1)
        it.ask(headers={"Cookie": "session=1"})
        assert it.seen[-1][IDENTITY].subject == "bob"


@pytest.mark.parametrize(
    "answer",
    [
        deny(),
        deny("302 Found", ("Location", "/login")),
        allow(("Set-Cookie", "session=2")),
        allow(("Cache-Control", "private, no-store")),
        allow(("Cache-Control", "no-cache")),
        allow(("Cache-Control", "max-age=0")),
        allow(("Cache-Control", "max-age=forever")),
    ],
)
def test_an_answer_that_is_for_one_request_is_not_remembered(answer: bytes) -> None:
    with gate(answer, cache=30, cache_key_headers=["Cookie"]) as (it, service):
        for _ in range(2):
            it.ask(headers={"Cookie": "session=1"})
        assert len(service.requests) == 2


def test_an_answer_may_be_remembered_for_less() -> None:
    answer = allow(("Cache-Control", 'max-age="5"'))
    with gate(answer, cache=30, cache_key_headers=["Cookie"]) as (it, service):
        it.ask(headers={"Cookie": "session=1"})
        it.timer.advance(4.9)
        it.ask(headers={"Cookie": "session=1"})
        assert len(service.requests) == 1
        it.timer.advance(0.1)
        it.ask(headers={"Cookie": "session=1"})
        assert len(service.requests) == 2


def test_equal_requests_at_the_same_time_make_one_exchange() -> None:
    release = threading.Event()

    def late(connection: Any, _request: Any) -> None:
        release.wait(30)
        connection.sendall(allow())

    with gate(late, cache=30, cache_key_headers=["Cookie"], timeout=30) as (it, service):
        found: list[int] = []

        def ask() -> None:
            found.append(it.ask(headers={"Cookie": "session=1"}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        threads[0].start()
        service.wait_for_requests(1)
        for thread in threads[1:]:
            thread.start()
        release.set()
        for thread in threads:
            thread.join(30)
        assert found == [200] * 4
        assert len(service.requests) == 1


def test_the_certificate_of_the_service_is_verified(tmp_path: Path) -> None:
    own, other = make_certificate(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    with Backend(allow(), tls=lambda sock: context.wrap_socket(sock, server_side=True)) as service:
        for ca, status in ((str(own), 200), (str(other.path), 503)):
            it = AuthGate(service.url, ca=ca)
            assert it.ask().status_code == status
            it.app.close()


def test_another_authenticator_may_accept_what_the_service_rejects() -> None:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    with Backend(deny("401 Unauthorized", ("WWW-Authenticate", "Negotiate"))) as service:
        seen: list[dict[str, Any]] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            seen.append(environ.copy())
            start_response("200 OK", [])
            return [b"hello"]

        ways = [
            partial(ForwardAuth, address=service.url, **AUTHELIA),
            partial(ApiKeyAuthenticator, keys=keys),
        ]
        client = Client(AnyOf(app, ways))
        fields = {"X-API-Key": key, "Remote-User": "root"}
        assert client.get("/", headers=fields).status_code == 200
        assert seen[0][IDENTITY].subject == "acme"
        assert "HTTP_REMOTE_USER" not in seen[0]
        response = client.get("/")
        assert response.status_code == 401
        assert response.headers.getlist("WWW-Authenticate")[0] == "Negotiate"


def test_a_refuse_of_the_user_renders_rejections() -> None:
    def refuse(problem: Problem) -> Any:
        def page(environ: Any, start_response: Any) -> Iterable[bytes]:
            start_response(f"{problem.status} No", [*problem.headers])
            return [b"own page"]

        return page

    with gate(deny("401 No", ("WWW-Authenticate", "Negotiate")), refuse=refuse) as (it, _):
        response = it.ask()
        assert (response.status_code, response.data) == (401, b"own page")
        assert response.headers["WWW-Authenticate"] == "Negotiate"


URL = "https://auth.example.com/"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"address": "ftp://auth/"}, "address: 'ftp://auth/' must begin with https://, or http://"),
        ({"forward_body": True}, "forward_body: requires preserve_request_method"),
        ({"auth_response_headers": ["Content-Length"]}, "auth_response_headers: Content-Length"),
        ({"auth_response_headers": ["X_Forwarded_For"]}, "auth_response_headers: X_Forwarded_For"),
        ({"auth_response_headers": ["Transfer-Encoding"]}, "auth_response_headers: Transfer-"),
        ({"auth_response_headers": ["a b"]}, "auth_response_headers: 'a b' is not the name"),
        ({"auth_response_headers": "Remote-User"}, "auth_response_headers: expected a list"),
        ({"auth_request_headers": "Cookie"}, "auth_request_headers: expected a list"),
        ({"header_field": "Host"}, "header_field: Host cannot be set"),
        ({"claim_headers": {"email": "Remote-Email"}}, "claim_headers: requires header_field"),
        (
            {"header_field": "Remote-User", "claim_headers": {"sub": "X-Sub"}},
            "claim_headers: 'sub' cannot be the name",
        ),
        ({"cache": 30}, "cache_key_headers: required with cache"),
        ({"cache_key_headers": ["Cookie"]}, "cache_key_headers: requires cache"),
        (
            {"cache": 30, "cache_key_headers": ["Cookie"], "auth_request_headers": ["X-Tenant"]},
            "auth_request_headers: with cache, the service gets the fields of cache_key_headers",
        ),
        (
            {
                "cache": 30,
                "cache_key_headers": ["Cookie"],
                "forward_body": True,
                "preserve_request_method": True,
            },
            "cache: mutually exclusive with forward_body",
        ),
        ({"on_error": "pass"}, 'on_error is "allow" or "refuse"'),
        ({"cache_scope": "all"}, 'cache_scope is "request" or "credential"'),
        ({"max_body_size": 0}, "max_body_size: 1 byte to 1 GiB"),
        ({"add_auth_cookies_to_response": "a"}, "add_auth_cookies_to_response: expected names"),
        ({"timeout": 90}, "timeout: 0.05 to 60 seconds"),
    ],
)
def test_a_wrong_argument_is_an_error(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r"\A" + why.replace("(", r"\(")):
        AuthGate(**{"address": URL, **options})
