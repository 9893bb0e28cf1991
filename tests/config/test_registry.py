"""The registry of a gateway: beside the routes, with its own tokens, and its errors."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import Client

from tests.support.threads import started
from tests.support.waiting import until
from wsgigate.config.build import build
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse
from wsgigate.config.types import is_loopback, listen_addresses
from wsgigate.gateway import Gateway
from wsgigate.proxy.health_probe import Prober

TOKEN = "registry-token-of-the-tests"
ONE = {"serviceName": "users", "instanceId": "u-1", "host": "10.0.0.1", "port": 3001}


def thread_names() -> set[str]:
    return {thread.name for thread in started("")}


@contextmanager
def gateway(text: str, folder: Path) -> Iterator[Gateway]:
    file = str(folder / "gateway.toml")
    text = '[store]\nurl = "lmdb:data"\n' + textwrap.dedent(text)
    made = build(parse(text, file), path=file)
    try:
        yield made
    finally:
        made.close()


def wrong(text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as found:
        build(parse('[store]\nurl = "memory:"\n' + textwrap.dedent(text)))
    return list(found.value.errors)


def register(made: Gateway, path: str = "/_registry/register", **members: Any) -> int:
    return (
        Client(made)
        .post(path, json={**ONE, **members}, headers={"Authorization": f"Bearer {TOKEN}"})
        .status_code
    )


def test_there_is_no_registry_without_the_table(tmp_path: Path) -> None:
    with gateway("", tmp_path) as made:
        assert made.registry is None
        assert register(made) == 404


def test_the_registry_is_served_beside_the_routes_and_started_with_the_gateway(
    tmp_path: Path,
) -> None:
    text = f"""
        [gateway]
        threads = 8
        [registry]
        token = "{TOKEN}"
        [admin]
        prefix = ""
        [[routes]]
        path = "/demo"
        app = "wsgiref.simple_server:demo_app"
    """
    with gateway(text, tmp_path) as made:
        assert register(made) == 201
        client = Client(made)
        found = client.get("/_registry/discover/users")
        assert found.json
        assert found.json["count"] == 1
        assert "X-Request-ID" in found.headers
        assert client.get("/demo").status_code == 200
        told: Any = client.get("/health").json
        assert "gateway" in told  # the gateway's own, not the registry's
        told = client.get("/_registry/health").json
        assert told["service"] == "wsgigate"
        listed: Any = client.get("/nothing").json
        assert "GET /_registry/discover/{service}" in listed["availableRoutes"]
        assert made.registry is not None
        assert "wsgigate-registry" in thread_names()
    until(lambda: "wsgigate-registry" not in thread_names())


def test_two_gateways_of_one_file_share_the_registry(tmp_path: Path) -> None:
    text = f'[registry]\nprefix = ""\ntoken = "{TOKEN}"\n'
    with gateway(text, tmp_path) as one, gateway(text, tmp_path) as other:
        assert register(one, "/register") == 201
        found: Any = Client(other).get("/discover/users").json
        assert found["count"] == 1


def test_the_file_sets_every_option_of_the_registry(tmp_path: Path) -> None:
    text = f"""
        [gateway]
        bind = "127.0.0.1:3104"
        [registry]
        prefix = "/who"
        tokens = {{ users = "{TOKEN}" }}
        open_reads = false
        allowed_networks = ["10.0.0.0/8", "127.0.0.0/8"]
        heartbeat = "1s"
        unhealthy_after = "3s"
        remove_after = "9s"
        preserve = 0.5
        most_services = 1
        most_instances = 2
        most_of_one = 2
    """
    with gateway(text, tmp_path) as made:
        path = "/who/register"
        assert register(made, path, serviceName="orders") == 403
        assert register(made, path, host="192.168.0.1") == 400
        assert register(made, path, host="127.0.0.1", port=3104) == 400
        assert register(made, path) == 201
        assert register(made, path, instanceId="u-2") == 201
        assert register(made, path, instanceId="u-3") == 507
        assert Client(made).get("/who/discover/users").status_code == 401
        assert made.registry is not None
        rules = made.registry.rules
        assert (rules.heartbeat, rules.unhealthy_after, rules.remove_after) == (1, 3, 9)
        assert rules.preserve == 0.5


def test_an_open_registry_on_loopback_requires_no_token(tmp_path: Path) -> None:
    with gateway("[registry]\nopen = true\n", tmp_path) as made:
        assert Client(made).post("/_registry/register", json=ONE).status_code == 201


@pytest.mark.parametrize(
    ("text", "key", "what"),
    [
        ("[registry]", "registry.token", "a token is required"),
        ('[registry]\ntoken = "short"', "registry.token", "16 to 1024"),
        ('[registry]\ntokens = { users = "short" }', "registry.token", "token of 'users'"),
        ('[registry]\ntokens = { "../x" = "short" }', 'registry.tokens."../x"', ""),
        ('[gateway]\nbind = "0.0.0.0:80"\n[registry]\nopen = true', "registry.open", "loopback"),
        ('[gateway]\nbind = "shop:80"\n[registry]\nopen = true', "registry.open", "loopback"),
        ('[registry]\nopen = true\nprefix = "x"', "registry.prefix", ""),
        (
            '[registry]\nopen = true\nprefix = ""\n[admin]\nprefix = ""',
            "registry.prefix",
            "is also admin.prefix",
        ),
        (
            '[registry]\nopen = true\nallowed_networks = ["10.0.0.1/8"]',
            "registry.allowed_networks[0]",
            "10.0.0.0/8",
        ),
        (
            '[registry]\nopen = true\nallowed_networks = ["unix"]',
            "registry.allowed_networks[0]",
            "addresses and networks such as",
        ),
        ('[registry]\nopen = true\nheartbeat = "40s"', "registry", "unhealthy_after"),
        ("[registry]\nopen = true\nmost_of_one = 501", "registry.most_of_one", "500"),
        (
            '[registry]\nopen = true\nprefix = "/a"\n[[routes]]\npath = "/a"\napp = "a:b"',
            "routes[0]",
            "",
        ),
    ],
)
def test_errors_of_the_registry_are_reported_at_their_key(text: str, key: str, what: str) -> None:
    errors = wrong(text)
    assert [each for each in errors if each[0] == key and what in each[1]], errors


def test_no_error_shows_a_token() -> None:
    secret = "a secret with spaces in it"
    assert secret not in str(wrong(f'[registry]\ntoken = "{secret}"\n'))


@pytest.mark.parametrize(
    ("bind", "places", "loopback"),
    [
        ("127.0.0.1:80", [("127.0.0.1", 80)], True),
        ("[::1]:80", [("::1", 80)], True),
        ("0.0.0.0:80", [("0.0.0.0", 80)], False),
        ("10.0.0.4:80", [("10.0.0.4", 80)], False),
        ("localhost:80", [("0.0.0.0", 80), ("::", 80)], True),
        ("shop.internal:80", [("0.0.0.0", 80), ("::", 80)], False),
        ("unix:/run/gateway.sock", [], True),
    ],
)
def test_the_listen_addresses_are_derived_from_bind(
    bind: str, places: list[tuple[str, int]], loopback: bool
) -> None:
    assert listen_addresses(bind) == places
    assert is_loopback(bind) is loopback


@pytest.mark.parametrize("doors", [[], ["eureka"], ["consul"], ["eureka", "consul"]])
def test_checks_of_consul_clients_are_limited_to_the_allowed_networks(
    doors: list[str], tmp_path: Path
) -> None:
    text = f'[registry]\ntoken = "{TOKEN}"\nallowed_networks = ["10.0.0.0/8"]\ndoors = {doors}'
    with gateway(text, tmp_path) as made:
        assert made.registry is not None
        assert made.registry.carries_out_checks is ("consul" in doors)
        if made.registry.checks is not None:
            prober = made.registry.checks.prober
            assert isinstance(prober, Prober)
            manners = prober.policies
            assert {name: manner.verify for name, manner in manners.items()} == {
                "verified": True,
                "unverified": False,
            }
            for manner in manners.values():
                assert manner.allowed == made.registry.destinations.check
