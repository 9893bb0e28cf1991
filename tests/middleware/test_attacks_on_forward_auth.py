"""Attacks on forward authentication and introspection: smuggled fields, others' answers, SSRF."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from werkzeug.test import Client

from tests.support.forward_auth import AuthGate, allow, deny, gate
from wsgigate import ForwardAuth, Forwarder, Instance, Pool
from wsgigate.auth.forward_auth import cache_key
from wsgigate.auth.identity import IDENTITY
from wsgigate.client.adapter import Sessions
from wsgigate.testing import Backend, Received, cut

USER: dict[str, Any] = {"auth_response_headers": ["Remote-User"], "header_field": "Remote-User"}


@contextmanager
def forwarded(*answers: bytes, **options: Any) -> Iterator[tuple[Client, Backend, Backend]]:
    """Yield a client of the middleware around a forwarder, the service, and the instance."""
    with Backend(*answers) as service, Backend() as instance:
        sessions = Sessions()
        forwarder = Forwarder(Pool("orders", [Instance(instance.url)]), sessions=sessions)
        app = ForwardAuth(forwarder, service.url, **options)
        yield Client(app, use_cookies=False), service, instance
        app.close()
        sessions.close()


@pytest.mark.parametrize("answer", [allow(), allow(("Remote-User", "ann"))])
@pytest.mark.parametrize("name", ["Remote-User", "remote-user", "REMOTE_USER", "Remote_User"])
def test_a_field_of_the_client_never_passes_for_one_of_the_service(
    answer: bytes, name: str
) -> None:
    """GHSA-7r4p-vjf4-gxv4 and GHSA-f59h-q822-g45g (Caddy), CVE-2026-33433 (Traefik)."""
    with forwarded(answer, **USER) as (client, service, instance):
        key = "HTTP_" + name.upper().replace("-", "_")  # as CGI and every WSGI server name it
        assert client.get("/", environ_overrides={key: "root"}).status_code == 200
        expected = ["ann"] if b"ann" in answer else []
        assert instance.requests[0].values("Remote-User") == expected
        assert b"root" not in instance.requests[0].head
        assert b"root" not in service.requests[0].head, "the service could believe it"


@pytest.mark.parametrize(
    "connection", ["Remote-User", "close, remote-user", "REMOTE-USER,Cookie", "keep-alive, x-a"]
)
def test_connection_does_not_remove_a_field_of_the_service(connection: str) -> None:
    """CVE-2026-33805 (fastify), CVE-2024-45410 (Traefik)."""
    answer = allow(("Remote-User", "ann"), ("X-Forwarded-User", "ann"))
    options = {**USER, "auth_response_headers": ["Remote-User", "X-Forwarded-User"]}
    with forwarded(answer, **options) as (client, service, instance):
        fields = {"Connection": connection, "Cookie": "session=1"}
        assert client.get("/", headers=fields).status_code == 200
        assert service.requests[0].value("Cookie") == "session=1"
        assert instance.requests[0].value("Remote-User") == "ann"
        assert instance.requests[0].value("X-Forwarded-User") == "ann"


def test_connection_does_not_hide_a_credential_from_the_service() -> None:
    with gate(**USER) as (it, service):
        fields = {"Connection": "Cookie, Authorization", "Cookie": "a=1", "Authorization": "b"}
        it.ask(headers=fields)
        assert service.requests[0].value("Cookie") == "a=1"
        assert service.requests[0].value("Authorization") == "b"


@pytest.mark.parametrize("names", [None, ["X-Suspended", "X-Forwarded-User"]])
def test_connection_does_not_hide_a_field_of_one_service_from_the_next(names: Any) -> None:
    """Two decisions in a row: the second one is about what the first has found out."""
    answer = allow(("X-Suspended", "1"), ("X-Forwarded-User", "ann"))
    outer = {"auth_response_headers": ["X-Suspended", "X-Forwarded-User"]}
    with gate(auth_request_headers=names) as (it, service), Backend(answer) as first:
        app = ForwardAuth(it.app, first.url, **outer)
        fields = {"Connection": "X-Suspended, X-Forwarded-User, X-Other", "X-Other": "a"}
        forged = {"X-Suspended": "0", "X-Forwarded-User": "root"}
        assert Client(app).get("/", headers={**fields, **forged}).status_code == 200
        [asked] = service.requests
        assert asked.values("X-Suspended") == ["1"]
        assert asked.values("X-Forwarded-User") == ["ann"]
        assert asked.value("X-Other") is None
        app.close()


def test_an_authorization_of_the_service_replaces_that_of_the_client() -> None:
    options = {"auth_response_headers": ["Authorization"]}
    for answer, expected in (
        (allow(("Authorization", "Bearer own")), ["Bearer own"]),
        (allow(), []),
    ):
        with forwarded(answer, **options) as (client, service, instance):
            client.get("/", headers={"Authorization": "Bearer theirs"})
            assert service.requests[0].value("Authorization") == "Bearer theirs"
            assert instance.requests[0].values("Authorization") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Forwarded-Method", "GET"),
        ("X-Forwarded-Uri", "/public"),
        ("X-Forwarded-Host", "evil.example"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-For", "10.0.0.1"),
        ("X-Forwarded-Anything", "1"),
        ("Forwarded", "for=10.0.0.1"),
        ("X-Original-URL", "/public"),
        ("X-Original-Method", "GET"),
        ("X-Real-IP", "10.0.0.1"),
    ],
)
def test_a_client_does_not_describe_its_own_request(name: str, value: str) -> None:
    environ = {"HTTP_" + name.upper().replace("-", "_"): value, "REMOTE_ADDR": "192.0.2.7"}
    with gate() as (it, service):
        it.ask("/admin", method="POST", environ=environ)
        [request] = service.requests
    assert request.value("X-Forwarded-Method") == "POST"
    assert request.value("X-Forwarded-Uri") == "/admin"
    assert request.value("X-Forwarded-Host") == "localhost"
    assert request.value("X-Forwarded-Proto") == "http"
    assert request.value("X-Forwarded-For") == "192.0.2.7"
    assert "evil" not in str(request.fields)
    assert not request.values("X-Original-URL")
    assert not request.values("X-Real-IP")


@pytest.mark.parametrize(
    ("raw", "uri"),
    [("/%61dmin", "/admin"), ("//admin", "/admin"), ("/a/../admin", None), ("/a%2fb", "/a%2Fb")],
)
def test_the_service_sees_the_path_that_is_forwarded(raw: str, uri: str | None) -> None:
    with forwarded(allow()) as (client, service, instance):
        environ = {"RAW_URI": raw, "PATH_INFO": unquote(raw)}
        status = client.get("/", environ_overrides=environ).status_code
        if uri is None:
            assert status == 400
            assert not service.requests
            return
        assert service.requests[0].value("X-Forwarded-Uri") == uri
        assert [each.target for each in instance.requests] in ([uri], [])


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Moved", "308 Moved"])
def test_a_redirect_leads_the_gateway_nowhere(status: str) -> None:
    with Backend() as inside:
        with gate(deny(status, ("Location", f"{inside.url}/latest/meta-data"))) as (it, _):
            assert it.ask().status_code == int(status[:3])
        assert not inside.requests


@pytest.mark.parametrize(
    "value", [b"ann\rX-Admin: 1", b"ann\0", b"ann\x0b", b"ann\r\n evil", b"ann\nX-Admin: 1"]
)
def test_a_field_cannot_add_another_one(value: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nRemote-User: " + value + b"\r\nContent-Length: 0\r\n\r\n"
    with gate(cut(answer), **USER) as (it, _):
        assert it.ask().status_code == 503
        assert not it.seen


@pytest.mark.parametrize(
    "answer",
    [
        deny("401 Unauthorized", ("Connection", "a," * 200)),
        deny("302 Found", ("Location", "https://a.example/"), body=b"x" * 2000),
    ],
    ids=["malformed", "too large"],
)
def test_a_rejection_that_cannot_be_passed_on_is_no_outage(answer: bytes) -> None:
    with gate(answer, on_error="allow", max_response_body_size=1000) as (it, _):
        assert it.ask().status_code == 503
        assert not it.seen
        assert it.app.errors == 0


def test_a_field_that_is_too_long_for_a_backend_is_not_passed_on() -> None:
    with gate(allow(("Remote-User", "x" * 9000)), **USER) as (it, _):
        assert it.ask().status_code == 503


def test_two_users_are_none() -> None:
    with gate(allow(("Remote-User", "ann"), ("remote-user", "root")), **USER) as (it, _):
        assert it.ask().status_code == 503
        assert "remote-user more than once" in it.reason


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT"])
def test_the_service_is_not_asked_with_a_method_that_echoes(method: str) -> None:
    with gate(deny("405 No"), preserve_request_method=True) as (it, service):
        it.ask(method=method)
        assert service.requests[0].method == "GET"
        assert service.requests[0].value("X-Forwarded-Method") == method


def test_a_conditional_request_cannot_make_the_answer_a_304() -> None:
    fields = {"If-None-Match": '"x"', "If-Modified-Since": "x", "Range": "bytes=0-1"}
    with gate() as (it, service):
        it.ask(headers=fields)
        names = {name.lower() for name, _ in service.requests[0].fields}
    assert names.isdisjoint(name.lower() for name in fields)


def test_a_malformed_field_is_the_clients_fault() -> None:
    with gate() as (it, service):
        assert it.ask(environ={"HTTP_X_A": "a\x00b"}).status_code == 400
        assert it.ask(environ={"HTTP_X A": "b"}).status_code == 400
        assert (
            it.ask(headers={"Connection": ",".join("abc" for _ in range(200))}).status_code == 400
        )
        assert not service.requests
        assert it.app.errors == 0


# Remembered answers.


def echo(connection: Any, request: Received) -> None:
    """Answer with the credential of the request as the user."""
    user = request.values("Cookie") + request.values("Authorization") + ["nobody"]
    connection.sendall(allow(("Remote-User", user[0])))


def users(requests: Sequence[dict[str, Any]], **options: Any) -> list[str]:
    options = {"cache": 30, "cache_key_headers": ["Cookie", "Authorization"], **USER, **options}
    with gate(echo, **options) as (it, _):
        for each in requests:
            it.ask(**each)
        return [environ[IDENTITY].subject for environ in it.seen]


@pytest.mark.parametrize("scope", ["request", "credential"])
def test_a_remembered_answer_is_not_given_to_another_client(scope: str) -> None:
    clients = ["a", "b", "a", "ab", "A"]
    requests = [{"headers": {"Cookie": each}} for each in clients]
    assert users(requests, cache_scope=scope) == clients


@pytest.mark.parametrize("scope", ["request", "credential"])
def test_a_credential_in_one_field_is_none_in_another(scope: str) -> None:
    requests = [
        {"headers": {"Cookie": "x"}},
        {"headers": {"Authorization": "x"}},
        {"headers": {"Cookie": "x", "Authorization": ""}},
        {"headers": {}},
        {"headers": {}},
    ]
    assert users(requests, cache_scope=scope) == ["x", "x", "x", "nobody", "nobody"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": "1", "b": "2"}, {"a": "1;1:b=1:2"}),
        ({"a": "1:2"}, {"a": "1", "b": "2"}),
        ({"a": ""}, {"b": ""}),
        ({"a": "-"}, {"a": "", "b": "-"}),
        ({"a": "x"}, {"b": "x"}),
    ],
)
def test_different_credentials_have_different_keys(
    one: dict[str, str], other: dict[str, str]
) -> None:
    """CVE-2026-71326 (Traefik)."""
    keys = [cache_key(each, ["a", "b"], per_request=False) for each in (one, other)]
    assert None not in keys
    assert keys[0] != keys[1]


VALUES = st.lists(st.none() | st.text("a1:;-", max_size=6), min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(VALUES, VALUES)
def test_keys_are_equal_only_if_all_values_are(
    one: list[str | None], other: list[str | None]
) -> None:
    def key(values: list[str | None]) -> bytes | None:
        named = zip("abc", values, strict=True)
        fields = {name: value for name, value in named if value is not None}
        return cache_key(fields, "abc", per_request=False)

    assert (key(one) == key(other)) == (one == other)
    assert (key(one) is None) == (one == [None] * 3)


def test_a_remembered_answer_is_for_one_kind_of_request() -> None:
    base: dict[str, Any] = {"headers": {"Cookie": "a"}, "environ": {"REMOTE_ADDR": "192.0.2.7"}}
    others = [
        {**base, "method": "POST"},
        {**base, "path": "/admin"},
        {**base, "path": "/?a=1"},
        {**base, "base_url": "https://localhost/"},
        {**base, "base_url": "http://other.example/"},
        {**base, "environ": {"REMOTE_ADDR": "192.0.2.8"}},
    ]
    options = {"cache": 30, "cache_key_headers": ["Cookie"]}
    with gate(allow(), **options) as (it, service):
        for each in (base, *others):
            for _ in range(2):
                it.ask(**each)
        assert len(service.requests) == 1 + len(others)
    with gate(allow(), cache_scope="credential", **options) as (it, service):
        for each in (base, *others):
            it.ask(**each)
        assert len(service.requests) == 1


def test_with_a_cache_the_service_gets_only_what_is_in_the_key() -> None:
    """Otherwise an answer about one tenant would be remembered for another."""
    with gate(cache=30, cache_key_headers=["Cookie"]) as (it, service):
        it.ask(headers={"Cookie": "a", "X-Tenant": "north", "Authorization": "b"})
        assert not service.requests[0].values("X-Tenant")
        assert not service.requests[0].values("Authorization")


def test_a_rejection_is_for_its_own_url_also_if_two_arrive_together() -> None:
    both = threading.Event()

    def login(connection: Any, request: Received) -> None:
        both.wait(30)
        location = f"https://login.example/?to={request.value('X-Forwarded-Uri')}"
        connection.sendall(deny("302 Found", ("Location", location)))

    options: Any = {"cache": 30, "cache_key_headers": ["Cookie"], "cache_scope": "credential"}
    with gate(login, login, timeout=30, **options) as (it, service):
        found: list[str] = []

        def ask(path: str) -> None:
            found.append(it.ask(path, headers={"Cookie": "expired"}).headers["Location"])

        threads = [threading.Thread(target=ask, args=(path,)) for path in ("/a", "/b")]
        for thread in threads:
            thread.start()
        service.wait_for_requests(2)
        both.set()
        for thread in threads:
            thread.join(30)
        assert sorted(found) == ["https://login.example/?to=/a", "https://login.example/?to=/b"]


def test_the_cache_is_bounded() -> None:
    with gate(cache=30, cache_key_headers=["Cookie"], cache_size=4) as (it, service):
        for _ in range(2):
            for number in range(20):
                it.ask(headers={"Cookie": str(number)})
        assert len(service.requests) == 40


def test_an_expired_permission_does_not_outlive_a_service_that_is_down() -> None:
    with gate(allow(), deny("503 Busy"), cache=30, cache_key_headers=["Cookie"]) as (it, _):
        fields = {"Cookie": "a"}
        assert [it.ask(headers=fields).status_code for _ in range(2)] == [200, 200]
        it.timer.advance(30)
        assert it.ask(headers=fields).status_code == 503


def test_addresses_of_metadata_services_are_never_connected_to() -> None:
    for url in ("http://169.254.169.254/", "http://100.100.100.200/", "http://192.0.2.1/"):
        it = AuthGate(url)
        assert it.ask().status_code == 503
        assert "an endpoint cannot be" in it.reason
