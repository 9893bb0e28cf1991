"""The Consul API with the usual Python client of Consul, unmodified."""

from __future__ import annotations

from typing import Any

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, ServedApis

CLIENT = """
import json, sys, warnings
warnings.simplefilter("ignore")
import consul

port, token = sys.argv[1:]
client = consul.Consul("127.0.0.1", int(port), token=token)
Check = consul.Check
index = None

def register(**options):
    return client.agent.service.register(
        "users", address="127.0.0.1", tags=["v1"], meta={"team": "blue"}, **options
    )

def health(**options):
    global index
    index, found = client.health.service("users", **options)
    return [
        [each["Service"]["ID"], each["Service"]["Address"], each["Service"]["Port"],
         [check["Status"] for check in each["Checks"]]]
        for each in found
    ]

def failing(call):
    try:
        call()
    except consul.ConsulException as error:
        return type(error).__name__
    return None

for line in sys.stdin:
    print("=" + json.dumps(eval(line)))
"""


def test_the_client_registers_passes_discovers_and_deregisters(
    apis: ServedApis, program: Any
) -> None:
    users = program(CLIENT, apis.port, USERS_TOKEN)
    assert users.does("register(service_id='users-1', port=8081, check=Check.ttl('45s'))") is True
    assert users.does("register(service_id='users-2', port=8082, check=Check.ttl('45s'))") is True
    one, _ = apis.registry.discover("users").instances
    assert (one.instance_id, one.url, one.tags) == ("users-1", "http://127.0.0.1:8081", ("v1",))
    assert (one.metadata, one.lease, one.status) == ({"team": "blue"}, 45.0, "STARTING")

    assert users.does("health(passing=True)") == []
    assert users.does("client.agent.check.ttl_pass('service:users-1')") is True
    assert users.does("health(passing=True)") == [["users-1", "127.0.0.1", 8081, ["passing"]]]
    assert [each[3] for each in users.does("health()")] == [["passing"], ["critical"]]
    assert users.does("client.agent.check.ttl_pass('service:users-2', 'all is well')") is True
    assert len(users.does("health(passing=True, tag='v1')")) == 2
    assert users.does("health(passing=True, tag='v2')") == []

    assert users.does("client.agent.check.ttl_fail('service:users-2')") is True
    assert [each[0] for each in users.does("health(passing=True)")] == ["users-1"]
    assert users.does("client.agent.check.ttl_warn('service:users-2')") is True
    assert len(users.does("health(passing=True)")) == 2
    assert users.does("client.agent.check.ttl_pass('service:users-3')") is False

    assert users.does("client.agent.service.maintenance('users-1', True)") is True
    assert users.does("client.agent.check.ttl_pass('service:users-1')") is True
    assert [each[0] for each in users.does("health(passing=True)")] == ["users-2"]
    assert users.does("client.agent.service.maintenance('users-1', False)") is True
    assert len(users.does("health(passing=True)")) == 2

    assert users.does("client.agent.service.deregister('users-1')") is True
    assert [each[0] for each in users.does("health()")] == ["users-2"]
    assert users.does("client.agent.service.deregister('users-1')") is False


def test_a_passing_check_is_a_heartbeat(apis: ServedApis, program: Any) -> None:
    users = program(CLIENT, apis.port, USERS_TOKEN)
    users.does("register(service_id='users-1', port=8081)")
    [entry] = apis.registry.discover("users").instances
    assert (entry.status, entry.lease) == ("UP", None)
    added = "client.agent.check.register('alive', Check.ttl('1m'), service_id='users-1')"
    assert users.does(added) is True
    [entry] = apis.registry.discover("users").instances
    assert (entry.status, entry.lease) == ("STARTING", 60.0)
    assert users.does("client.agent.check.ttl_pass('alive')") is True
    [passed] = apis.registry.discover("users").instances
    assert passed.status == "UP"
    assert users.does("client.agent.check.ttl_pass('alive')") is True
    [renewed] = apis.registry.discover("users").instances
    assert renewed.last_heartbeat > passed.last_heartbeat
    assert users.does("client.agent.check.deregister('alive')") is True
    [entry] = apis.registry.discover("users").instances
    assert (entry.status, entry.lease, entry.metadata) == ("UP", None, {"team": "blue"})


def test_the_client_waits_for_a_change(apis: ServedApis, program: Any) -> None:
    users, others = (program(CLIENT, apis.port, token) for token in (USERS_TOKEN, ""))
    assert others.does("health()") == []
    others.tell("health(index=index, wait='20s')")
    apis.wait_until_come("GET /v1/health/service/users", 2)
    users.does("register(service_id='users-1', port=8081)")
    assert others.hear() == [["users-1", "127.0.0.1", 8081, ["passing"]]]
    before = others.does("index")
    assert len(others.does("health(index=index, wait='10ms')")) == 1
    assert others.does("index") == before


def test_the_client_reads_the_catalog(apis: ServedApis, program: Any) -> None:
    users = program(CLIENT, apis.port, USERS_TOKEN)
    users.does("register(service_id='users-1', port=8081)")
    assert users.does("client.catalog.services()[1]") == {"users": ["v1"]}
    [one] = users.does("client.catalog.service('users')[1]")
    assert (one["ServiceID"], one["ServiceAddress"], one["ServicePort"]) == (
        *("users-1", "127.0.0.1"),
        8081,
    )
    assert one["ServiceMeta"] == {"team": "blue"}
    assert users.does("client.catalog.service('nobody')[1]") == []
    [node] = users.does("client.catalog.nodes()[1]")
    assert (node["Node"], node["Address"]) == ("127.0.0.1", "127.0.0.1")
    assert users.does("client.catalog.datacenters()") == ["dc1"]
    assert list(users.does("client.agent.services()")) == ["users-1"]
    assert users.does("client.agent.service_definition('users-1')")["Port"] == 8081
    assert list(users.does("client.agent.checks()")) == ["service:users-1"]
    assert users.does("client.agent.self()")["Config"]["Datacenter"] == "dc1"
    [check] = users.does("client.health.checks('users')[1]")
    assert check["Status"] == "passing"
    assert users.does("client.health.state('passing')[1]") == [
        {**check, "CreateIndex": check["CreateIndex"]}
    ]
    assert users.does("client.health.state('critical')[1]") == []
    assert users.does("bool(client.status.leader() and client.status.peers())")


def test_a_client_without_a_token_of_the_service_is_rejected(
    apis: ServedApis, program: Any
) -> None:
    client = program(CLIENT, apis.port, USERS_TOKEN)
    other = "lambda: client.agent.service.register('orders', port=80, token={!r})"
    assert client.does(f"failing({other.format(USERS_TOKEN)})") == "ACLPermissionDenied"
    assert client.does(f"failing({other.format('wrong')})") == "ACLPermissionDenied"
    assert client.does(f"failing({other.format(TOKEN)})") is None
    leaving = "lambda: client.agent.service.deregister('orders')"
    assert client.does(f"failing({leaving})") == "ACLPermissionDenied"
    assert len(apis.registry.discover("orders").instances) == 1
    http = "Check.http('http://127.0.0.1/', '10s')"
    assert client.does(f"failing(lambda: register(port=80, check={http}))") == "BadRequest"
