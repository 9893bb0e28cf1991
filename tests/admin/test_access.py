"""Access to the gateway's own endpoints: roles by token, wrong tokens, pages of other sites."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from werkzeug.test import Client, TestResponse

from wsgigate.admin.access import AdminAccess, origin_of
from wsgigate.admin.api import AdminApi, AdminEndpoint, Group
from wsgigate.auth.throttle import TokenGuard
from wsgigate.http.json_app import JsonRequest
from wsgigate.http.wsgi import CLIENT, PEER_TRUSTED, REASON
from wsgigate.proxy.dispatcher import Dispatcher
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

TOKEN = "k" * 31 + "?"
VIEWER = "v" * 32


class Document(TypedDict):
    n: int


def show(request: JsonRequest) -> object:
    return {"n": 1}


THING = Group(
    "things",
    [
        AdminEndpoint(line="GET /thing", answer=show, summary="Read", response=Document),
        AdminEndpoint(
            line="PUT /thing", answer=show, summary="Write", body=Document, response=Document
        ),
        AdminEndpoint(line="POST /reset", answer=show, summary="Reset", response=Document),
    ],
)


def send(
    headers: dict[str, str],
    *,
    host: str = "gate:3000",
    line: str = "POST /reset",
    query: str = "",
    access: AdminAccess | None = None,
    **environ: Any,
) -> TestResponse:
    seen: dict[str, Any] = {}
    access = access or AdminAccess(TOKEN)
    app = Dispatcher(AdminApi([THING], access=access).routes())

    def outer(environ: Any, start_response: Any) -> Any:
        seen.update(environ=environ)
        return app(environ, start_response)

    method, _, path = line.partition(" ")
    response = Client(outer).open(
        f"{path}?{query}",
        method=method,
        headers=headers,
        base_url=f"http://{host}/",
        environ_overrides=environ,
    )
    assert (REASON in seen["environ"]) == (response.status_code not in (200, 304))
    return response


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}", f"Bearer {TOKEN} "]
)
def test_the_token_is_accepted(value: str) -> None:
    assert send({"Authorization": value}).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
        f"Bearer\t{TOKEN}",
        "Bearer \xe9" + TOKEN,
        "Bearer " + "x" * 100_000,
    ],
)
def test_every_other_request_gets_the_same_rejection(value: str) -> None:
    response = send({"Authorization": value})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="admin"'
    assert response.get_json()["message"] == "Admin token required!"


def test_a_request_without_the_field_is_refused_the_same_way() -> None:
    assert send({}).data == send({"Authorization": "Bearer wrong"}).data


@pytest.mark.parametrize("name", ["token", "access_token", "Authorization"])
@pytest.mark.parametrize("headers", [{}, bearer()])
def test_a_token_in_the_query_is_rejected(name: str, headers: dict[str, str]) -> None:
    response = send(headers, query=f"a=b&{name}={TOKEN}")
    assert response.status_code == 400
    assert TOKEN not in response.text


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("gate:3000", "http://gate:3000"),
        ("gate", "http://gate"),
        ("gate:80", "http://gate"),
        ("gate", "https://gate"),  # TLS ends in front of the gateway
        ("gate:443", "https://gate"),
        ("GATE:3000", "http://gate:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
    ],
)
def test_a_page_of_the_same_host_is_accepted(host: str, origin: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": origin, "Host": host}
    assert send(headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil",
        "http://gate",
        "http://gate:3001",
        "http://gate:3000.evil",
        "http://gate:3000@evil",
        "http://evil/gate:3000",
        "null",
        "",
        "gate:3000",
        "file://",
        "ftp://gate:3000",
        "http://[",
        "http://gate:99999",
    ],
)
def test_a_page_of_another_origin_is_rejected_even_with_the_token(origin: str) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Origin": origin}
    response = send(headers)
    assert response.status_code == 403
    assert send({"Origin": origin}).status_code == 403


@pytest.mark.parametrize(
    ("site", "status"),
    [("none", 200), ("same-origin", 200), ("same-site", 403), ("cross-site", 403)],
)
def test_sec_fetch_site_counts_without_an_origin(site: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": site}
    assert send(headers).status_code == status


@pytest.mark.parametrize(
    "token", ["", "short", "k" * 31, "k" * 31 + " ", "k" * 31 + "é", "k" * 1025]
)
@pytest.mark.parametrize("name", ["token", "viewer_token"])
def test_a_token_that_could_be_guessed_or_never_arrives_is_refused(name: str, token: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}: an? (admin|viewer) token is 32 to 1024"):
        AdminAccess(**{name: token})


def test_the_two_tokens_differ() -> None:
    with pytest.raises(ValueError, match="viewer_token: must differ"):
        AdminAccess(TOKEN, TOKEN)


READ, WRITE = "GET /thing", "POST /reset"


@pytest.mark.parametrize(
    ("token", "viewer", "line", "given", "status", "words"),
    [
        (TOKEN, None, READ, TOKEN, 200, ""),
        (TOKEN, None, WRITE, TOKEN, 200, ""),
        (TOKEN, VIEWER, READ, VIEWER, 200, ""),
        (TOKEN, VIEWER, READ, TOKEN, 200, ""),
        (TOKEN, VIEWER, WRITE, VIEWER, 403, "requires the admin token"),
        (TOKEN, VIEWER, READ, "x" * 32, 401, "Admin token required"),
        (None, VIEWER, READ, VIEWER, 200, ""),
        (None, VIEWER, WRITE, VIEWER, 403, "admin.token enables them"),
        (None, None, READ, TOKEN, 403, "admin.token or admin.viewer_token enables it"),
        (None, None, WRITE, TOKEN, 403, "admin.token enables them"),
    ],
)
def test_the_viewer_token_reads_and_the_admin_token_writes(
    token: str | None, viewer: str | None, line: str, given: str, status: int, words: str
) -> None:
    response = send(bearer(given), line=line, access=AdminAccess(token, viewer))
    assert response.status_code == status
    assert words in response.text


def test_a_cookie_is_no_token() -> None:
    assert send({"Cookie": f"Authorization=Bearer {TOKEN}; token={TOKEN}"}).status_code == 401


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_write_with_a_body_of_another_type_is_rejected(kind: str) -> None:
    endpoint = AdminEndpoint(
        line="PUT /thing",
        answer=lambda request: request.json(),
        summary="Write",
        body=Document,
        response=Document,
    )
    app = Dispatcher(AdminApi([Group("things", [endpoint])], access=AdminAccess(TOKEN)).routes())
    client = Client(app)
    response = client.put("/thing", data=b'{"n": 2}', headers={**bearer(), "Content-Type": kind})
    assert response.status_code == 415
    assert client.put("/thing", json={"n": 2}, headers=bearer()).json == {"n": 2}


def test_a_body_that_no_endpoint_reads_is_rejected() -> None:
    app = Dispatcher(AdminApi([THING], access=AdminAccess(TOKEN)).routes())
    assert Client(app).post("/reset", json={}, headers=bearer()).status_code == 400


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:3000", 200),
        ("127.0.0.1:3000", 200),
        ("127.1.2.3", 200),
        ("[::1]:3000", 200),
        ("gate.localhost", 200),
        ("ops.example.com", 200),
        ("gate.internal.example", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.0.2.1", 403),
    ],
)
@pytest.mark.parametrize("line", [READ, WRITE])
def test_a_page_whose_name_resolves_to_loopback_reaches_nothing(
    host: str, status: int, line: str
) -> None:
    access = AdminAccess(TOKEN, hosts=["ops.example.com", "*.internal.example"])
    assert send(bearer(), host=host, line=line, access=access).status_code == status


def test_the_host_behind_a_trusted_proxy_is_the_proxys() -> None:
    access = AdminAccess(TOKEN, hosts=[])
    assert send(bearer(), host="gate.example", access=access).status_code == 403
    vouched = {PEER_TRUSTED: True, CLIENT: "192.0.2.7"}
    assert send(bearer(), host="gate.example", access=access, **vouched).status_code == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://ops.example.com", 200),
        ("http://ops.example.com", 403),
        ("https://ops.example.com.evil", 403),
        ("null", 403),
    ],
)
def test_pages_of_allowed_origins_may_send_requests(origin: str, status: int) -> None:
    access = AdminAccess(TOKEN, origins=["https://OPS.example.com:443"])
    headers = {**bearer(), "Origin": origin, "Sec-Fetch-Site": "cross-site"}
    assert send(headers, access=access).status_code == status


@pytest.mark.parametrize(
    "text",
    ["", "null", "*", "ops.example.com", "https://", "https://a/b", "ftp://a", "https://u@a"],
)
def test_an_origin_that_no_browser_sends_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="an origin is as"):
        origin_of(text)


def test_wrong_tokens_are_limited_by_address(clock: FakeClock) -> None:
    access = AdminAccess(TOKEN, guard=TokenGuard(MemoryStore(clock=clock), called="admin tokens"))

    def status(token: str, address: str, **more: Any) -> int:
        return send(bearer(token), access=access, REMOTE_ADDR=address, **more).status_code

    assert status(TOKEN, "192.0.2.1") == 200
    for address in ("192.0.2.1", "192.0.2.2"):
        assert [status(f"wrong-{n}", address) for n in range(11)] == [401] * 10 + [429]
    assert status(TOKEN, "192.0.2.1") == 200  # it has used the token before
    assert status(TOKEN, "192.0.2.2") == 429  # a right guess looks as a wrong one
    assert status(TOKEN, "192.0.2.3") == 200
    # what a client writes into a field names no address
    assert status(TOKEN, "192.0.2.2", HTTP_X_FORWARDED_FOR="192.0.2.3") == 429
    assert status(TOKEN, "192.0.2.2", HTTP_X_REAL_IP="127.0.0.1") == 429
    clock.advance(60)
    assert status(TOKEN, "192.0.2.2") == 200


def test_a_missing_token_is_not_counted(clock: FakeClock) -> None:
    access = AdminAccess(TOKEN, guard=TokenGuard(MemoryStore(clock=clock)))
    assert {send({}, access=access).status_code for _ in range(30)} == {401}
    assert send(bearer(), access=access).status_code == 200


def test_tokens_stay_out_of_representations() -> None:
    assert TOKEN not in repr(AdminAccess(TOKEN))
