"""The compatibility APIs in the file: their paths, the shared slots and the errors."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.test import Client

from wsgigate.cli.main import main
from wsgigate.cli.registry import config_of
from wsgigate.config.build import assemble, build
from wsgigate.config.errors import ConfigError
from wsgigate.config.load import parse
from wsgigate.gateway import Gateway

TOKEN = "the-token-of-all-services"
REGISTRY = f"""\
[store]
url = "memory:"
[registry]
token = "{TOKEN}"
tokens = {{ users = "the-token-of-users-alone" }}
"""
SERVICE = {"Name": "users", "ID": "a", "Address": "127.0.0.1", "Port": 8001}


@pytest.fixture
def gateways() -> Iterator[Any]:
    """Yield a function that builds a gateway with compatibility APIs; closes all at the end."""
    made: list[Gateway] = []

    def make(doors: str, more: str = "") -> Client:
        made.append(build(parse(f"{REGISTRY}doors = {doors}\n{more}", environ={})))
        return Client(made[-1])

    yield make
    for each in made:
        each.close()


def test_an_instance_registered_by_one_api_is_listed_by_all(gateways: Any) -> None:
    client = gateways('["eureka", "consul"]')
    url = "/v1/agent/service/register"
    assert client.put(url, json=SERVICE).status_code == 403
    headers = {"X-Consul-Token": "the-token-of-users-alone"}
    assert client.put(url, json=SERVICE, headers=headers).status_code == 200
    assert client.get("/v1/catalog/services").json == {"users": []}
    told = client.get("/eureka/apps", headers={"Accept": "application/json"}).json
    assert [app["name"] for app in told["applications"]["application"]] == ["USERS"]
    assert client.get("/_registry/discover/users").json["count"] == 1
    renew = client.put("/eureka/apps/USERS/a", auth=("any", TOKEN))
    assert renew.status_code == 200


@pytest.mark.parametrize(
    ("doors", "answers"),
    [("[]", (404, 404)), ('["eureka"]', (200, 404)), ('["consul"]', (404, 200))],
)
def test_a_compatibility_api_is_disabled_by_default(
    gateways: Any, doors: str, answers: tuple[int, int]
) -> None:
    client = gateways(doors)
    found = (client.get("/eureka/apps"), client.get("/v1/catalog/services"))
    assert tuple(each.status_code for each in found) == answers


def test_the_apis_share_the_slots_of_waiting_requests(
    gateways: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the threads may wait for a change, over all APIs together."""
    client = gateways('["consul"]', "[gateway]\nthreads = 8\n")
    begun, changed = threading.Semaphore(0), threading.Event()

    def wait(*arguments: object) -> None:
        begun.release()
        changed.wait(20)

    monkeypatch.setattr(client.application.registry, "wait", wait)
    paths = ("/_registry/discover/users?wait=20&index=7", "/v1/health/service/users?index=7")
    threads = [threading.Thread(target=client.get, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=20)
    for path in paths:
        assert client.get(path).status_code == 200
    assert not begun.acquire(blocking=False)
    changed.set()
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('doors = ["nacos"]\n', ("registry.doors[0]", '"eureka" or "consul"')),
        (
            'doors = ["consul"]\n[[routes]]\npath = "/v1"\napp = "json:dumps"\n',
            ("routes[0]", "the other route is registry.doors"),
        ),
    ],
)
def test_an_error_names_the_unknown_api(text: str, error: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        assemble(parse(REGISTRY + text, environ={}))
    [(key, said)] = caught.value.errors
    assert key == error[0]
    assert error[1] in said


def test_the_command_registry_has_a_flag_for_each_api(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setenv("REGISTRY_TOKEN", TOKEN)
    monkeypatch.setattr("wsgigate.cli.registry.registry", lambda given: seen.append(given) or 0)
    assert main(["registry", "--store", "memory:", "--door", "consul", "--door", "eureka"]) == 0
    config = config_of(seen[0], {"REGISTRY_TOKEN": TOKEN})
    assert config.registry is not None
    assert config.registry.doors == ("consul", "eureka")
