"""The deny list of a gateway: one admin endpoint for all its authenticators."""

from __future__ import annotations

from types import ModuleType

import pytest
from werkzeug.test import Client

from tests.config.files import APP, SECRET, built, errors_of
from wsgigate.auth.jwt import mint

ADMIN = "a-token-of-32-or-more-characters"
ADMIN_TABLE = f'[admin]\ntoken = "{ADMIN}"\n'
AUTHENTICATOR = f"""\
[[routes.middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{SECRET}"
"""
DENIES = AUTHENTICATOR + "deny_list = true\n"
OTHER = '[[routes]]\npath = "/other"\napp = "full_site:echo"\n' + DENIES


def deny(client: Client, body: object, token: str = ADMIN, path: str = "/_gateway") -> int:
    headers = {"Authorization": f"Bearer {token}"}
    return client.post(f"{path}/tokens/deny", json=body, headers=headers).status_code


def ask(client: Client, token: str, path: str = "/echo") -> int:
    return client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code


def test_all_authenticators_reject_a_token_that_the_endpoint_denied(site: ModuleType) -> None:
    text = ADMIN_TABLE + APP + DENIES + OTHER + "# none\n"
    client = Client(built(text))
    token, another = mint(SECRET, "HS256", "ann"), mint(SECRET, "HS256", "bob")
    assert deny(client, {"token": token}) == 200
    assert ask(client, token) == ask(client, token, "/other") == 401
    assert ask(client, another) == ask(client, another, "/other") == 200


def test_the_endpoint_is_below_the_prefix(site: ModuleType) -> None:
    client = Client(built('[admin]\nprefix = ""\n' + f'token = "{ADMIN}"\n' + APP + DENIES))
    token = mint(SECRET, "HS256", "ann")
    assert deny(client, {"token": token}) == 404
    assert deny(client, {"token": token}, path="") == 200
    assert ask(client, token) == 401


def test_a_wrong_admin_token_denies_nothing(site: ModuleType) -> None:
    client = Client(built(ADMIN_TABLE + APP + DENIES))
    token = mint(SECRET, "HS256", "ann")
    assert deny(client, {"token": token}, "k" * 32) == 401
    assert ask(client, token) == 200


def test_without_an_admin_token_nothing_can_be_denied(site: ModuleType) -> None:
    client = Client(built("[admin]\n" + APP + DENIES))
    token = mint(SECRET, "HS256", "ann")
    assert deny(client, {"token": token}) == 403
    assert ask(client, token) == 200


@pytest.mark.parametrize(
    "text", [APP + DENIES, ADMIN_TABLE + APP, ADMIN_TABLE + APP + AUTHENTICATOR]
)
def test_there_is_no_deny_endpoint_without_a_deny_list_or_an_admin_table(
    site: ModuleType, text: str
) -> None:
    assert deny(Client(built(text)), {"jti": "a", "until": 1}) == 404


def test_on_store_error_requires_a_deny_list(site: ModuleType) -> None:
    assert built(APP + DENIES + 'on_store_error = "allow"\n')
    [(key, said)] = errors_of(APP + AUTHENTICATOR + 'on_store_error = "allow"\n')
    assert key == "routes[0].middleware[0].on_store_error"
    assert "deny_list = true" in said
