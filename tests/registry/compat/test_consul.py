"""The Consul API, with requests of clients that are not installed here and of none."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, CompatRegistry
from tests.support.objects import texts_kept
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.compat import LARGEST
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.rules.registry import Registered, Status

USERS = "/v1/health/service/users"


def document(name: str = "a", **more: object) -> dict[str, Any]:
    return {"Name": "users", "ID": name, "Address": "10.0.0.5", "Port": 8080, **more}


def register(served: CompatRegistry, *names: str, **more: object) -> None:
    for name in names:
        reply = served.ask("PUT", "/v1/agent/service/register", document(name, **more))
        assert (reply.status, reply.body) == (200, b"")


def entries(served: CompatRegistry, service: str = "users") -> dict[str, Registered]:
    found = served.registry.discover(service).instances
    return {entry.instance_id: entry for entry in found}


def passing(served: CompatRegistry, query: str = "") -> list[str]:
    found = served.ask("GET", f"{USERS}?passing{query}").json
    return [each["Service"]["ID"] for each in found]


def test_an_expired_ttl_is_critical(served: CompatRegistry) -> None:
    register(served, "a", Check={"TTL": "60s", "Status": "passing"})
    register(served, "b", Check={"TTL": "5s", "Status": "passing"})
    served.clock.now += 30
    assert passing(served) == ["a", "b"]
    served.clock.now += 1  # one shorter than the registry's own is as long as that
    assert passing(served) == ["a"]
    [_, check] = served.ask("GET", "/v1/health/checks/users").json
    assert (check["Status"], check["Output"]) == ("critical", "TTL expired")
    assert served.ask("PUT", "/v1/agent/check/pass/service:b").status == 200
    assert passing(served) == ["a", "b"]


def test_a_check_sets_the_status_of_an_instance(served: CompatRegistry) -> None:
    register(served, "a", Check={"TTL": "60s"})
    assert entries(served)["a"].status == Status.STARTING
    for report, body, status in (
        ("pass", b"", Status.UP),
        ("fail", b"", Status.DOWN),
        ("warn", b"", Status.UP),
        ("update", {"Status": "critical", "Output": "no"}, Status.DOWN),
        ("update", {"Status": "passing"}, Status.UP),
        ("update", {"status": "warning"}, Status.UP),
    ):
        served.clock.now += 1
        assert served.ask("PUT", f"/v1/agent/check/{report}/service:a", body).status == 200
        entry = entries(served)["a"]
        assert (entry.status, entry.last_heartbeat) == (status, served.clock.now)


def test_maintenance_outlasts_registrations_and_checks(served: CompatRegistry) -> None:
    register(served, "a", Check={"TTL": "60s", "Status": "passing"})
    url = "/v1/agent/service/maintenance/a"
    assert served.ask("PUT", f"{url}?enable=true&reason=disk").status == 200
    for again in (
        lambda: served.ask("PUT", "/v1/agent/check/pass/service:a"),
        lambda: served.ask("PUT", "/v1/agent/check/fail/service:a"),
        lambda: register(served, "a", Check={"TTL": "60s", "Status": "passing"}),
        lambda: served.ask(
            "PUT", "/v1/agent/check/register", {"Name": "x", "ServiceID": "a", "TTL": "60s"}
        ),
        lambda: served.ask("PUT", "/v1/agent/check/deregister/x"),
    ):
        again()
        assert entries(served)["a"].status == Status.DRAINING
        assert passing(served) == []
    assert served.ask("PUT", f"{url}?enable=false").status == 200
    assert passing(served) == ["a"]
    served.ask("PUT", "/v1/agent/check/fail/service:a")
    assert served.ask("PUT", f"{url}?enable=false").status == 200
    assert entries(served)["a"].status == Status.DOWN  # it was in no maintenance


def test_an_instance_without_an_address_gets_that_of_its_client(served: CompatRegistry) -> None:
    url = "/v1/agent/service/register"
    assert served.ask("PUT", url, document(Address=""), REMOTE_ADDR="10.0.0.9").status == 200
    assert entries(served)["a"].host == "10.0.0.9"
    reply = served.ask("PUT", url, document(Address=""), **{"wsgigate.client": "10.0.0.7"})
    assert reply.status == 200
    assert entries(served)["a"].host == "10.0.0.7"
    assert served.ask("PUT", url, document(Address=""), REMOTE_ADDR="").field == "Address"


def test_a_report_finds_an_instance_that_registered_again(served: CompatRegistry) -> None:
    register(served, "a", Check={"TTL": "60s", "CheckID": "alive"})
    report = "/v1/agent/check/pass/alive"
    assert served.ask("PUT", report).status == 200
    assert served.ask("PUT", "/v1/agent/service/deregister/a").status == 200
    assert served.ask("PUT", report).status == 404
    served.registry.register(
        Registered("orders", "o", "10.0.0.5", 80, metadata={"consul.check": "alive"})
    )
    served.clock.now += 5
    assert served.ask("PUT", report).status == 200
    assert entries(served, "orders")["o"].last_heartbeat == served.clock.now


def test_the_number_of_cached_checks_is_bounded(
    served: CompatRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgigate.registry.compat.consul.MOST_CACHED", 3)
    names = [f"a{n}" for n in range(8)]
    register(served, *names)
    for name in names * 2:
        assert served.ask("PUT", f"/v1/agent/check/pass/service:{name}").status == 200
        texts = texts_kept(served.consul, but=[served.registry])
        assert 0 < len(texts & {f"service:{name}" for name in names}) <= 3


def test_a_shared_id_changes_the_instances_of_permitted_services(served: CompatRegistry) -> None:
    register(served, "a")
    served.registry.register(Registered("orders", "a", "10.0.0.6", 80))
    served.clock.now += 5
    report = "/v1/agent/check/fail/service:a"
    assert served.ask("PUT", report, token=USERS_TOKEN).status == 200
    assert entries(served)["a"].status == Status.DOWN
    assert entries(served, "orders")["a"].status == Status.UP
    assert served.ask("PUT", report).status == 200
    assert served.ask("PUT", report).status == 200
    assert entries(served, "orders")["a"].status == Status.DOWN
    leave = "/v1/agent/service/deregister/a"
    assert served.ask("PUT", leave, token=USERS_TOKEN).status == 200
    assert served.ask("PUT", leave, token=USERS_TOKEN).status == 403
    assert served.ask("PUT", leave).status == 200
    assert served.ask("PUT", leave).status == 404


def test_an_index_changes_with_the_listing_and_not_by_a_heartbeat(served: CompatRegistry) -> None:
    def index(url: str = USERS) -> int:
        return int(served.ask("GET", url).headers["X-Consul-Index"])

    assert index() == 1
    register(served, "a")
    first, whole = index(), index("/v1/catalog/services")
    assert first > 1
    served.clock.now += 5
    served.ask("PUT", "/v1/agent/check/pass/service:a")
    assert index() == first
    served.registry.register(Registered("orders", "o", "10.0.0.6", 80))
    assert index() == first
    assert index("/v1/catalog/services") > whole
    served.ask("PUT", "/v1/agent/check/fail/service:a")
    assert index() > first


def waiting(served: CompatRegistry, url: str) -> tuple[threading.Thread, list[Any]]:
    """Return a thread that asks for *url*, and what it is answered."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(served.ask("GET", url)))
    thread.start()
    return thread, answers


@pytest.mark.parametrize(
    "url",
    [
        USERS,
        "/v1/catalog/service/users",
        "/v1/health/checks/users",
        "/v1/catalog/services",
        "/v1/catalog/nodes",
        "/v1/health/state/any",
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_waiting_request_is_answered_on_a_change(
    served: CompatRegistry, url: str, there: bool
) -> None:
    if there:
        register(served, "a")
    before = served.ask("GET", url)
    asleep = threading.Event()
    served.registry.wait = _noting(served.registry.wait, asleep)  # type: ignore[method-assign]
    thread, answers = waiting(served, f"{url}?index={before.headers['X-Consul-Index']}")
    assert asleep.wait(20)
    register(served, "b", Tags=["new"])
    thread.join(20)
    [after] = answers
    assert int(after.headers["X-Consul-Index"]) > int(before.headers["X-Consul-Index"])
    assert after.json != before.json


def _noting(wait: Any, begun: threading.Event) -> Any:
    def recorded(*arguments: object) -> Any:
        begun.set()
        return wait(*arguments)

    return recorded


def test_requests_without_a_free_slot_are_answered_at_once(served: CompatRegistry) -> None:
    served.consul = ConsulApi(served.registry, served.access, waiting=1)
    asleep = threading.Event()
    served.registry.wait = _noting(served.registry.wait, asleep)  # type: ignore[method-assign]
    for seen, name in enumerate(("a", "b")):  # a slot is released after each wait
        url = f"{USERS}?index={served.ask('GET', USERS).headers['X-Consul-Index']}"
        asleep.clear()
        thread, answers = waiting(served, url)
        assert asleep.wait(20)
        assert len(served.ask("GET", f"{url}&wait=20s").json) == seen
        assert not answers
        register(served, name)
        thread.join(20)
        assert len(answers) == 1
    served.consul = ConsulApi(served.registry, served.access, waiting=0)
    index = served.ask("GET", USERS).headers["X-Consul-Index"]
    assert len(served.ask("GET", f"{USERS}?index={index}").json) == 2


def test_a_wait_ends_after_its_duration(served: CompatRegistry) -> None:
    register(served, "a")
    index = served.ask("GET", USERS).headers["X-Consul-Index"]
    reply = served.ask("GET", f"{USERS}?index={index}&wait=30ms")
    assert reply.headers["X-Consul-Index"] == index
    assert served.ask("GET", f"{USERS}?index=0&wait=20s").status == 200


def test_an_instance_is_in_all_documents(served: CompatRegistry) -> None:
    register(served, "a", Tags=["v1"], Meta={"zone": "b"}, Weights={"Passing": 7})
    reply = served.ask("GET", USERS)
    [told] = reply.json
    assert told["Node"]["Address"] == "10.0.0.5"
    assert told["Service"]["Weights"]["Passing"] == 7
    assert told["Service"]["Meta"] == {"zone": "b"}
    assert [check["Status"] for check in told["Checks"]] == ["passing"]
    assert reply.headers["X-Consul-KnownLeader"] == "true"
    assert reply.headers["X-Consul-LastContact"] == "0"
    [catalog] = served.ask("GET", "/v1/catalog/service/users").json
    assert (catalog["ServiceID"], catalog["ServiceTags"], catalog["Node"]) == (
        "a",
        ["v1"],
        "10.0.0.5",
    )
    assert served.ask("GET", "/v1/agent/service/a").json["Datacenter"] == "dc1"
    assert served.ask("GET", "/v1/agent/service/b").status == 404
    assert served.ask("GET", f"{USERS}?tag=v1&tag=v2").json == []
    assert len(served.ask("GET", f"{USERS}?tag=v1&near=_agent&dc=dc1&stale&pretty").json) == 1
    assert served.ask("GET", "/v1/health/service/a%20b").json == []


def test_cached_services_are_returned_during_a_store_outage(served: CompatRegistry) -> None:
    register(served, "a")
    before = served.ask("GET", USERS).json
    served.store.broken = True
    reply = served.ask("GET", USERS)
    assert reply.json == before
    assert reply.headers["X-Consul-KnownLeader"] == "false"
    assert served.ask("PUT", "/v1/agent/check/pass/service:a").status == 503


@pytest.mark.parametrize("url", [USERS, "/v1/catalog/services", "/v1/agent/services"])
def test_reads_require_a_token_unless_they_are_open(served: CompatRegistry, url: str) -> None:
    assert served.ask("GET", url, token=None).status == 200
    access = Access(TOKEN, {"users": USERS_TOKEN}, open_reads=False)
    served.consul = ConsulApi(served.registry, access)
    assert served.ask("GET", url, token=None).status == 403
    assert served.ask("GET", url, token=USERS_TOKEN).status == 200


WRITES = [
    ("/v1/agent/service/register", {"Name": "orders", "Address": "10.0.0.5", "Port": 80}),
    ("/v1/agent/service/deregister/o", b""),
    ("/v1/agent/service/maintenance/o?enable=true", b""),
    ("/v1/agent/check/register", {"Name": "x", "ServiceID": "o", "TTL": "60s"}),
    ("/v1/agent/check/deregister/service:o", b""),
    ("/v1/agent/check/pass/service:o", b""),
    ("/v1/agent/check/warn/service:o", b""),
    ("/v1/agent/check/fail/service:o", b""),
    ("/v1/agent/check/update/service:o", {"Status": "passing"}),
]


@pytest.mark.parametrize(("url", "body"), WRITES)
@pytest.mark.parametrize("remembered", [False, True])
def test_writes_require_a_token_of_the_service(
    served: CompatRegistry, url: str, body: object, remembered: bool
) -> None:
    served.registry.register(Registered("orders", "o", "10.0.0.5", 80))
    if remembered:
        served.ask("PUT", "/v1/agent/check/pass/service:o")
    before = served.registry.services()
    served.clock.now += 5
    for token in (None, "wrong", USERS_TOKEN):
        reply = served.ask("PUT", url, body, token=token)
        assert reply.status == 403
        assert "WWW-Authenticate" not in reply.headers
    # a token is taken from its fields alone: one in a query ends up in logs
    assert (
        served.ask("PUT", url.partition("?")[0] + f"?token={TOKEN}", body, token=None).status == 403
    )
    elsewhere = {"HTTP_ORIGIN": "https://evil.example"}
    assert served.ask("PUT", url, body, **elsewhere).status == 403
    assert served.registry.services() == before
    bearer = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    assert served.ask("PUT", url, body, token=None, **bearer).status == 200


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"Name": ""}, "Name"),
        ({"Port": 0}, "Port"),
        ({"Address": "169.254.169.254"}, "Address"),
        ({"Address": "224.0.0.1"}, "Address"),
        ({"Address": "8.8.8.8"}, "Address"),
        ({"Address": "64:ff9b::a9fe:a9fe"}, "Address"),
        ({"Address": "0x7f.1"}, "Address"),
        ({"Address": "no-such-host.invalid"}, "Address"),
        ({"Check": {"HTTP": "http://10.0.0.5/", "Interval": "10s"}}, "Check"),
        ({"Tags": ["a"] * 257}, "Tags"),
        ({"Tags": ["a" * 4097]}, "Tags"),
        ({"Tags": [f"{n}-{'a' * 2000}" for n in range(9)]}, "Tags"),
        ({"Meta": {"a": "x" * 5000}}, "Meta"),
    ],
)
def test_an_invalid_registration_is_rejected_by_name(
    served: CompatRegistry, changes: dict[str, Any], field: str
) -> None:
    assert served.ask("PUT", "/v1/agent/service/register", document(**changes)).field == field
    assert served.registry.services() == {}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"Name": "x", "TTL": "60s"}, "ServiceID"),
        ({"Name": "x", "ServiceID": "a", "HTTP": "http://10.0.0.5/"}, "Interval"),
        # nobody carries one out here
        ({"Name": "x", "ServiceID": "a", "HTTP": "http://10.0.0.5/", "Interval": "9s"}, "Check"),
        ({"Name": "x", "ServiceID": "a"}, "TTL"),
        ({"Name": "x", "ServiceID": 7, "TTL": "60s"}, "ServiceID"),
    ],
)
def test_an_invalid_check_is_rejected_by_name(
    served: CompatRegistry, body: dict[str, Any], field: str
) -> None:
    register(served, "a")
    assert served.ask("PUT", "/v1/agent/check/register", body).field == field


@pytest.mark.parametrize(
    ("method", "url", "body", "status"),
    [
        ("GET", "/v1", b"", 501),
        ("GET", "/v1/kv/key", b"", 501),
        ("GET", "/v1/kv/key?recurse", b"", 501),
        ("PUT", "/v1/kv/key", b"x", 501),
        ("DELETE", "/v1/kv/key", b"", 501),
        ("PUT", "/v1/session/create", b"{}", 501),
        ("GET", "/v1/session/list", b"", 501),
        ("GET", "/v1/acl/token/self", b"", 501),
        ("PUT", "/v1/event/fire/deploy", b"", 501),
        ("GET", "/v1/query", b"", 501),
        ("PUT", "/v1/txn", b"[]", 501),
        ("GET", "/v1/connect/ca/roots", b"", 501),
        ("GET", "/v1/config/service-defaults", b"", 501),
        ("GET", "/v1/operator/raft/configuration", b"", 501),
        ("GET", "/v1/coordinate/nodes", b"", 501),
        ("PUT", "/v1/catalog/register", b"", 501),
        ("GET", "/v1/health/node/10.0.0.5", b"", 501),
        ("PUT", "/v1/agent/service/deregister/none", b"", 404),
        ("PUT", "/v1/agent/check/pass/service:none", b"", 404),
        ("PUT", "/v1/agent/check/register", {"Name": "x", "ServiceID": "none", "TTL": "9s"}, 404),
        ("GET", "/v1/agent/service/deregister/a", b"", 405),
        ("DELETE", "/v1/agent/service/register", b"", 405),
        ("PUT", "/v1/agent/service/register", b"{", 400),
        ("PUT", "/v1/agent/service/register", b"[]", 400),
        ("PUT", "/v1/agent/service/register", b"", 411),
        ("PUT", "/v1/agent/service/register", b" " * (LARGEST + 1), 413),
        ("PUT", "/v1/agent/service/maintenance/a", b"", 400),
        ("PUT", "/v1/agent/service/maintenance/a?enable=maybe", b"", 400),
        ("PUT", "/v1/agent/check/update/service:a", {"Status": "fine"}, 400),
        ("PUT", "/v1/agent/check/update/service:a", b"", 411),
        ("GET", f"{USERS}?filter=Service.Port==eighty", b"", 400),
        ("GET", f"{USERS}?filter=Service.Prot==80", b"", 400),
        ("GET", "/v1/catalog/services?filter=ServiceName==a", b"", 400),
        ("GET", f"{USERS}?ns=team", b"", 400),
        ("GET", f"{USERS}?dc=dc2", b"", 400),
        ("GET", f"{USERS}?index=first", b"", 400),
        ("GET", f"{USERS}?index=-1", b"", 400),
        ("GET", f"{USERS}?index={'9' * 20}", b"", 400),
        ("GET", f"{USERS}?index=1&wait=long", b"", 400),
        ("GET", f"{USERS}?index=1&index=2", b"", 400),
        ("GET", f"{USERS}?passing=maybe", b"", 400),
        ("GET", "/v1/health/state/fine", b"", 400),
        ("GET", "/v1/agent/services?filter=x", b"", 400),
    ],
)
def test_unsupported_operations_are_rejected(
    served: CompatRegistry, method: str, url: str, body: object, status: int
) -> None:
    register(served, "a")
    assert served.ask(method, url, body).status == status


def test_two_workers_return_the_same(served: CompatRegistry) -> None:
    other = CompatRegistry()
    other.clock, other.store = served.clock, served.store
    other.registry = Registry(other.store)
    other.consul = ConsulApi(other.registry, other.access)
    register(served, "a")
    assert other.ask("PUT", "/v1/agent/check/fail/service:a").status == 200
    assert passing(served) == passing(other) == []
    assert served.ask("GET", USERS).body == other.ask("GET", USERS).body


def test_a_negative_number_of_waiting_requests_is_rejected(served: CompatRegistry) -> None:
    with pytest.raises(ValueError, match="waiting"):
        ConsulApi(served.registry, served.access, waiting=-1)


RULE = (
    "traefik.http.routers.users.rule=Host(`users.example.com`) && (PathPrefix(`/api/v1/users`) || "
    "PathPrefix(`/api/v2/users`)) && HeadersRegexp(`X-Tenant`, `^[a-z]+$`)"
)


def test_a_tag_can_contain_a_routing_rule(served: CompatRegistry) -> None:
    tags = ["traefik.enable=true", RULE, "größe=L", "", "x" * 4096]
    register(served, "a", Tags=tags)
    [told] = served.ask("GET", USERS).json
    assert told["Service"]["Tags"] == [tag for tag in tags if tag]
    assert served.ask("GET", "/v1/catalog/services").json == {"users": sorted(filter(None, tags))}
    again = Registry(served.store).discover("users").instances
    assert again[0].tags == tuple(filter(None, tags))


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (f"{USERS}?filter=Service.Port==8080", ["a", "b"]),
        (f'{USERS}?filter=Service.Meta.version=="2.0"', ["b"]),
        (f'{USERS}?filter=Service.Meta["version"]!="2.0"', ["a"]),
        (f'{USERS}?filter="canary"+in+Service.Tags', ["b"]),
        (f"{USERS}?filter=Service.Tags+contains+canary+and+not+Service.ID==a", ["b"]),
        (f"{USERS}?filter=Checks.Status==critical", ["b"]),
        (f"{USERS}?passing&filter=Service.Port==8080", ["a"]),
        (f"{USERS}?filter=Service.Kind==%22%22", ["a", "b"]),
        (f"{USERS}?filter=", ["a", "b"]),
        ("/v1/catalog/service/users?filter=ServiceTags+contains+canary", ["b"]),
        ("/v1/agent/services?filter=Meta.version+is+empty", ["a"]),
        ("/v1/agent/checks?filter=Status==passing", ["service:a"]),
        ("/v1/health/checks/users?filter=ServiceID==b", ["service:b"]),
        ("/v1/health/state/any?filter=CheckID==%22service:b%22", ["service:b"]),
        ("/v1/catalog/nodes?filter=Address==10.0.0.5", ["10.0.0.5"]),
        ("/v1/catalog/nodes?filter=Address==10.0.0.6", []),
    ],
)
def test_responses_are_filtered_by_an_expression(
    served: CompatRegistry, url: str, wanted: list[str]
) -> None:
    register(served, "a", Tags=["v1"], Check={"TTL": "60s", "Status": "passing"})
    register(served, "b", Tags=["v1", "canary"], Meta={"version": "2.0"}, Check={"TTL": "60s"})
    told = served.ask("GET", url).json
    found = told.values() if isinstance(told, dict) else told
    ids = [
        each.get("CheckID")
        or each.get("Service", {}).get("ID")
        or each.get("ServiceID")
        or each.get("ID")
        or each["Node"]
        if isinstance(each.get("Service", {}), dict)
        else each["ID"]
        for each in found
    ]
    assert ids == wanted


def test_a_token_in_the_query_is_read_only_if_enabled(served: CompatRegistry) -> None:
    url = f"/v1/agent/service/register?token={USERS_TOKEN}"
    assert served.ask("PUT", url, document(), token=None).status == 403
    served.consul = ConsulApi(served.registry, served.access, query_tokens=True)
    assert served.ask("PUT", url, document(), token=None).status == 200
    for wrong in ("token=", "token=wrong", "", "token=a&token=b"):
        url = f"/v1/agent/service/register?{wrong}"
        assert served.ask("PUT", url, document(), token=None).status == 403
    # what a field says comes first
    assert served.ask("PUT", url, document(), token=USERS_TOKEN).status == 200
    url = f"/v1/agent/service/register?token={USERS_TOKEN}"
    assert served.ask("PUT", url, document(), token="wrong").status == 403
