"""API keys in the file: one set for all middlewares, what check reports, the admin endpoints."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import APP, built, errors_of
from wsgigate.auth.api_keys import digest_of, new_key
from wsgigate.config.build import check_file
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import read_file
from wsgigate.testing import Backend

ADMIN = "a-token-of-32-or-more-characters"
ADMIN_TABLE = f'[admin]\ntoken = "{ADMIN}"\n'
API_KEY = '[[routes.middleware]]\nuse = "api-key"\n'
OTHER = '[[routes]]\npath = "/other"\napp = "full_site:echo"\n' + API_KEY
KEY = new_key("wg")
ENTRY = {"id": "acme-1", "owner": "acme", "plan": "gold", "sha256": digest_of(KEY)}


def call(client: Client, path: str, body: object = None) -> Any:
    headers = {"Authorization": f"Bearer {ADMIN}"}
    answer = client.post(f"/_gateway/api-keys{path}", json=body or {}, headers=headers)
    assert answer.status_code in (200, 201), answer.text
    return answer.json


def ask(client: Client, key: str, path: str = "/echo") -> int:
    return client.get(path, headers={"X-API-Key": key}).status_code


def test_all_middlewares_accept_the_keys_that_the_endpoint_creates(site: ModuleType) -> None:
    client = Client(built(ADMIN_TABLE + APP + API_KEY + OTHER))
    made = call(client, "", {"owner": "acme"})
    assert made["key"].startswith("wg_")
    assert [ask(client, made["key"], path) for path in ("/echo", "/other")] == [200, 200]
    call(client, f"/{made['apiKey']['id']}/revoke")
    assert [ask(client, made["key"], path) for path in ("/echo", "/other")] == [401, 401]


def test_without_a_middleware_there_is_no_endpoint(site: ModuleType) -> None:
    client = Client(built(ADMIN_TABLE + APP))
    headers = {"Authorization": f"Bearer {ADMIN}"}
    assert client.get("/_gateway/api-keys", headers=headers).status_code == 404


def test_limits_count_by_owner_by_key_and_by_plan(site: ModuleType) -> None:
    limits = """
[[routes.middleware]]
use = "limiter"
name = "{name}"
key = "{key}"
quota = "2/h"
plan = "claim:plan"
plans = {{ gold = "4/h" }}
"""
    for key, shared in (("subject", True), ("client", False), ("api-key", False)):
        client = Client(built(ADMIN_TABLE + APP + API_KEY + limits.format(name="a", key=key)))
        gold = [call(client, "", {"owner": "acme", "plan": "gold"})["key"] for _ in range(2)]
        plain = call(client, "", {"owner": "umbrella"})["key"]
        assert [ask(client, plain) for _ in range(3)] == [200, 200, 429]
        assert [ask(client, gold[0]) for _ in range(5)] == [200] * 4 + [429], key
        assert ask(client, gold[1]) == (429 if shared else 200), key


def test_an_authorizer_decides_by_the_scopes_and_the_claims_of_a_key(site: ModuleType) -> None:
    rules = """
[[routes.middleware]]
use = "authorizer"
scopes = ["orders:write"]
claims = { plan = "gold" }
"""
    client = Client(built(ADMIN_TABLE + APP + API_KEY + rules))
    made = [
        call(client, "", {"owner": "acme", "plan": plan, "scopes": scopes})["key"]
        for plan, scopes in (
            ("gold", ["orders:write"]),
            ("gold", ["orders:read"]),
            ("free", ["orders:write"]),
        )
    ]
    assert [ask(client, key) for key in made] == [200, 403, 403]


def test_a_rotated_key_does_not_get_a_new_quota(site: ModuleType) -> None:
    limit = '[[routes.middleware]]\nuse = "limiter"\nkey = "api-key"\nquota = "2/h"\n'
    client = Client(built(ADMIN_TABLE + APP + API_KEY + limit))
    made = call(client, "", {"owner": "acme"})
    assert [ask(client, made["key"]) for _ in range(2)] == [200, 200]
    rotated = call(client, f"/{made['apiKey']['id']}/rotate")
    assert ask(client, rotated["key"]) == 429


def test_the_keys_of_a_file_are_relative_to_it(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text(json.dumps({"keys": [ENTRY]}))
    text = '[api_keys]\nfile = "keys.json"\n' + APP + API_KEY
    client = Client(built(text, str(tmp_path / "gateway.toml")))
    assert [ask(client, KEY), ask(client, new_key("wg"))] == [200, 401]


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        (
            '[api_keys]\nfile = "keys.yaml"\n' + APP + API_KEY,
            "api_keys.file",
            'such as "keys.json"',
        ),
        ('[api_keys]\nprefix = "a-b"\n' + APP + API_KEY, "api_keys.prefix", "acme"),
        (APP + API_KEY + 'header = "X API"\n', "routes[0].middleware[0].header", "a field"),
        (APP + API_KEY + 'header = "Cookie"\n', "routes[0].middleware[0].header", "other contents"),
        (
            APP + API_KEY + 'authorization = "Basic"\n',
            "routes[0].middleware[0].authorization",
            "ApiKey",
        ),
        (APP + API_KEY + 'query = "a b"\n', "routes[0].middleware[0].query", "api_key"),
        (
            APP + API_KEY + 'required = false\nscopes = ["a"]\n',
            "routes[0].middleware[0].scopes",
            "optional",
        ),
        (APP + API_KEY + 'keys = "a"\n', "routes[0].middleware[0].keys", "is not a known key"),
    ],
)
def test_an_invalid_key_of_the_file_is_named(
    site: ModuleType, text: str, key: str, words: str
) -> None:
    [(path, error)] = errors_of(text)
    assert path == key
    assert words in error


def test_a_limiter_by_plan_is_fine_inside_and_an_error_outside(site: ModuleType) -> None:
    limit = '[[routes.middleware]]\nuse = "limiter"\nquota = "2/h"\nkey = "subject"\n'
    built(APP + API_KEY + limit)
    [(path, error)] = errors_of(APP + limit + API_KEY)
    assert (path, "authenticator" in error) == ("routes[0].middleware[0].key", True)


def test_the_service_gets_the_owner_and_no_client_can_forge_it(site: ModuleType) -> None:
    with Backend() as backend:
        text = f"""
[gateway]
identity = {{ X-Partner = "owner", X-Plan = "plan" }}
[services.orders]
instances = ["{backend.url}"]
[[routes]]
path = "/orders"
service = "orders"
"""
        gateway = built(ADMIN_TABLE + text + API_KEY)
        client = Client(gateway)
        gold = call(client, "", {"owner": "acme", "plan": "gold"})["key"]
        plain = call(client, "", {"owner": "umbrella"})["key"]
        forged = {"X-Partner": "evil", "x_partner": "evil", "X-Plan": "gold"}
        for key in (gold, plain):
            client.get("/orders", headers={**forged, "X-API-Key": key}).close()
        gateway.close()
        seen = [[r.value("X-Partner"), r.value("X-Plan")] for r in backend.requests]
    assert seen == [["acme", "gold"], ["umbrella", None]]


# What check reports.


def warnings_of(text: str, folder: Path) -> list[tuple[str, str]]:
    file = folder / "gateway.toml"
    file.write_text(text)
    parsed = read_file(str(file))
    check_file(parsed, str(file)).gateway.close()
    return list(parsed.warnings)


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ('[store]\nurl = "memory:"\n' + APP + API_KEY, "store.url", "lost when the process ends"),
        ('[store]\nurl = "lmdb:data"\n' + APP + API_KEY, "store.url", "a power failure"),
        ('[api_keys]\nprefix = "a"\n' + APP, "api_keys", "no middleware accepts them"),
        ('[api_keys]\nfile = "none.json"\n' + APP + API_KEY, "api_keys.file", "does not exist"),
        (
            '[api_keys]\nfile = "bad.json"\n' + APP + API_KEY,
            "api_keys.file",
            "bad.json: keys[1] (acme-2): expire: unknown",
        ),
    ],
)
def test_what_may_be_a_mistake_is_a_warning(
    site: ModuleType, tmp_path: Path, text: str, key: str, words: str
) -> None:
    bad = {"id": "acme-2", "owner": "acme", "sha256": "0" * 64, "expire": 1}
    (tmp_path / "bad.json").write_text(json.dumps({"keys": [ENTRY, bad]}))
    [(path, warning)] = warnings_of(text, tmp_path)
    assert path == key
    assert words in warning


def test_keys_in_a_file_are_no_reason_for_a_warning(site: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_text('{"keys": []}')
    assert warnings_of('[api_keys]\nfile = "keys.json"\n' + APP + API_KEY, tmp_path) == []


@pytest.mark.parametrize(
    ("content", "words"), [("{", "cannot be parsed"), ("[]", 'no list "keys"'), (None, "directory")]
)
def test_a_file_that_cannot_be_used_is_an_error(
    site: ModuleType, tmp_path: Path, content: str | None, words: str
) -> None:
    file = tmp_path / "keys.json"
    if content is None:
        file.mkdir()
    else:
        file.write_text(content)
    with pytest.raises(ConfigError) as raised:
        warnings_of('[api_keys]\nfile = "keys.json"\n' + APP + API_KEY, tmp_path)
    [(path, error)] = raised.value.errors
    assert path == "api_keys.file"
    assert str(file) in error
    assert words in error
