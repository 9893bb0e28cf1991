"""The configuration that operators read: no secret is in it, wherever a file can have one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from wsgigate.config.load import parse
from wsgigate.config.masked import changed, config_hash, masked_document, masked_of
from wsgigate.config.middlewares import MIDDLEWARES, MiddlewareEntry
from wsgigate.config.model import Config, GatewayTable
from wsgigate.config.tables import ListOf, MapOf, Table, UnionOf
from wsgigate.config.types import HiddenText, Kind

CANARY = "canary-0123456789abcdef0123456789abcdef"

EVERYWHERE = f"""
[gateway]
name = "shop"
workers = "${{WORKERS:-4}}"
version = "${{RELEASE}}"

[store]
url = "redis://user:{CANARY}@store.internal:6379/0?password={CANARY}"

[admin]
token = "{CANARY}"
viewer_token = "viewer-{CANARY}"

[maintenance]
allow_header = {{ name = "X-Bypass", secret = "{CANARY}" }}

[registry]
token = "{CANARY}"
tokens = {{ orders = "orders-{CANARY}" }}

[[middleware]]
use = "authenticator"
algorithms = ["HS256"]
secret = "{CANARY}"

[services.orders]
instances = ["http://10.0.0.4:8000"]
sticky = {{ secret = "{CANARY}" }}
health = {{ path = "/h?key={CANARY}", fields = {{ Authorization = "Bearer {CANARY}" }} }}

[[routes]]
path = "/orders"
service = "orders"
request_fields = {{ set = {{ X-Api-Key = "{CANARY}" }}, add = {{ X-More = "{CANARY}" }} }}
[[routes.middleware]]
use = "webhook"
provider = "github"
secret = "{CANARY}"
[[routes.middleware]]
use = "tests.config.files:custom"
password = "{CANARY}"
nested = {{ deep = ["{CANARY}"] }}
"""


def parsed(text: str, **environ: str) -> Config:
    return parse(text, environ=environ)


def test_no_secret_is_in_the_document() -> None:
    config = parsed(EVERYWHERE, RELEASE=CANARY)
    document = masked_of(config)
    text = json.dumps(document)
    assert "canary" not in text
    assert document["gateway"]["version"] == "${RELEASE}"
    assert document["gateway"]["workers"] == "${WORKERS:-***}"
    assert document["store"]["url"] == "redis://***@store.internal:6379/0?***"
    assert document["admin"]["token"] == "***"
    assert document["registry"]["tokens"] == {"orders": "***"}
    assert document["services"]["orders"]["health"]["path"] == "/h?***"
    assert document["services"]["orders"]["health"]["fields"] == {"Authorization": "***"}
    assert document["routes"][0]["request_fields"]["set"] == {"X-Api-Key": "***"}
    assert document["services"]["orders"]["instances"] == ["http://10.0.0.4:8000"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("${A}", "${A}"),
        ("${A:-canary}", "${A:-***}"),
        ("x canary ${A} ${B:-c}", "*** (${A}, ${B:-***})"),
    ],
)
def test_a_reference_keeps_the_name_of_the_variable_only(value: str, shown: str) -> None:
    config = parsed(f'[gateway]\nname = "{value}"', A="canary", B="canary")
    assert masked_of(config)["gateway"]["name"] == shown


def test_the_private_members_of_an_inline_key_are_masked() -> None:
    key = '{ kty = "OKP", crv = "Ed25519", x = "public", d = "canary", k = "canary" }'
    text = f'[[middleware]]\nuse = "tests.config.files:custom"\nkey = {key}'
    [entry] = masked_of(parsed(text))["middleware"]
    assert entry["key"] == {"kty": "OKP", "crv": "Ed25519", "x": "public", "d": "***", "k": "***"}


def test_a_table_with_a_member_kty_shows_no_other_value() -> None:
    nested = '{ kty = "oct", Authorization = "canary", x = "${A:-canary}", more = ["canary"] }'
    text = f'[[middleware]]\nuse = "tests.config.files:custom"\nfields = {nested}'
    [entry] = masked_of(parsed(text))["middleware"]
    assert "canary" not in json.dumps(entry)
    assert entry["fields"]["kty"] == "oct"


def hidden(kind: Kind[Any], seen: set[int]) -> int:
    """Return the number of keys with hidden text below *kind*."""
    if id(kind) in seen:
        return 0
    seen.add(id(kind))
    if isinstance(kind, HiddenText):
        return 1
    if isinstance(kind, Table):
        return sum(hidden(key.kind, seen) for key in kind.keys.values())
    if isinstance(kind, MiddlewareEntry):
        return sum(hidden(each.table, seen) for each in MIDDLEWARES.values())
    if isinstance(kind, UnionOf):
        return hidden(kind.first, seen) + hidden(kind.second, seen)
    if isinstance(kind, ListOf | MapOf):
        return hidden(kind.item, seen)
    return 0


def canaries(kind: Kind[Any], depth: int = 0) -> Any:
    """Return a value with a canary at each place where *kind* has hidden text."""
    if depth > 8:
        return None
    if isinstance(kind, HiddenText):
        return CANARY
    if isinstance(kind, Table):
        found = {name: canaries(key.kind, depth + 1) for name, key in kind.keys.items()}
        return {name: value for name, value in found.items() if value} or None
    if isinstance(kind, MiddlewareEntry):
        if depth > 3:  # a middleware that combines others
            return None
        found = {use: canaries(each.table, depth + 1) for use, each in MIDDLEWARES.items()}
        return [{"use": use, **value} for use, value in found.items() if value]
    if isinstance(kind, UnionOf):
        for each in (kind.first, kind.second):
            value = canaries(each, depth + 1)
            if value and kind.of(value) is each:
                return value
        return None
    if isinstance(kind, ListOf):
        value = canaries(kind.item, depth + 1)
        return value if isinstance(value, list) else [value] if value else None
    if isinstance(kind, MapOf):
        value = canaries(kind.item, depth + 1)
        return {"name": value} if value else None
    return None


def test_each_key_that_hides_its_text_is_masked() -> None:
    table = Table(Config)
    tables = canaries(table)
    assert hidden(table, set()) > 10
    assert json.dumps(tables).count(CANARY) > 15
    assert CANARY not in json.dumps(masked_document(table, tables))


def test_the_hash_changes_with_the_file_and_stays_with_options_of_a_command() -> None:
    one, two = parsed('[gateway]\nname = "a"'), parsed('[gateway]\nname = "b"')
    assert len({config_hash(one), config_hash(two), ""}) == 3
    assert config_hash(one) == config_hash(parsed('[gateway]\nname = "a"'))
    replaced = changed(one, gateway=GatewayTable(name="c"))
    assert (config_hash(replaced), replaced.gateway.name) == (config_hash(one), "c")
    assert (config_hash(Config()), masked_of(Config())) == ("", {})
