"""Token introspection against a real endpoint, which lies, fails and hangs."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from werkzeug.test import Client

from tests.support.certificates import Authority, make_certificate
from tests.support.introspection import ACTIVE, Gate, Server, answer, gate
from tests.support.ports import refused_port
from tests.support.tokens import NOW
from wsgigate import AnyOf, ApiKeyAuthenticator, ApiKeys, IntrospectionAuthenticator
from wsgigate.auth.identity import IDENTITY
from wsgigate.http.wsgi import CLAIMS
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import Backend, reply
from wsgigate.testing.backend import Received


def test_an_active_token_is_the_identity_of_its_caller() -> None:
    claims = {**ACTIVE, "iss": "https://id.example", "username": "Ann", "exp": NOW + 10}
    with gate(tokens={"good": claims}) as (it, _):
        assert it.ask().status_code == 200
        identity = it.seen[0][IDENTITY]
    assert (identity.subject, identity.scheme) == ("ann", "introspection")
    assert (identity.issuer, identity.client) == ("https://id.example", "shop")
    assert identity.scopes == {"read", "write"}
    assert identity.claims["username"] == "Ann"
    assert "active" not in identity.claims
    assert "good" not in repr(identity) + repr(dict(identity.claims))


def test_the_username_is_the_subject_of_an_answer_without_sub() -> None:
    with gate(tokens={"good": {"active": True, "username": "ann"}}) as (it, _):
        it.ask()
        assert it.seen[0][IDENTITY].subject == "ann"


@pytest.mark.parametrize(
    ("options", "authorization", "form"),
    [
        (
            {"client_id": "a:b", "client_secret": "é&/ +"},
            "Basic YSUzQWI6JUMzJUE5JTI2JTJGKyUyQg==",  # RFC 6749 section 2.3.1
            {"token": ["good"]},
        ),
        (
            {"auth_method": "client_secret_post", "token_type_hint": "access_token"},
            None,
            {
                "token": ["good"],
                "client_id": ["gate"],
                "client_secret": ["s3cret"],
                "token_type_hint": ["access_token"],
            },
        ),
        (
            {"client_id": None, "client_secret": None, "bearer_token": "own"},
            "Bearer own",
            {"token": ["good"]},
        ),
    ],
)
def test_the_gateway_authenticates_itself(
    options: dict[str, Any], authorization: str | None, form: dict[str, list[str]]
) -> None:
    with gate(**options) as (it, server):
        assert it.ask().status_code == 200
        [request] = server.requests
    assert request.line == "POST /oauth2/introspect HTTP/1.1"
    assert request.value("Authorization") == authorization
    assert request.value("Content-Type") == "application/x-www-form-urlencoded"
    assert request.value("Accept") == "application/json"
    assert parse_qs(request.body.decode()) == form


@pytest.mark.parametrize(
    ("claims", "options", "reason"),
    [
        ({"active": False}, {}, "the server does not know it as active"),
        ({"active": False, "sub": "ann"}, {}, "the server does not know it as active"),
        ({"exp": NOW - 31}, {}, "expired 31 s ago"),
        ({"exp": "soon"}, {}, "exp is 'soon'"),
        ({"nbf": NOW + 31}, {}, "not valid for another 31 s"),
        ({"iat": NOW + 31}, {}, "issued 31 s in the future"),
        ({"aud": "other"}, {"audience": "orders"}, "for the audience 'other', not 'orders'"),
        ({}, {"audience": "orders"}, "no audience (aud)"),
        ({"aud": ["other"]}, {}, "for the audience ['other'], and none is configured"),
        ({"aud": {"orders": 1}}, {"audience": "orders"}, "aud is {'orders': 1}"),
        ({"iss": "https://evil"}, {"issuer": "https://id"}, "issued by 'https://evil'"),
        ({}, {"issuer": "https://id"}, "issued by None"),
        ({"sub": 7}, {}, "sub is 7"),
        ({"sub": "a\nb"}, {}, "sub is 'a\\nb'"),
        ({"sub": None, "username": "a\u2028b"}, {}, "username is 'a\\u2028b'"),
        ({"aud": []}, {"audience": "orders"}, "no audience (aud)"),
        ({"aud": None}, {"audience": "orders"}, "no audience (aud)"),
        ({"token_type": "refresh_token"}, {}, "no access token: token_type is"),
        ({}, {"required_claims": {"tenant": "north"}}, "no tenant"),
    ],
)
def test_a_token_that_breaks_a_rule_is_invalid(
    claims: dict[str, Any], options: dict[str, Any], reason: str
) -> None:
    with gate(tokens={"good": {**ACTIVE, **claims}}, **options) as (it, _):
        response = it.ask()
        assert response.status_code == 401
        assert response.json is not None
        assert response.json["detail"] == "Invalid or expired token!"
        challenge = response.headers["WWW-Authenticate"]
        assert challenge == 'Bearer realm="api", error="invalid_token"'
        assert reason in it.reason
        assert not it.seen


@pytest.mark.parametrize("audience", [[], None])
def test_members_without_a_value_count_as_missing(audience: object) -> None:
    """Ory Hydra sends an empty audience; servers in other languages send null."""
    members = dict.fromkeys(("exp", "nbf", "iat", "iss", "sub", "scope", "cnf", "token_type"))
    answered = {"active": True, **members, "aud": audience, "username": "ann"}
    with gate(tokens={"good": answered}, dpop="optional") as (it, _):
        assert it.ask().status_code == 200
        assert it.seen[0][IDENTITY].subject == "ann"
        assert dict(it.seen[0][IDENTITY].claims) == {"username": "ann"}


def test_an_audience_of_the_gateway_passes() -> None:
    claims = {**ACTIVE, "aud": ["account", "orders"]}
    with gate(tokens={"good": claims}, audience=["orders", "shop"]) as (it, _):
        assert it.ask().status_code == 200


LIES: list[tuple[bytes, str]] = [
    (answer({"sub": "ann"}), "active is None, neither true nor false"),
    (answer({**ACTIVE, "active": "true"}), "active is 'true', neither true nor false"),
    (answer({**ACTIVE, "active": 1}), "active is 1, neither true nor false"),
    (answer({**ACTIVE, "active": [True]}), "active is [True]"),
    (answer(b'{"active": false, "active": true}'), "a duplicate member"),
    (answer(b"[true]"), "a response that is not an object"),
    (answer(b"active=true"), "a response that is not strict JSON"),
    (answer(b'{"active": true, "x": NaN}'), "a response that is not strict JSON"),
    (answer(b'{"active": true, "x": ' + b"[" * 99 + b"]" * 99 + b"}"), "more than 64 levels"),
    (answer(b'{"active":true,"x":' + b"[" * 20000 + b"]" * 20000 + b"}"), "nested too deeply"),
    (answer(ACTIVE, kind="text/html"), "answered with the type 'text/html'"),
    (answer(ACTIVE, kind="application/token-introspection+jwt"), "answered with the type"),
    (reply(json.dumps(ACTIVE).encode()), "answered with the type ''"),
    (answer({**ACTIVE, "x": "x" * 70_000}), "its answer is larger than 65536 bytes"),
    (answer(ACTIVE, status="201 Created"), "the endpoint failed: it answered 201"),
    (answer(ACTIVE, status="401 Unauthorized"), "the endpoint failed: it answered 401"),
    (answer(ACTIVE, status="500 Oops"), "the endpoint answered 500"),
    (answer(ACTIVE, status="400 Bad Request"), "the endpoint answered 400"),
]


@pytest.mark.parametrize(("lie", "reason"), LIES, ids=range(len(LIES)))
def test_an_answer_that_cannot_be_relied_on_neither_passes_nor_is_remembered(
    lie: bytes, reason: str
) -> None:
    with gate(tokens={"good": lie}) as (it, server):
        response = it.ask()
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
        assert reason in it.reason
        assert "127.0.0.1" not in it.reason + response.text
        assert not it.seen
        server.tokens["good"] = ACTIVE
        assert it.ask().status_code == 200


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n"])
def test_an_endpoint_that_hangs_is_waited_for_no_longer_than_allowed(begin: bytes) -> None:
    with gate(tokens={"good": begin}, timeout=0.2) as (it, _):
        assert it.ask().status_code == 503
        assert it.reason == "the endpoint failed: there was no answer in time"


def test_a_redirect_is_not_followed() -> None:
    with Server() as inside:
        inside.tokens = {"good": ACTIVE}
        moved = reply(status="307 Moved", fields=[("Location", f"{inside.url}/introspect")])
        with gate(tokens={"good": moved}) as (it, _):
            assert it.ask().status_code == 503
            assert it.reason == "the endpoint failed: it answered 307"
        assert not inside.requests


def test_the_certificate_of_the_endpoint_is_verified(tmp_path: Path) -> None:
    own, other = make_certificate(tmp_path), Authority(tmp_path, "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own)
    with Server(tls=lambda sock: context.wrap_socket(sock, server_side=True)) as server:
        server.tokens = {"good": ACTIVE}
        for ca, status in ((str(own), 200), (None, 503), (str(other.path), 503)):
            it = Gate(server.url, ca=ca)
            assert it.ask().status_code == status
            it.app.close()
    assert it.reason == "the endpoint failed: its certificate cannot be verified"


def test_answers_are_remembered_for_their_time() -> None:
    tokens = {"good": ACTIVE, "short": {**ACTIVE, "exp": NOW + 10}}
    with gate(tokens=tokens, cache=60, inactive_cache=5, leeway=0) as (it, server):
        for token in ("good", "short", "bad") * 3:
            it.ask(token)
        assert server.asked == ["good", "short", "bad"]
        it.advance(5)
        assert it.ask("bad").status_code == 401
        assert server.asked[3:] == ["bad"]
        it.advance(5)
        assert it.ask("short").status_code == 401, "expired while it was remembered"
        assert "expired 0 s ago" in it.reason
        it.advance(49.9)
        assert it.ask("good").status_code == 200
        assert server.asked[4:] == ["short"]
        server.tokens["good"] = {"active": False}
        it.advance(0.1)
        assert it.ask("good").status_code == 401, "revoked"


def test_a_clock_that_is_set_back_prolongs_nothing() -> None:
    with gate() as (it, server):
        it.ask()
        server.tokens["good"] = {"active": False}
        it.clock.advance(-3600)
        it.timer.advance(60)
        assert it.ask().status_code == 401


def test_a_flood_of_invalid_tokens_displaces_no_valid_one() -> None:
    with gate(cache_size=10) as (it, server):
        it.ask("good")
        for number in range(30):
            it.ask(f"bad-{number}")
        it.ask("good")
        assert server.asked.count("good") == 1


@pytest.mark.parametrize(
    "token", ["a,b", "a b", "a\tb", "é", "x" * 8193, "", "=", "a\x00b", "good, Bearer good"]
)
def test_what_is_no_token_is_not_asked_about(token: str) -> None:
    with gate() as (it, server):
        assert it.ask(token).status_code == 401
        assert not server.requests


def test_a_token_cannot_add_to_the_form() -> None:
    with gate(tokens={"x&token=good": {"active": False}}) as (it, server):
        assert it.ask("x&token=good").status_code == 401
        assert not server.requests


def test_equal_requests_at_the_same_time_make_one_exchange() -> None:
    release = threading.Event()

    def late(connection: socket.socket, _request: Received) -> None:
        release.wait(30)
        connection.sendall(answer(ACTIVE))

    with Backend(late) as backend:
        it = Gate(backend.url, timeout=30)
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(it.ask().status_code)) for _ in range(6)
        ]
        threads[0].start()
        backend.wait_for_requests(1)
        for thread in threads[1:]:
            thread.start()
        release.set()
        for thread in threads:
            thread.join(30)
        assert found == [200] * 6
        # whoever came after the exchange found the remembered answer
        assert len(backend.requests) == 1
        it.app.close()


def test_a_dead_endpoint_is_not_waited_for() -> None:
    with refused_port() as port:
        it = Gate(f"http://127.0.0.1:{port}")
        for number in range(20):
            assert it.ask(f"token-{number}").status_code == 503
    assert "it has failed too often: the connection was refused" in it.reason


@pytest.mark.parametrize("status", ["400 Bad", "403 Blocked", "413 Large", "422 No", "500 Oops"])
def test_tokens_that_the_server_rejects_keep_it_from_no_other(status: str) -> None:
    """A firewall answers 403 to ``../../etc/passwd``; that says nothing about other tokens."""
    with gate() as (it, server):
        for number in range(8):
            token = f"../../etc/passwd-{number}"
            server.tokens[token] = answer({}, status=status)
            assert it.ask(token).status_code == 503
        assert it.ask("good").status_code == 200


def test_no_token_and_another_scheme() -> None:
    with gate() as (it, server):
        for value in (None, "Basic YTpi"):
            response = it.ask(None, **({} if value is None else {"HTTP_AUTHORIZATION": value}))
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'
        assert it.ask(None, HTTP_AUTHORIZATION="Basic a, Bearer good").status_code == 401
        assert it.ask(None, HTTP_AUTHORIZATION="bearer good").status_code == 200
        assert server.asked == ["good"]


def test_a_scope_that_is_missing_is_403() -> None:
    with gate(scopes=["read", "admin"], realm="shop") as (it, _):
        response = it.ask()
    assert response.status_code == 403
    expected = 'Bearer realm="shop", error="insufficient_scope", scope="admin read"'
    assert response.headers["WWW-Authenticate"] == expected
    assert it.reason == "the token does not grant admin"


def test_an_optional_token_leaves_the_identity_of_another_authenticator() -> None:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    with gate(required=False) as (it, _):
        client = Client(ApiKeyAuthenticator(it.app, keys, required=False))
        client.get("/", headers={"X-API-Key": key})
        assert it.seen[-1][IDENTITY].subject == "acme"
        client.get("/", headers={"X-API-Key": key, "Authorization": "Bearer good"})
        assert it.seen[-1][IDENTITY].subject == "ann"
        client.get("/")
        assert IDENTITY not in it.seen[-1]
        assert client.get("/", headers={"Authorization": "Bearer bad"}).status_code == 401


def test_another_authenticator_may_accept_a_request_without_a_token() -> None:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    with Server() as server:
        seen: list[str] = []

        def app(environ: Any, start_response: Any) -> Iterable[bytes]:
            seen.append(environ[IDENTITY].subject)
            start_response("200 OK", [])
            return [b""]

        options = {"client_id": "gate", "client_secret": "s3cret"}
        server.tokens = {"good": ACTIVE}
        ways = [
            partial(IntrospectionAuthenticator, endpoint=server.url, **options),
            partial(ApiKeyAuthenticator, keys=keys),
        ]
        client = Client(AnyOf(app, ways))
        assert client.get("/", headers={"X-API-Key": key}).status_code == 200
        assert client.get("/", headers={"Authorization": "Bearer good"}).status_code == 200
        assert seen == ["acme", "ann"]
        response = client.get("/")
        assert response.headers.getlist("WWW-Authenticate")[0] == 'Bearer realm="api"'
        assert client.get("/", headers={"Authorization": "Bearer bad"}).status_code == 401


def test_what_an_outer_middleware_left_is_not_the_caller() -> None:
    with gate(exempt=lambda environ: environ["PATH_INFO"] == "/") as (it, _):
        it.ask(None, **{IDENTITY: "forged", CLAIMS: {"sub": "root"}})
        assert IDENTITY not in it.seen[-1]
        assert CLAIMS not in it.seen[-1]


def test_preflights_pass_without_an_identity() -> None:
    fields = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    with gate() as (it, _):
        assert Client(it.app).options("/", headers=fields).status_code == 200
    with gate(preflights=True) as (it, _):
        assert Client(it.app).options("/", headers=fields).status_code == 401


@pytest.mark.parametrize("hides", [False, True])
def test_the_token_is_hidden_on_request(hides: bool) -> None:
    with gate(hide_credentials=hides) as (it, _):
        it.ask()
        assert ("HTTP_AUTHORIZATION" in it.seen[0]) is not hides


def app(environ: Any, start_response: Any) -> Iterable[bytes]:
    return []


URL = "https://id.example.com/introspect"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: IntrospectionAuthenticator(app, "http://id.example.com/"), "endpoint: 'http://"),
        (lambda: IntrospectionAuthenticator(app, URL), "client_id: required"),
        (lambda: IntrospectionAuthenticator(app, URL, client_id="a"), "client_secret: required"),
        (
            lambda: IntrospectionAuthenticator(app, URL, client_id="a", bearer_token="b"),
            "bearer_token: mutually exclusive",
        ),
        (
            lambda: IntrospectionAuthenticator(app, URL, bearer_token="hunter two"),
            "bearer_token: not a bearer token",
        ),
        (
            lambda: IntrospectionAuthenticator(app, URL, bearer_token="b", auth_method="basic"),
            'auth_method is "client_secret_basic" or "client_secret_post"',
        ),
        (lambda: IntrospectionAuthenticator(app, URL, bearer_token="b", cache=-1), "cache: 0 to"),
        (lambda: IntrospectionAuthenticator(app, URL, bearer_token="b", timeout=0), "timeout: "),
        (
            lambda: IntrospectionAuthenticator(
                app, URL, bearer_token="b", scopes=["a"], required=False
            ),
            "scopes: cannot be required",
        ),
    ],
)
def test_a_wrong_argument_is_an_error(make: Callable[[], object], why: str) -> None:
    with pytest.raises(ValueError, match="^" + why.replace("(", r"\(")) as found:
        make()
    assert "hunter" not in str(found.value)


def test_nothing_is_asked_before_the_first_request() -> None:
    with gate() as (_, server):
        assert server.connections == 0
