"""Changes require the token of the operator, and are rejected from pages of other sites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from wsgigate.auth.bearer import require_token
from wsgigate.http.wsgi import REASON

TOKEN = "k" * 31 + "?"


def send(headers: dict[str, str], *, host: str = "gate:3000", query: str = "") -> TestResponse:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        start_response("204 No Content", [])
        return []

    def outer(environ: Any, start_response: Any) -> Iterable[bytes]:
        seen.update(environ=environ)
        return require_token(app, TOKEN)(environ, start_response)

    response = Client(outer).post(f"/reset?{query}", headers=headers, base_url=f"http://{host}/")
    assert (REASON in seen["environ"]) == (response.status_code != 204)
    return response


@pytest.mark.parametrize(
    "value", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER   {TOKEN}", f"Bearer {TOKEN} "]
)
def test_the_token_is_accepted(value: str) -> None:
    assert send({"Authorization": value}).status_code == 204


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


@pytest.mark.parametrize("name", ["token", "access_token", "authorization"])
def test_a_token_in_the_query_is_ignored(name: str) -> None:
    assert send({}, query=f"{name}={TOKEN}").status_code == 401


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
    assert send(headers).status_code == 204


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
    [("none", 204), ("same-origin", 204), ("same-site", 403), ("cross-site", 403)],
)
def test_sec_fetch_site_counts_without_an_origin(site: str, status: int) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": site}
    assert send(headers).status_code == status


@pytest.mark.parametrize(
    "token", ["", "short", "k" * 31, "k" * 31 + " ", "k" * 31 + "é", "k" * 1025]
)
def test_a_token_that_could_be_guessed_or_never_arrives_is_refused(token: str) -> None:
    with pytest.raises(ValueError, match="admin token"):
        require_token(lambda environ, start_response: [], token)
