"""The addresses of discovery sources, and the sources built from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.config.files import errors_of
from wsgigate.config.build import build
from wsgigate.config.discover import Discover, SourceAddress, parse_address, source_of
from wsgigate.config.load import parse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("registry", SourceAddress("registry")),
        ("registry:http://10.0.0.4:3004", SourceAddress("registry", url="http://10.0.0.4:3004")),
        ("registry:https://reg/orders", SourceAddress("registry", "orders", "https://reg")),
        ("dns:a.internal:8000", SourceAddress("dns", "a.internal", port="8000")),
        ("srv:_http._tcp.a.internal", SourceAddress("srv", "_http._tcp.a.internal")),
        ("file:run/a.json", SourceAddress("file", "run/a.json")),
        ("file:/run/a.yml", SourceAddress("file", "/run/a.yml")),
        ("consul:orders", SourceAddress("consul", "orders")),
        ("consul:http://[::1]:8500/orders", SourceAddress("consul", "orders", "http://[::1]:8500")),
        ("kubernetes:shop/orders:http", SourceAddress("kubernetes", "orders", "", "http", "shop")),
        ("kubernetes:shop/orders:8080", SourceAddress("kubernetes", "orders", "", "8080", "shop")),
    ],
)
def test_the_address_of_a_source_is_parsed(text: str, address: SourceAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("etcd:a", "must be one of"),
        ("dns", "must be one of"),
        ("", "must be one of"),
        ("registry:a", "must be followed by a URL"),
        ("registry:http://user:secret@a", "must not carry credentials"),
        ("registry:http://a/b/c", "not a service name"),
        ("dns:a", "a name and a port"),
        ("dns:a:0", "a name and a port"),
        ("dns:a:99999", "a name and a port"),
        ("dns:a b:80", "a name and a port"),
        ("dns:-a:80", "a name and a port"),
        ("srv:", "must be followed by a name"),
        ("file:a.ini", "must end in one of .json, .toml, .yaml, .yml"),
        ("consul:", "not a service name"),
        ("consul:http://a:8500", "must end with the service"),
        ("consul:a/b", "not a service name"),
        ("kubernetes:orders:http", "a namespace, a service and a port"),
        ("kubernetes:shop/orders", "a namespace, a service and a port"),
        ("kubernetes:shop/orders:", "a namespace, a service and a port"),
    ],
)
def test_an_invalid_address_is_rejected_with_the_allowed_forms(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace(".", r"\.")):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "path", "said"),
    [
        ("discover = 'etcd:a'", "services.a.discover", "must be one of"),
        ("discover = 7", "services.a.discover", "expected one of"),
        ("", "services.a", "needs instances or discover"),
        ("discover = { scheme = 'https' }", "services.a.discover.use", "is required"),
        (
            "discover = { use = 'dns:a:1', server = 'http://a' }",
            "services.a.discover.server",
            "does not apply to dns",
        ),
        (
            "discover = { use = 'file:a.json', token = 'abc' }",
            "services.a.discover.token",
            "does not apply to file",
        ),
        (
            "discover = { use = 'dns:a:1', nameservers = ['ns.internal'] }",
            "services.a.discover.nameservers",
            "a name server must be an address",
        ),
        (
            "discover = { use = 'consul:a', ca = 'nowhere.pem' }",
            "services.a.discover.ca",
            "does not exist",
        ),
        (
            "discover = { use = 'consul:a', allowed_networks = ['10.0.0.0/99'] }",
            "services.a.discover.allowed_networks[0]",
            "10.0.0.0/99",
        ),
        ("discover = 'registry'", "services.a.discover", "this gateway has no [registry] table"),
        ("instances = ['http://a']\ndiscover = 'consul:a'", "services.a", "are mutually exclusive"),
    ],
)
def test_errors_of_a_source_are_reported_at_their_key(text: str, path: str, said: str) -> None:
    told = dict(errors_of(f"[services.a]\n{text}\n[[routes]]\npath = '/a'\nservice = 'a'"))
    assert said in told[path]


@pytest.mark.parametrize(
    ("use", "name"),
    [
        ("registry:http://a:1,http://b:2", "registry:http://a:1, registry:http://b:2"),
        ("registry:http://a:1, http://b:2/users", "registry:http://a:1, registry:http://b:2"),
        (
            ["registry:http://a:1", "registry:http://b:2"],
            "registry:http://a:1, registry:http://b:2",
        ),
        (["registry:http://a:1", "registry:http://a:1"], "registry:http://a:1"),
        (["registry:http://a:1"], "registry:http://a:1"),
        ("consul:http://a:1,http://b:2/u", "consul:http://a:1/u, consul:http://b:2/u"),
        (
            ["consul:http://a:1/u", "consul:http://b:2/u"],
            "consul:http://a:1/u, consul:http://b:2/u",
        ),
    ],
)
@pytest.mark.parametrize("table", [False, True])
def test_several_servers_are_one_source(use: str | list[str], name: str, table: bool) -> None:
    written = json.dumps(use)
    text = f"[services.a]\ndiscover = {f'{{ use = {written} }}' if table else written}\n"
    gateway = build(parse(text + "[[routes]]\npath = '/a'\nservice = 'a'", environ={}))
    try:
        assert gateway.watcher is not None
        assert gateway.watcher.sources == {"a": name}
    finally:
        gateway.close()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ([], "at least one item"),
        (["registry", "registry:http://a:1"], "several sources must be registries, or Consuls"),
        (["registry:http://a:1", "consul:http://a:1/u"], "several sources must be registries"),
        (["registry:http://a:1/u", "registry:http://b:1/v"], "several sources must be registries"),
        (["dns:a:80", "dns:b:80"], "several sources must be registries, or Consuls"),
        ("registry:http://a:1/u,http://b:1/v", "same service name"),
        ("registry:http://a:1,b", "each of several servers must have a URL"),
        (["registry:http://a:1", "etcd:x"], "must be one of"),
        (["registry:http://a:1", 7], "expected one of"),
    ],
)
def test_several_different_sources_are_an_error(use: str | list[object], said: str) -> None:
    text = f"[services.a]\ndiscover = {json.dumps(use)}\n"
    errors = errors_of(text + "[[routes]]\npath = '/a'\nservice = 'a'")
    assert any(said in text and key.startswith("services.a.discover") for key, text in errors)


def test_a_token_is_never_shown() -> None:
    errors = errors_of(
        "[services.a]\ndiscover = { use = 'dns:a:1', token = 's3cret-token' }\n"
        "[services.b]\ndiscover = 'registry:http://s3cret-token@a'"
    )
    assert errors
    assert "s3cret-token" not in str(errors)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Discover(use="dns:a.internal:80", nameservers=("127.0.0.1",)), "dns:a.internal:80"),
        (Discover(use="srv:_http._tcp.a"), "srv:_http._tcp.a"),
        (Discover(use="file:a.yaml"), "file:a.yaml"),
        (Discover(use="consul:a", token="t", tags=("v1",)), "consul:http://127.0.0.1:8500/a"),
        (Discover(use="registry:http://b:3004"), "registry:http://b:3004"),
        (Discover(use="kubernetes:n/a:http", server="http://b"), "kubernetes:n/a:http"),
    ],
)
def test_each_kind_of_source_is_built_with_its_name(options: Discover, name: str) -> None:
    def own(*_: Any) -> Any:
        raise AssertionError

    made = source_of(options, "a", Path("/nowhere"), own)
    assert made.name == name
    made.close()
