"""Consul's door, asked as no client would, and as clients do that are not here."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, Behind
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.compat import LARGEST
from wsgigate.registry.compat.consul import ConsulApi
from wsgigate.rules.registry import Registered, Status

USERS = "/v1/health/service/users"


def document(name: str = "a", **more: object) -> dict[str, Any]:
    return {"Name": "users", "ID": name, "Address": "10.0.0.5", "Port": 8080, **more}


def register(behind: Behind, *names: str, **more: object) -> None:
    for name in names:
        reply = behind.ask("PUT", "/v1/agent/service/register", document(name, **more))
        assert (reply.status, reply.body) == (200, b"")


def entries(behind: Behind, service: str = "users") -> dict[str, Registered]:
    found = behind.registry.discover(service).instances
    return {entry.instance_id: entry for entry in found}


def passing(behind: Behind, query: str = "") -> list[str]:
    found = behind.ask("GET", f"{USERS}?passing{query}").json
    return [each["Service"]["ID"] for each in found]


def test_a_ttl_that_is_over_is_critical(behind: Behind) -> None:
    register(behind, "a", Check={"TTL": "60s", "Status": "passing"})
    register(behind, "b", Check={"TTL": "5s", "Status": "passing"})
    behind.clock.now += 30
    assert passing(behind) == ["a", "b"]
    behind.clock.now += 1  # one shorter than the registry's own is as long as that
    assert passing(behind) == ["a"]
    [_, check] = behind.ask("GET", "/v1/health/checks/users").json
    assert (check["Status"], check["Output"]) == ("critical", "TTL expired")
    assert behind.ask("PUT", "/v1/agent/check/pass/service:b").status == 200
    assert passing(behind) == ["a", "b"]


def test_a_check_says_how_an_instance_is(behind: Behind) -> None:
    register(behind, "a", Check={"TTL": "60s"})
    assert entries(behind)["a"].status == Status.STARTING
    for report, body, status in (
        ("pass", b"", Status.UP),
        ("fail", b"", Status.DOWN),
        ("warn", b"", Status.UP),
        ("update", {"Status": "critical", "Output": "no"}, Status.DOWN),
        ("update", {"Status": "passing"}, Status.UP),
        ("update", {"status": "warning"}, Status.UP),
    ):
        behind.clock.now += 1
        assert behind.ask("PUT", f"/v1/agent/check/{report}/service:a", body).status == 200
        entry = entries(behind)["a"]
        assert (entry.status, entry.last_heartbeat) == (status, behind.clock.now)


def test_maintenance_lasts_whatever_else_is_said(behind: Behind) -> None:
    register(behind, "a", Check={"TTL": "60s", "Status": "passing"})
    url = "/v1/agent/service/maintenance/a"
    assert behind.ask("PUT", f"{url}?enable=true&reason=disk").status == 200
    for again in (
        lambda: behind.ask("PUT", "/v1/agent/check/pass/service:a"),
        lambda: behind.ask("PUT", "/v1/agent/check/fail/service:a"),
        lambda: register(behind, "a", Check={"TTL": "60s", "Status": "passing"}),
        lambda: behind.ask(
            "PUT", "/v1/agent/check/register", {"Name": "x", "ServiceID": "a", "TTL": "60s"}
        ),
        lambda: behind.ask("PUT", "/v1/agent/check/deregister/x"),
    ):
        again()
        assert entries(behind)["a"].status == Status.DRAINING
        assert passing(behind) == []
    assert behind.ask("PUT", f"{url}?enable=false").status == 200
    assert passing(behind) == ["a"]
    behind.ask("PUT", "/v1/agent/check/fail/service:a")
    assert behind.ask("PUT", f"{url}?enable=false").status == 200
    assert entries(behind)["a"].status == Status.DOWN  # it was in no maintenance


def test_an_instance_without_an_address_is_where_its_client_is(behind: Behind) -> None:
    url = "/v1/agent/service/register"
    assert behind.ask("PUT", url, document(Address=""), REMOTE_ADDR="10.0.0.9").status == 200
    assert entries(behind)["a"].host == "10.0.0.9"
    reply = behind.ask("PUT", url, document(Address=""), **{"wsgigate.client": "10.0.0.7"})
    assert reply.status == 200
    assert entries(behind)["a"].host == "10.0.0.7"
    assert behind.ask("PUT", url, document(Address=""), REMOTE_ADDR="").field == "Address"


def test_reports_find_their_instance_again_after_it_has_left(behind: Behind) -> None:
    register(behind, "a", Check={"TTL": "60s", "CheckID": "alive"})
    report = "/v1/agent/check/pass/alive"
    assert behind.ask("PUT", report).status == 200
    assert behind.ask("PUT", "/v1/agent/service/deregister/a").status == 200
    assert behind.ask("PUT", report).status == 404
    behind.registry.register(
        Registered("orders", "o", "10.0.0.5", 80, metadata={"consul.check": "alive"})
    )
    behind.clock.now += 5
    assert behind.ask("PUT", report).status == 200
    assert entries(behind, "orders")["o"].last_heartbeat == behind.clock.now


def test_what_is_remembered_of_checks_is_bounded(
    behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsgigate.registry.compat.consul._MOST_CACHED", 3)
    names = [f"a{n}" for n in range(8)]
    register(behind, *names)
    for name in names * 2:
        assert behind.ask("PUT", f"/v1/agent/check/pass/service:{name}").status == 200
        assert len(behind.consul._instances_of) <= 3


def test_an_id_that_several_services_have_means_all_that_one_may_change(behind: Behind) -> None:
    register(behind, "a")
    behind.registry.register(Registered("orders", "a", "10.0.0.6", 80))
    behind.clock.now += 5
    report = "/v1/agent/check/fail/service:a"
    assert behind.ask("PUT", report, token=USERS_TOKEN).status == 200
    assert entries(behind)["a"].status == Status.DOWN
    assert entries(behind, "orders")["a"].status == Status.UP
    assert behind.ask("PUT", report).status == 200
    assert behind.ask("PUT", report).status == 200
    assert entries(behind, "orders")["a"].status == Status.DOWN
    leave = "/v1/agent/service/deregister/a"
    assert behind.ask("PUT", leave, token=USERS_TOKEN).status == 200
    assert behind.ask("PUT", leave, token=USERS_TOKEN).status == 403
    assert behind.ask("PUT", leave).status == 200
    assert behind.ask("PUT", leave).status == 404


def test_an_index_changes_with_what_is_told_and_not_by_a_heartbeat(behind: Behind) -> None:
    def index(url: str = USERS) -> int:
        return int(behind.ask("GET", url).headers["X-Consul-Index"])

    assert index() == 1
    register(behind, "a")
    first, whole = index(), index("/v1/catalog/services")
    assert first > 1
    behind.clock.now += 5
    behind.ask("PUT", "/v1/agent/check/pass/service:a")
    assert index() == first
    behind.registry.register(Registered("orders", "o", "10.0.0.6", 80))
    assert index() == first
    assert index("/v1/catalog/services") > whole
    behind.ask("PUT", "/v1/agent/check/fail/service:a")
    assert index() > first


def waiting(behind: Behind, url: str) -> tuple[threading.Thread, list[Any]]:
    """Return a thread that asks for *url*, and what it is answered."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(behind.ask("GET", url)))
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
def test_who_waits_is_answered_when_something_changes(
    behind: Behind, url: str, there: bool
) -> None:
    if there:
        register(behind, "a")
    before = behind.ask("GET", url)
    asleep = threading.Event()
    behind.registry.wait = _noting(behind.registry.wait, asleep)  # type: ignore[method-assign]
    thread, answers = waiting(behind, f"{url}?index={before.headers['X-Consul-Index']}")
    assert asleep.wait(20)
    register(behind, "b", Tags=["new"])
    thread.join(20)
    [after] = answers
    assert int(after.headers["X-Consul-Index"]) > int(before.headers["X-Consul-Index"])
    assert after.json != before.json


def _noting(wait: Any, begun: threading.Event) -> Any:
    def recorded(*arguments: object) -> Any:
        begun.set()
        return wait(*arguments)

    return recorded


def test_no_more_wait_than_may_and_the_rest_is_answered_at_once(behind: Behind) -> None:
    behind.consul = ConsulApi(behind.registry, behind.access, waiting=1)
    asleep = threading.Event()
    behind.registry.wait = _noting(behind.registry.wait, asleep)  # type: ignore[method-assign]
    thread, answers = waiting(behind, f"{USERS}?index=1")
    assert asleep.wait(20)
    assert behind.ask("GET", f"{USERS}?index=1&wait=20s").json == []
    assert not answers
    register(behind, "a")
    thread.join(20)
    assert len(answers) == 1
    asleep.clear()
    index = behind.ask("GET", USERS).headers["X-Consul-Index"]
    thread, answers = waiting(behind, f"{USERS}?index={index}")
    assert asleep.wait(20)  # the slot was released
    register(behind, "b")
    thread.join(20)
    assert len(answers) == 1
    behind.consul = ConsulApi(behind.registry, behind.access, waiting=0)
    index = behind.ask("GET", USERS).headers["X-Consul-Index"]
    assert len(behind.ask("GET", f"{USERS}?index={index}").json) == 2


def test_a_wait_ends(behind: Behind) -> None:
    register(behind, "a")
    index = behind.ask("GET", USERS).headers["X-Consul-Index"]
    reply = behind.ask("GET", f"{USERS}?index={index}&wait=30ms")
    assert reply.headers["X-Consul-Index"] == index
    assert behind.ask("GET", f"{USERS}?index=0&wait=20s").status == 200


def test_all_that_is_told_of_an_instance(behind: Behind) -> None:
    register(behind, "a", Tags=["v1"], Meta={"zone": "b"}, Weights={"Passing": 7})
    reply = behind.ask("GET", USERS)
    [told] = reply.json
    assert told["Node"]["Address"] == "10.0.0.5"
    assert told["Service"]["Weights"]["Passing"] == 7
    assert told["Service"]["Meta"] == {"zone": "b"}
    assert [check["Status"] for check in told["Checks"]] == ["passing"]
    assert reply.headers["X-Consul-KnownLeader"] == "true"
    assert reply.headers["X-Consul-LastContact"] == "0"
    [catalog] = behind.ask("GET", "/v1/catalog/service/users").json
    assert (catalog["ServiceID"], catalog["ServiceTags"], catalog["Node"]) == (
        "a",
        ["v1"],
        "10.0.0.5",
    )
    assert behind.ask("GET", "/v1/agent/service/a").json["Datacenter"] == "dc1"
    assert behind.ask("GET", "/v1/agent/service/b").status == 404
    assert behind.ask("GET", f"{USERS}?tag=v1&tag=v2").json == []
    assert len(behind.ask("GET", f"{USERS}?tag=v1&near=_agent&dc=dc1&stale&pretty").json) == 1
    assert behind.ask("GET", "/v1/health/service/a%20b").json == []


def test_while_the_store_fails_it_tells_what_it_knew(behind: Behind) -> None:
    register(behind, "a")
    before = behind.ask("GET", USERS).json
    behind.store.broken = True
    reply = behind.ask("GET", USERS)
    assert reply.json == before
    assert reply.headers["X-Consul-KnownLeader"] == "false"
    assert behind.ask("PUT", "/v1/agent/check/pass/service:a").status == 503


@pytest.mark.parametrize("url", [USERS, "/v1/catalog/services", "/v1/agent/services"])
def test_reads_are_open_unless_they_are_not(behind: Behind, url: str) -> None:
    assert behind.ask("GET", url, token=None).status == 200
    access = Access(TOKEN, {"users": USERS_TOKEN}, open_reads=False)
    behind.consul = ConsulApi(behind.registry, access)
    assert behind.ask("GET", url, token=None).status == 403
    assert behind.ask("GET", url, token=USERS_TOKEN).status == 200


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
def test_writes_need_a_token_of_that_service(
    behind: Behind, url: str, body: object, remembered: bool
) -> None:
    behind.registry.register(Registered("orders", "o", "10.0.0.5", 80))
    if remembered:
        behind.ask("PUT", "/v1/agent/check/pass/service:o")
    before = behind.registry.services()
    behind.clock.now += 5
    for token in (None, "wrong", USERS_TOKEN):
        reply = behind.ask("PUT", url, body, token=token)
        assert reply.status == 403
        assert "WWW-Authenticate" not in reply.headers
    # a token is taken from its fields alone: one in a query ends up in logs
    assert (
        behind.ask("PUT", url.partition("?")[0] + f"?token={TOKEN}", body, token=None).status == 403
    )
    elsewhere = {"HTTP_ORIGIN": "https://evil.example"}
    assert behind.ask("PUT", url, body, **elsewhere).status == 403
    assert behind.registry.services() == before
    bearer = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    assert behind.ask("PUT", url, body, token=None, **bearer).status == 200


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
def test_a_bad_registration_names_what_is_wrong(
    behind: Behind, changes: dict[str, Any], field: str
) -> None:
    assert behind.ask("PUT", "/v1/agent/service/register", document(**changes)).field == field
    assert behind.registry.services() == {}


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
def test_a_bad_check_names_what_is_wrong(behind: Behind, body: dict[str, Any], field: str) -> None:
    register(behind, "a")
    assert behind.ask("PUT", "/v1/agent/check/register", body).field == field


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
def test_what_is_not_spoken_is_refused(
    behind: Behind, method: str, url: str, body: object, status: int
) -> None:
    register(behind, "a")
    assert behind.ask(method, url, body).status == status


def test_two_workers_tell_the_same(behind: Behind) -> None:
    other = Behind()
    other.clock, other.store = behind.clock, behind.store
    other.registry = Registry(other.store)
    other.consul = ConsulApi(other.registry, other.access)
    register(behind, "a")
    assert other.ask("PUT", "/v1/agent/check/fail/service:a").status == 200
    assert passing(behind) == passing(other) == []
    assert behind.ask("GET", USERS).body == other.ask("GET", USERS).body


def test_a_number_of_waiting_requests_is_none_or_more(behind: Behind) -> None:
    with pytest.raises(ValueError, match="waiting"):
        ConsulApi(behind.registry, behind.access, waiting=-1)


RULE = (
    "traefik.http.routers.users.rule=Host(`users.example.com`) && (PathPrefix(`/api/v1/users`) || "
    "PathPrefix(`/api/v2/users`)) && HeadersRegexp(`X-Tenant`, `^[a-z]+$`)"
)


def test_a_tag_may_hold_a_routing_rule(behind: Behind) -> None:
    tags = ["traefik.enable=true", RULE, "größe=L", "", "x" * 4096]
    register(behind, "a", Tags=tags)
    [told] = behind.ask("GET", USERS).json
    assert told["Service"]["Tags"] == [tag for tag in tags if tag]
    assert behind.ask("GET", "/v1/catalog/services").json == {"users": sorted(filter(None, tags))}
    again = Registry(behind.store).discover("users").instances
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
def test_answers_are_filtered(behind: Behind, url: str, wanted: list[str]) -> None:
    register(behind, "a", Tags=["v1"], Check={"TTL": "60s", "Status": "passing"})
    register(behind, "b", Tags=["v1", "canary"], Meta={"version": "2.0"}, Check={"TTL": "60s"})
    told = behind.ask("GET", url).json
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


def test_a_token_in_the_query_is_looked_at_where_that_was_said(behind: Behind) -> None:
    url = f"/v1/agent/service/register?token={USERS_TOKEN}"
    assert behind.ask("PUT", url, document(), token=None).status == 403
    behind.consul = ConsulApi(behind.registry, behind.access, query_tokens=True)
    assert behind.ask("PUT", url, document(), token=None).status == 200
    for wrong in ("token=", "token=wrong", "", "token=a&token=b"):
        url = f"/v1/agent/service/register?{wrong}"
        assert behind.ask("PUT", url, document(), token=None).status == 403
    # what a field says comes first
    assert behind.ask("PUT", url, document(), token=USERS_TOKEN).status == 200
    url = f"/v1/agent/service/register?token={USERS_TOKEN}"
    assert behind.ask("PUT", url, document(), token="wrong").status == 403
