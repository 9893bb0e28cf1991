"""The Eureka API, with requests of clients that are not installed here and of none."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, CompatRegistry
from wsgigate.auth.bearer import Access
from wsgigate.registry import Registry
from wsgigate.registry.compat import LARGEST
from wsgigate.registry.compat.eureka import EurekaApi
from wsgigate.registry.compat.eureka_format import read_xml
from wsgigate.rules.registry import Registered, Status
from wsgigate.store.memory import MemoryStore

JAVA = b"""<instance>
  <instanceId>10.0.0.5:users:8080</instanceId><hostName>five</hostName><app>USERS</app>
  <ipAddr>10.0.0.5</ipAddr><status>UP</status><overriddenstatus>UNKNOWN</overriddenstatus>
  <port enabled="true">8080</port><securePort enabled="false">443</securePort>
  <countryId>1</countryId>
  <dataCenterInfo class="com.netflix.appinfo.InstanceInfo$DefaultDataCenterInfo">
    <name>MyOwn</name>
  </dataCenterInfo>
  <leaseInfo><renewalIntervalInSecs>30</renewalIntervalInSecs>
    <durationInSecs>90</durationInSecs></leaseInfo>
  <metadata><team>blue</team></metadata>
  <vipAddress>users</vipAddress>
</instance>"""


def document(name: str = "a", status: str = "UP", **more: object) -> dict[str, Any]:
    instance = {
        "instanceId": name,
        "app": "USERS",
        "ipAddr": "10.0.0.5",
        "port": {"$": 8080, "@enabled": "true"},
        "status": status,
        "leaseInfo": {"durationInSecs": 90},
    }
    return {"instance": {**instance, **more}}


def register(served: CompatRegistry, *names: str) -> None:
    for name in names:
        reply = served.ask("POST", "/eureka/apps/USERS", document(name))
        assert (reply.status, reply.body) == (204, b"")


def delta(served: CompatRegistry, path: str = "apps/delta") -> tuple[str, list[tuple[str, str]]]:
    """Return the hash code and the changes that are told, for a delta or else."""
    reply = served.ask("GET", f"/eureka/{path}", HTTP_ACCEPT="application/json")
    told = reply.json["applications"]
    changes = [
        (each["instanceId"], each["actionType"])
        for app in told["application"]
        for each in app["instance"]
    ]
    return told["apps__hashcode"], changes


def test_a_registration_in_xml_is_read_in_json_and_back(served: CompatRegistry) -> None:
    reply = served.ask("POST", "/eureka/apps/USERS", JAVA, CONTENT_TYPE="application/xml")
    assert reply.status == 204
    [entry] = served.registry.discover("users").instances
    assert (entry.host, entry.lease, entry.metadata) == ("10.0.0.5", 90.0, {"team": "blue"})
    path = "/eureka/apps/USERS/10.0.0.5:users:8080"
    in_json = served.ask("GET", path, HTTP_ACCEPT="application/json")
    in_xml = served.ask("GET", path)
    assert in_json.headers["Content-Type"] == "application/json"
    assert in_xml.headers["Content-Type"] == "application/xml"
    instance = in_json.json["instance"]
    assert instance["metadata"] == {"team": "blue"}
    name, same = read_xml(in_xml.body)
    assert name == "instance"
    assert isinstance(same, dict)
    assert {key: str(value) for key, value in same.items() if isinstance(value, str)} == {
        key: str(value) for key, value in instance.items() if not isinstance(value, dict)
    }


def test_all_applications_are_returned_as_json_and_xml(served: CompatRegistry) -> None:
    register(served, "a", "b")
    served.registry.register(Registered("Orders", "o", "10.0.0.6", 80, status=Status.DOWN))
    for path in ("/eureka/apps", "/eureka/apps/", "/eureka/v2/apps"):
        told = served.ask("GET", path, HTTP_ACCEPT="application/json").json["applications"]
        assert told["apps__hashcode"] == "DOWN_1_UP_2_"
        assert [app["name"] for app in told["application"]] == ["ORDERS", "USERS"]
        root = ElementTree.fromstring(served.ask("GET", path).body)
        assert root.findtext("apps__hashcode") == "DOWN_1_UP_2_"
        assert root.findtext("versions__delta") == told["versions__delta"]
        assert [e.text for e in root.findall("application/instance/instanceId")] == ["o", "a", "b"]
        ports = [e.attrib["enabled"] for e in root.findall("application/instance/port")]
        assert ports == ["true"] * 3
    one = served.ask("GET", "/eureka/apps/orders", HTTP_ACCEPT="application/json")
    assert [each["status"] for each in one.json["application"]["instance"]] == ["DOWN"]
    assert served.ask("GET", "/eureka/instances/o").status == 200
    assert served.ask("HEAD", "/eureka/apps").body == b""


def test_renewals_keep_a_lease_and_an_unknown_one_is_404(served: CompatRegistry) -> None:
    path = "/eureka/apps/USERS/a"
    assert served.ask("PUT", path).status == 404
    register(served, "a")
    served.clock.now += 60
    assert served.ask("PUT", f"{path}?status=UP&lastDirtyTimestamp=1").status == 200
    [entry] = served.registry.discover("users").instances
    assert entry.last_heartbeat == served.clock.now
    assert served.ask("DELETE", path).status == 200
    assert [served.ask(method, path).status for method in ("PUT", "DELETE", "GET")] == [404] * 3
    assert served.ask("GET", "/eureka/apps/USERS").status == 404
    assert served.ask("GET", "/eureka/instances/a").status == 404


def test_a_service_of_mixed_case_is_found_under_its_application(served: CompatRegistry) -> None:
    served.registry.register(Registered("Big-Users", "b", "10.0.0.5", 80))
    assert served.ask("PUT", "/eureka/apps/BIG-USERS/b").status == 200
    assert served.ask("PUT", "/eureka/apps/BIG-USERS/b/status?value=DOWN").status == 200
    assert served.registry.discover("Big-Users").instances[0].status == Status.DOWN
    assert served.ask("DELETE", "/eureka/apps/BIG-USERS/b", token=USERS_TOKEN).status == 403
    assert served.ask("DELETE", "/eureka/apps/BIG-USERS/b").status == 200


def test_an_instance_out_of_service_stays_so_until_the_override_ends(
    served: CompatRegistry,
) -> None:
    register(served, "a")
    status = "/eureka/apps/USERS/a/status"

    def now() -> Status:
        return served.registry.discover("users").instances[0].status

    assert served.ask("PUT", f"{status}?value=OUT_OF_SERVICE").status == 200
    assert now() == Status.DRAINING
    register(served, "a")
    assert served.ask("PUT", "/eureka/apps/USERS/a?status=UP").status == 200
    assert now() == Status.DRAINING
    told = served.ask("GET", "/eureka/apps/USERS/a", HTTP_ACCEPT="application/json").json
    assert told["instance"]["overriddenstatus"] == "OUT_OF_SERVICE"
    assert served.ask("DELETE", status).status == 200
    assert now() == Status.UP
    assert served.ask("PUT", f"{status}?value=DOWN").status == 200
    assert served.ask("DELETE", status).status == 200
    assert now() == Status.DOWN
    assert served.ask("DELETE", f"{status}?value=STARTING").status == 200
    assert now() == Status.STARTING


def test_metadata_is_added(served: CompatRegistry) -> None:
    register(served, "a")
    path = "/eureka/apps/USERS/a/metadata"
    assert served.ask("PUT", f"{path}?zone=b&colour=blue&lastDirtyTimestamp=3").status == 200
    [entry] = served.registry.discover("users").instances
    assert (entry.metadata, entry.zone) == ({"zone": "b", "colour": "blue"}, "b")
    assert entry.lease == 90.0
    assert served.ask("PUT", f"{path}?a=%01").field == "metadata"
    assert served.ask("PUT", f"{path}?{'&'.join(f'k{n}=1' for n in range(40))}").status == 400


def test_virtual_addresses_find_instances(served: CompatRegistry) -> None:
    register(served, "a")
    reply = served.ask(
        "POST", "/eureka/apps/USERS", document("b", vipAddress="x,y", secureVipAddress="z")
    )
    assert reply.status == 204
    for path, found in (
        ("vips/users", ["a"]),
        ("vips/x", ["b"]),
        ("vips/y", ["b"]),
        ("vips/nobody", []),
        ("svips/z", ["b"]),
        ("svips/users", ["a"]),
    ):
        code, told = delta(served, path)
        assert [name for name, _ in told] == found
        assert code == (f"UP_{len(found)}_" if found else "")


def test_a_delta_has_the_recent_changes(served: CompatRegistry) -> None:
    register(served, "a", "b")
    assert delta(served) == ("UP_2_", [("a", "ADDED"), ("b", "ADDED")])
    served.clock.now += 196
    assert delta(served) == ("UP_2_", [])
    register(served, "c")
    served.ask("PUT", "/eureka/apps/USERS/a/status?value=OUT_OF_SERVICE")
    served.ask("DELETE", "/eureka/apps/USERS/b")
    changed = [("a", "MODIFIED"), ("b", "DELETED"), ("c", "ADDED")]
    code, told = delta(served)
    assert (code, sorted(told)) == ("OUT_OF_SERVICE_1_UP_1_", changed)
    served.ask("PUT", "/eureka/apps/USERS/c")
    served.clock.now += 180
    assert sorted(delta(served)[1]) == changed
    served.clock.now += 16
    assert delta(served) == ("OUT_OF_SERVICE_1_UP_1_", [])


def test_a_delta_is_complete_after_a_start_and_in_every_worker(served: CompatRegistry) -> None:
    """A worker that was just started reports the changes of the others."""
    register(served, "a", "b", "c")
    served.clock.now += 10
    served.ask("DELETE", "/eureka/apps/USERS/b")
    served.ask("PUT", "/eureka/apps/USERS/a/status?value=OUT_OF_SERVICE")
    registry = Registry(served.store)  # a worker that was just started
    served.eureka = EurekaApi(registry, served.access)
    changed = [("a", "MODIFIED"), ("b", "DELETED"), ("c", "ADDED")]
    code, told = delta(served)
    assert (code, sorted(told)) == ("OUT_OF_SERVICE_1_UP_1_", changed)
    # the instance is told as it was, as clients find theirs by its host and port
    reply = served.ask("GET", "/eureka/apps/delta", HTTP_ACCEPT="application/json")
    [gone] = [
        each
        for app in reply.json["applications"]["application"]
        for each in app["instance"]
        if each["actionType"] == "DELETED"
    ]
    assert gone["hostName"] == document("b")["instance"]["ipAddr"]
    assert gone["port"]["$"] == document("b")["instance"]["port"]["$"]
    assert registry.deregister("users", "c")
    assert ("c", "DELETED") in delta(served)[1]


def test_an_evicted_instance_is_deleted_in_a_delta(served: CompatRegistry) -> None:
    register(served, "a", "b")
    sweeper = served.registry.expiry
    sweeper.step()
    for _ in range(17):  # as if it were looked after all the time
        served.clock.now += 10
        served.ask("PUT", "/eureka/apps/USERS/a")
        sweeper.step()
    assert delta(served) == ("UP_1_", [("a", "ADDED"), ("b", "DELETED")])


def test_an_instance_that_returns_is_not_deleted_in_a_delta(served: CompatRegistry) -> None:
    register(served, "a")
    served.ask("DELETE", "/eureka/apps/USERS/a")
    assert delta(served) == ("", [("a", "DELETED")])
    register(served, "a")
    assert delta(served) == ("UP_1_", [("a", "ADDED")])
    served.ask("DELETE", "/eureka/apps/USERS/a")
    changed = document("a", port={"$": 9999, "@enabled": "true"})
    assert served.ask("POST", "/eureka/apps/USERS", changed).status == 204
    assert delta(served) == ("UP_1_", [("a", "MODIFIED")])


def test_a_delta_has_all_instances_during_a_store_outage(served: CompatRegistry) -> None:
    register(served, "a")
    delta(served)
    served.ask("GET", "/eureka/apps")
    served.store.broken = True
    assert delta(served) == ("UP_1_", [("a", "ADDED")])


def test_a_change_by_another_worker_is_returned_at_once(served: CompatRegistry) -> None:
    """Another worker's changes are seen at once, over the store."""
    other = Registry(served.store)
    for names in (["a"], ["a", "b"], ["a", "b", "c"]):
        other.register(Registered("users", names[-1], "10.0.0.5", 80))
        told = served.ask("GET", "/eureka/apps", HTTP_ACCEPT="application/json")
        [app] = told.json["applications"]["application"]
        assert [each["instanceId"] for each in app["instance"]] == names


@pytest.mark.parametrize("path", ["/eureka/apps", "/eureka/apps/delta", "/eureka/vips/users"])
def test_reads_require_a_token_unless_they_are_open(served: CompatRegistry, path: str) -> None:
    assert served.ask("GET", path, token=None).status == 200
    access = Access(TOKEN, {"users": USERS_TOKEN}, open_reads=False)
    served.eureka = EurekaApi(served.registry, access)
    refused = served.ask("GET", path, token=None)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="registry"'
    assert served.ask("GET", path, token=USERS_TOKEN).status == 200


WRITES = [
    ("POST", "/eureka/apps/{}"),
    ("PUT", "/eureka/apps/{}/a"),
    ("DELETE", "/eureka/apps/{}/a"),
    ("PUT", "/eureka/apps/{}/a/status?value=DOWN"),
    ("DELETE", "/eureka/apps/{}/a/status"),
    ("PUT", "/eureka/apps/{}/a/metadata?x=y"),
]


@pytest.mark.parametrize(("method", "url"), WRITES)
@pytest.mark.parametrize("there", [True, False])
def test_writes_require_a_token_of_the_service(
    served: CompatRegistry, method: str, url: str, there: bool
) -> None:
    if there:
        served.registry.register(Registered("orders", "a", "10.0.0.5", 80))
        served.registry.register(Registered("users", "a", "10.0.0.5", 80))
    before = served.registry.services()
    body = document(app="ORDERS") if method == "POST" else b""
    for token, status in ((None, 401), ("wrong", 401), (USERS_TOKEN, 403)):
        reply = served.ask(method, url.format("ORDERS"), body, token=token)
        assert reply.status == status, reply.body
    for wrong in ("Basic !!!", "Basic", "Basic " + "YTpi", "Digest x", "Bearer wrong"):
        fields = {"HTTP_AUTHORIZATION": wrong}
        reply = served.ask(method, url.format("ORDERS"), body, token=None, **fields)
        assert reply.status == 401
    assert served.registry.services() == before
    body = document() if method == "POST" else b""
    reply = served.ask(method, url.format("USERS"), body, token=USERS_TOKEN)
    assert reply.status in ((200, 204) if there or method == "POST" else (404,))
    fields = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    assert served.ask("PUT", "/eureka/apps/X/y", token=None, **fields).status == 404


def test_a_page_of_another_site_cannot_use_remembered_credentials(served: CompatRegistry) -> None:
    reply = served.ask("DELETE", "/eureka/apps/USERS/a", HTTP_ORIGIN="https://evil.example")
    assert reply.status == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (document(app="OTHER"), "app"),
        (document(port={"$": 0, "@enabled": "true"}), "port"),
        (document(status="BROKEN"), "status"),
        (document(metadata={"a": "\x01"}), "metadata"),
        # where no instance may be: the registry's own rules hold served every door
        (document(ipAddr="169.254.169.254"), "ipAddr"),
        (document(ipAddr="0.0.0.0"), "ipAddr"),
        (document(ipAddr="8.8.8.8"), "ipAddr"),
        (document(ipAddr="::ffff:169.254.169.254"), "ipAddr"),
        (document(ipAddr="2130706433"), "ipAddr"),
        (document(ipAddr="no-such-host.invalid"), "ipAddr"),
        ({}, "instance"),
    ],
)
def test_an_invalid_registration_is_rejected_by_name(
    served: CompatRegistry, body: dict[str, Any], field: str
) -> None:
    assert served.ask("POST", "/eureka/apps/USERS", body).field == field
    assert served.registry.services() == {}


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{", 400),
        ("application/json", b"[]", 400),
        ("application/json", b'{"instance": {}, "instance": {}}', 400),
        ("application/json", b'{"instance": NaN}', 400),
        ("application/json", b"[" * 30_000, 400),
        ("application/json", b"\xff", 400),
        ("application/json", b" " * (LARGEST + 1), 413),
        ("application/xml", b"<instance>", 400),
        ("text/xml", b'<!DOCTYPE i [<!ENTITY x SYSTEM "file:///etc/passwd">]><i>&x;</i>', 400),
        ("application/xml", b"<a>" * 1000, 400),
        ("application/xml", b"<other/>", 400),
        ("application/xml", b" " * (LARGEST + 1), 413),
    ],
)
def test_a_malformed_body_is_rejected(
    served: CompatRegistry, kind: str, body: bytes, status: int
) -> None:
    reply = served.ask("POST", "/eureka/apps/USERS", body, CONTENT_TYPE=kind)
    assert reply.status == status
    assert b"/etc" not in reply.body


def test_a_body_that_is_compressed_or_without_length_is_rejected(served: CompatRegistry) -> None:
    url = "/eureka/apps/USERS"
    assert served.ask("POST", url, document(), HTTP_CONTENT_ENCODING="gzip").status == 415
    assert served.ask("POST", url, document(), CONTENT_LENGTH="").status == 411
    assert served.ask("POST", url, document(), CONTENT_LENGTH="9" * 30).status == 413
    assert served.ask("POST", url, document(), CONTENT_LENGTH="10000").status == 400


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("GET", "/eureka", 404),
        ("GET", "/eurekas/apps", 404),
        ("GET", "/eureka/peerreplication/batch", 404),
        ("GET", "/eureka/apps/USERS/a/b/c", 404),
        ("PATCH", "/eureka/apps/USERS/a", 405),
        ("POST", "/eureka/apps", 405),
        ("PUT", "/eureka/apps/USERS/a/status?value=UNKNOWN", 400),
        ("PUT", "/eureka/apps/USERS/a/status?value=up", 400),
        ("PUT", "/eureka/apps/USERS/a/status", 400),
        ("PUT", "/eureka/apps/USERS/a/status?value=UP&value=DOWN", 400),
        ("DELETE", "/eureka/apps/USERS/a/status?value=up", 400),
        ("PUT", "/eureka/apps/USERS/a/status?value=%ff", 400),
        ("PUT", "/eureka/apps/USERS/%2e%2e", 400),
        ("PUT", "/eureka/apps/US ERS/a", 404),
    ],
)
def test_unsupported_operations_are_rejected(
    served: CompatRegistry, method: str, url: str, status: int
) -> None:
    register(served, "a")
    assert served.ask(method, url, RAW_URI=url.replace(" ", "%20")).status == status


def test_a_full_registry_answers_with_507(served: CompatRegistry) -> None:
    served.registry = Registry(MemoryStore(), most_of_one=1)
    served.eureka = EurekaApi(served.registry, served.access)
    register(served, "a")
    assert served.ask("POST", "/eureka/apps/USERS", document("b")).status == 507


def test_cached_applications_are_returned_during_a_store_outage(served: CompatRegistry) -> None:
    register(served, "a")
    before = served.ask("GET", "/eureka/apps").body
    served.store.broken = True
    assert served.ask("GET", "/eureka/apps").body == before
    reply = served.ask("PUT", "/eureka/apps/USERS/a")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert b"disk" not in reply.body


@pytest.mark.parametrize("prefix", ["eureka", "/eureka/"])
def test_a_prefix_that_is_not_a_path_is_rejected(served: CompatRegistry, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        EurekaApi(served.registry, served.access, prefix=prefix)


def test_an_instance_that_changed_between_two_removals_is_replaced(served: CompatRegistry) -> None:
    """A client that has missed all of it knows the instance as it was in the beginning."""
    register(served, "a")
    served.ask("DELETE", "/eureka/apps/USERS/a")
    moved = document("a", port={"$": 9999, "@enabled": "true"})
    for _ in range(2):
        assert served.ask("POST", "/eureka/apps/USERS", moved).status == 204
        told = delta(served)
        served.ask("DELETE", "/eureka/apps/USERS/a")
    assert told == ("UP_1_", [("a", "MODIFIED")])
