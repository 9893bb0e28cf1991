"""The Eureka API with the usual Python client of Eureka, unmodified."""

from __future__ import annotations

from typing import Any

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, ServedApis

CLIENT = """
import asyncio, json, sys, warnings
warnings.simplefilter("ignore")
from py_eureka_client.eureka_client import EurekaClient

port, app, token, own, interval = sys.argv[1:]
client = EurekaClient(
    eureka_server=f"http://any:{token}@127.0.0.1:{port}/eureka",
    app_name=app,
    instance_host="127.0.0.1",
    instance_ip="127.0.0.1",
    instance_port=int(own),
    renewal_interval_in_secs=float(interval),
    metadata={"team": "blue"},
    zone="a",
)

def known(name):
    apps = client.applications
    return [
        [each.instanceId, each.status, each.hostName, each.port.port, each.metadata]
        for each in apps.get_application(name).instances
    ]

def walk(name):
    async def walker(url):
        return url
    return loop.run_until_complete(client.walk_nodes(name, "/x", walker=walker))

loop = asyncio.new_event_loop()
for line in sys.stdin:
    print("=" + json.dumps(eval(line)))
"""

OFTEN, SELDOM = 0.3, 60
"""Seconds between two heartbeats."""

DELTA = "GET /eureka/apps/delta"

ID = "127.0.0.1:{}:{}"


def run(coroutine: str) -> str:
    return f"loop.run_until_complete(client.{coroutine})"


def instances(apis: ServedApis, service: str) -> list[tuple[str, str]]:
    found = apis.registry.discover(service).instances
    return [(entry.instance_id, entry.status.value) for entry in found]


def test_the_client_registers_again_after_its_entry_was_lost(
    apis: ServedApis, program: Any
) -> None:
    users = program(CLIENT, apis.port, "users", USERS_TOKEN, 8081, OFTEN)
    users.does(run("start()"))
    [entry] = apis.registry.discover("users").instances
    assert (entry.instance_id, entry.url) == (ID.format("users", 8081), "http://127.0.0.1:8081")
    assert (entry.zone, entry.lease) == ("a", 90.0)
    assert entry.metadata == {"team": "blue", "zone": "a", "management.port": "8081"}
    assert entry.health_check_path == "/health"
    apis.wait_for(f"PUT /eureka/apps/USERS/{entry.instance_id}", 2)
    [renewed] = apis.registry.discover("users").instances
    assert renewed.last_heartbeat > entry.last_heartbeat
    assert renewed.registered_at == entry.registered_at
    assert apis.registry.deregister("users", entry.instance_id)
    apis.wait_for("POST /eureka/apps/USERS")
    assert instances(apis, "users") == [(entry.instance_id, "UP")]


def test_the_client_sees_instances_register_change_and_leave(
    apis: ServedApis, program: Any
) -> None:
    orders = program(CLIENT, apis.port, "orders", TOKEN, 8080, OFTEN)
    orders.does(run("start()"))
    assert orders.does("known('users')") == []

    ports = (8081, 8082)
    # its heartbeats go on after stop(), and register it again: so they are not to begin
    users = [program(CLIENT, apis.port, "users", USERS_TOKEN, port, SELDOM) for port in ports]
    for each in users:
        each.does(run("start()"))
    names = [ID.format("users", port) for port in ports]
    apis.wait_for(DELTA, 2)
    metadata = {"team": "blue", "zone": "a"}
    assert orders.does("known('users')") == [
        [name, "UP", "127.0.0.1", port, {**metadata, "management.port": str(port)}]
        for name, port in zip(names, ports, strict=True)
    ]
    assert orders.does("walk('users')") in ("http://127.0.0.1:8081/x", "http://127.0.0.1:8082/x")

    users[0].does(run("status_update('OUT_OF_SERVICE')"))
    assert instances(apis, "users") == [(names[0], "DRAINING"), (names[1], "UP")]
    apis.wait_for(DELTA, 2)
    assert [each[1] for each in orders.does("known('users')")] == ["OUT_OF_SERVICE", "UP"]
    assert {orders.does("walk('users')") for _ in range(9)} == {"http://127.0.0.1:8082/x"}

    users[0].does(run("delete_status_override()"))
    assert instances(apis, "users") == [(names[0], "UP"), (names[1], "UP")]
    users[1].does(run("stop()"))
    assert instances(apis, "users") == [(names[0], "UP")]
    assert f"DELETE /eureka/apps/USERS/{names[1]}" in apis.seen
    apis.wait_for(DELTA, 2)
    assert [each[:2] for each in orders.does("known('users')")] == [[names[0], "UP"]]


def test_the_token_of_another_service_is_rejected(apis: ServedApis, program: Any) -> None:
    orders = program(CLIENT, apis.port, "orders", USERS_TOKEN, 8080, SELDOM)
    orders.does(run("start()"))
    assert "POST /eureka/apps/ORDERS" in apis.seen
    assert instances(apis, "orders") == []


def test_the_basic_functions_read_the_applications(apis: ServedApis, program: Any) -> None:
    users = program(CLIENT, apis.port, "users", USERS_TOKEN, 8081, SELDOM)
    users.does(run("start()"))
    url = f"'http://127.0.0.1:{apis.port}/eureka'"
    name = ID.format("users", 8081)
    basic = "__import__('py_eureka_client.eureka_basic', fromlist=['x'])"
    for call, expected in (
        (f"get_application({url}, 'USERS')", [[name]]),
        (f"get_vip({url}, 'users')", [["USERS", name]]),
        (f"get_secure_vip({url}, 'users')", [["USERS", name]]),
        (f"get_delta({url})", [["USERS", name]]),
        (f"get_applications({url})", [["USERS", name]]),
    ):
        names = "[[each.instanceId] for each in found.instances]"
        if "USERS" in expected[0]:
            names = (
                "[[app.name, e.instanceId] for app in found.applications for e in app.instances]"
            )
        found = f"(lambda found: {names})(loop.run_until_complete({basic}.{call}))"
        assert users.does(found) == expected
    one = f"loop.run_until_complete({basic}.get_app_instance({url}, 'USERS', '{name}')).leaseInfo"
    assert users.does(f"{one}.durationInSecs") == 90
