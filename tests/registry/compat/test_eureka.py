"""Eureka's door, asked as no client would, and as clients do that are not here."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest

from tests.registry.compat.conftest import TOKEN, USERS_TOKEN, Behind
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


def register(behind: Behind, *names: str) -> None:
    for name in names:
        reply = behind.ask("POST", "/eureka/apps/USERS", document(name))
        assert (reply.status, reply.body) == (204, b"")


def delta(behind: Behind, path: str = "apps/delta") -> tuple[str, list[tuple[str, str]]]:
    """Return the hash code and the changes that are told, for a delta or else."""
    reply = behind.ask("GET", f"/eureka/{path}", HTTP_ACCEPT="application/json")
    told = reply.json["applications"]
    changes = [
        (each["instanceId"], each["actionType"])
        for app in told["application"]
        for each in app["instance"]
    ]
    return told["apps__hashcode"], changes


def test_a_registration_in_xml_is_read_in_json_and_back(behind: Behind) -> None:
    reply = behind.ask("POST", "/eureka/apps/USERS", JAVA, CONTENT_TYPE="application/xml")
    assert reply.status == 204
    [entry] = behind.registry.discover("users").instances
    assert (entry.host, entry.lease, entry.metadata) == ("10.0.0.5", 90.0, {"team": "blue"})
    path = "/eureka/apps/USERS/10.0.0.5:users:8080"
    in_json = behind.ask("GET", path, HTTP_ACCEPT="application/json")
    in_xml = behind.ask("GET", path)
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


def test_all_applications_in_both_forms(behind: Behind) -> None:
    register(behind, "a", "b")
    behind.registry.register(Registered("Orders", "o", "10.0.0.6", 80, status=Status.DOWN))
    for path in ("/eureka/apps", "/eureka/apps/", "/eureka/v2/apps"):
        told = behind.ask("GET", path, HTTP_ACCEPT="application/json").json["applications"]
        assert told["apps__hashcode"] == "DOWN_1_UP_2_"
        assert [app["name"] for app in told["application"]] == ["ORDERS", "USERS"]
        root = ElementTree.fromstring(behind.ask("GET", path).body)
        assert root.findtext("apps__hashcode") == "DOWN_1_UP_2_"
        assert root.findtext("versions__delta") == told["versions__delta"]
        assert [e.text for e in root.findall("application/instance/instanceId")] == ["o", "a", "b"]
        ports = [e.attrib["enabled"] for e in root.findall("application/instance/port")]
        assert ports == ["true"] * 3
    one = behind.ask("GET", "/eureka/apps/orders", HTTP_ACCEPT="application/json")
    assert [each["status"] for each in one.json["application"]["instance"]] == ["DOWN"]
    assert behind.ask("GET", "/eureka/instances/o").status == 200
    assert behind.ask("HEAD", "/eureka/apps").body == b""


def test_renewals_keep_a_lease_and_an_unknown_one_is_404(behind: Behind) -> None:
    path = "/eureka/apps/USERS/a"
    assert behind.ask("PUT", path).status == 404
    register(behind, "a")
    behind.clock.now += 60
    assert behind.ask("PUT", f"{path}?status=UP&lastDirtyTimestamp=1").status == 200
    [entry] = behind.registry.discover("users").instances
    assert entry.last_heartbeat == behind.clock.now
    assert behind.ask("DELETE", path).status == 200
    assert [behind.ask(method, path).status for method in ("PUT", "DELETE", "GET")] == [404] * 3
    assert behind.ask("GET", "/eureka/apps/USERS").status == 404
    assert behind.ask("GET", "/eureka/instances/a").status == 404


def test_a_service_of_mixed_case_is_found_under_its_application(behind: Behind) -> None:
    behind.registry.register(Registered("Big-Users", "b", "10.0.0.5", 80))
    assert behind.ask("PUT", "/eureka/apps/BIG-USERS/b").status == 200
    assert behind.ask("PUT", "/eureka/apps/BIG-USERS/b/status?value=DOWN").status == 200
    assert behind.registry.discover("Big-Users").instances[0].status == Status.DOWN
    assert behind.ask("DELETE", "/eureka/apps/BIG-USERS/b", token=USERS_TOKEN).status == 403
    assert behind.ask("DELETE", "/eureka/apps/BIG-USERS/b").status == 200


def test_who_was_taken_out_of_service_stays_out_until_it_is_put_back(behind: Behind) -> None:
    register(behind, "a")
    status = "/eureka/apps/USERS/a/status"

    def now() -> Status:
        return behind.registry.discover("users").instances[0].status

    assert behind.ask("PUT", f"{status}?value=OUT_OF_SERVICE").status == 200
    assert now() == Status.DRAINING
    register(behind, "a")
    assert behind.ask("PUT", "/eureka/apps/USERS/a?status=UP").status == 200
    assert now() == Status.DRAINING
    told = behind.ask("GET", "/eureka/apps/USERS/a", HTTP_ACCEPT="application/json").json
    assert told["instance"]["overriddenstatus"] == "OUT_OF_SERVICE"
    assert behind.ask("DELETE", status).status == 200
    assert now() == Status.UP
    assert behind.ask("PUT", f"{status}?value=DOWN").status == 200
    assert behind.ask("DELETE", status).status == 200
    assert now() == Status.DOWN
    assert behind.ask("DELETE", f"{status}?value=STARTING").status == 200
    assert now() == Status.STARTING


def test_metadata_is_added(behind: Behind) -> None:
    register(behind, "a")
    path = "/eureka/apps/USERS/a/metadata"
    assert behind.ask("PUT", f"{path}?zone=b&colour=blue&lastDirtyTimestamp=3").status == 200
    [entry] = behind.registry.discover("users").instances
    assert (entry.metadata, entry.zone) == ({"zone": "b", "colour": "blue"}, "b")
    assert entry.lease == 90.0
    assert behind.ask("PUT", f"{path}?a=%01").field == "metadata"
    assert behind.ask("PUT", f"{path}?{'&'.join(f'k{n}=1' for n in range(40))}").status == 400


def test_virtual_addresses_find_instances(behind: Behind) -> None:
    register(behind, "a")
    reply = behind.ask(
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
        code, told = delta(behind, path)
        assert [name for name, _ in told] == found
        assert code == (f"UP_{len(found)}_" if found else "")


def test_deltas_are_what_has_changed_and_end(behind: Behind) -> None:
    register(behind, "a", "b")
    assert delta(behind) == ("UP_2_", [("a", "ADDED"), ("b", "ADDED")])
    behind.clock.now += 196
    assert delta(behind) == ("UP_2_", [])
    register(behind, "c")
    behind.ask("PUT", "/eureka/apps/USERS/a/status?value=OUT_OF_SERVICE")
    behind.ask("DELETE", "/eureka/apps/USERS/b")
    changed = [("a", "MODIFIED"), ("b", "DELETED"), ("c", "ADDED")]
    code, told = delta(behind)
    assert (code, sorted(told)) == ("OUT_OF_SERVICE_1_UP_1_", changed)
    behind.ask("PUT", "/eureka/apps/USERS/c")
    behind.clock.now += 180
    assert sorted(delta(behind)[1]) == changed
    behind.clock.now += 16
    assert delta(behind) == ("OUT_OF_SERVICE_1_UP_1_", [])


def test_deltas_are_whole_right_after_a_start_and_in_every_worker(behind: Behind) -> None:
    """What one worker did is told by another one that has just been started, never asked before."""
    register(behind, "a", "b", "c")
    behind.clock.now += 10
    behind.ask("DELETE", "/eureka/apps/USERS/b")
    behind.ask("PUT", "/eureka/apps/USERS/a/status?value=OUT_OF_SERVICE")
    registry = Registry(behind.store)  # a worker that was just started
    behind.eureka = EurekaApi(registry, behind.access)
    changed = [("a", "MODIFIED"), ("b", "DELETED"), ("c", "ADDED")]
    code, told = delta(behind)
    assert (code, sorted(told)) == ("OUT_OF_SERVICE_1_UP_1_", changed)
    # the instance is told as it was, as clients find theirs by its host and port
    reply = behind.ask("GET", "/eureka/apps/delta", HTTP_ACCEPT="application/json")
    [gone] = [
        each
        for app in reply.json["applications"]["application"]
        for each in app["instance"]
        if each["actionType"] == "DELETED"
    ]
    assert gone["hostName"] == document("b")["instance"]["ipAddr"]
    assert gone["port"]["$"] == document("b")["instance"]["port"]["$"]
    assert registry.deregister("users", "c")
    assert ("c", "DELETED") in delta(behind)[1]


def test_whoever_is_evicted_is_told_as_deleted(behind: Behind) -> None:
    register(behind, "a", "b")
    sweeper = behind.registry._expiry
    sweeper.step()
    for _ in range(17):  # as if it were looked after all the time
        behind.clock.now += 10
        behind.ask("PUT", "/eureka/apps/USERS/a")
        sweeper.step()
    assert delta(behind) == ("UP_1_", [("a", "ADDED"), ("b", "DELETED")])


def test_one_that_comes_back_is_no_longer_deleted(behind: Behind) -> None:
    register(behind, "a")
    behind.ask("DELETE", "/eureka/apps/USERS/a")
    assert delta(behind) == ("", [("a", "DELETED")])
    register(behind, "a")
    assert delta(behind) == ("UP_1_", [("a", "ADDED")])
    behind.ask("DELETE", "/eureka/apps/USERS/a")
    changed = document("a", port={"$": 9999, "@enabled": "true"})
    assert behind.ask("POST", "/eureka/apps/USERS", changed).status == 204
    assert delta(behind) == ("UP_1_", [("a", "MODIFIED")])


def test_while_the_store_fails_a_delta_is_all_that_is_known(behind: Behind) -> None:
    register(behind, "a")
    delta(behind)
    behind.ask("GET", "/eureka/apps")
    behind.store.broken = True
    assert delta(behind) == ("UP_1_", [("a", "ADDED")])


def test_what_is_told_is_of_now_whoever_changed_it(behind: Behind) -> None:
    """Another worker's changes are seen at once, over the store."""
    other = Registry(behind.store)
    for names in (["a"], ["a", "b"], ["a", "b", "c"]):
        other.register(Registered("users", names[-1], "10.0.0.5", 80))
        told = behind.ask("GET", "/eureka/apps", HTTP_ACCEPT="application/json")
        [app] = told.json["applications"]["application"]
        assert [each["instanceId"] for each in app["instance"]] == names


@pytest.mark.parametrize("path", ["/eureka/apps", "/eureka/apps/delta", "/eureka/vips/users"])
def test_reads_are_open_unless_they_are_not(behind: Behind, path: str) -> None:
    assert behind.ask("GET", path, token=None).status == 200
    access = Access(TOKEN, {"users": USERS_TOKEN}, open_reads=False)
    behind.eureka = EurekaApi(behind.registry, access)
    refused = behind.ask("GET", path, token=None)
    assert refused.status == 401
    assert refused.headers["WWW-Authenticate"] == 'Basic realm="registry"'
    assert behind.ask("GET", path, token=USERS_TOKEN).status == 200


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
def test_writes_need_a_token_of_that_service(
    behind: Behind, method: str, url: str, there: bool
) -> None:
    if there:
        behind.registry.register(Registered("orders", "a", "10.0.0.5", 80))
        behind.registry.register(Registered("users", "a", "10.0.0.5", 80))
    before = behind.registry.services()
    body = document(app="ORDERS") if method == "POST" else b""
    for token, status in ((None, 401), ("wrong", 401), (USERS_TOKEN, 403)):
        reply = behind.ask(method, url.format("ORDERS"), body, token=token)
        assert reply.status == status, reply.body
    for wrong in ("Basic !!!", "Basic", "Basic " + "YTpi", "Digest x", "Bearer wrong"):
        fields = {"HTTP_AUTHORIZATION": wrong}
        reply = behind.ask(method, url.format("ORDERS"), body, token=None, **fields)
        assert reply.status == 401
    assert behind.registry.services() == before
    body = document() if method == "POST" else b""
    reply = behind.ask(method, url.format("USERS"), body, token=USERS_TOKEN)
    assert reply.status in ((200, 204) if there or method == "POST" else (404,))
    fields = {"HTTP_AUTHORIZATION": f"Bearer {TOKEN}"}
    assert behind.ask("PUT", "/eureka/apps/X/y", token=None, **fields).status == 404


def test_a_page_of_another_site_can_not_use_what_a_browser_remembers(behind: Behind) -> None:
    reply = behind.ask("DELETE", "/eureka/apps/USERS/a", HTTP_ORIGIN="https://evil.example")
    assert reply.status == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (document(app="OTHER"), "app"),
        (document(port={"$": 0, "@enabled": "true"}), "port"),
        (document(status="BROKEN"), "status"),
        (document(metadata={"a": "\x01"}), "metadata"),
        # where no instance may be: the registry's own rules hold behind every door
        (document(ipAddr="169.254.169.254"), "ipAddr"),
        (document(ipAddr="0.0.0.0"), "ipAddr"),
        (document(ipAddr="8.8.8.8"), "ipAddr"),
        (document(ipAddr="::ffff:169.254.169.254"), "ipAddr"),
        (document(ipAddr="2130706433"), "ipAddr"),
        (document(ipAddr="no-such-host.invalid"), "ipAddr"),
        ({}, "instance"),
    ],
)
def test_a_bad_registration_names_what_is_wrong(
    behind: Behind, body: dict[str, Any], field: str
) -> None:
    assert behind.ask("POST", "/eureka/apps/USERS", body).field == field
    assert behind.registry.services() == {}


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
def test_a_body_that_is_none_is_refused(
    behind: Behind, kind: str, body: bytes, status: int
) -> None:
    reply = behind.ask("POST", "/eureka/apps/USERS", body, CONTENT_TYPE=kind)
    assert reply.status == status
    assert b"/etc" not in reply.body


def test_a_compressed_body_is_refused_as_is_one_without_a_length(behind: Behind) -> None:
    url = "/eureka/apps/USERS"
    assert behind.ask("POST", url, document(), HTTP_CONTENT_ENCODING="gzip").status == 415
    assert behind.ask("POST", url, document(), CONTENT_LENGTH="").status == 411
    assert behind.ask("POST", url, document(), CONTENT_LENGTH="9" * 30).status == 413
    assert behind.ask("POST", url, document(), CONTENT_LENGTH="10000").status == 400


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
def test_what_is_not_spoken_is_refused(behind: Behind, method: str, url: str, status: int) -> None:
    register(behind, "a")
    assert behind.ask(method, url, RAW_URI=url.replace(" ", "%20")).status == status


def test_a_full_registry_says_so(behind: Behind) -> None:
    behind.registry = Registry(MemoryStore(), most_of_one=1)
    behind.eureka = EurekaApi(behind.registry, behind.access)
    register(behind, "a")
    assert behind.ask("POST", "/eureka/apps/USERS", document("b")).status == 507


def test_while_the_store_fails_it_tells_what_it_knew(behind: Behind) -> None:
    register(behind, "a")
    before = behind.ask("GET", "/eureka/apps").body
    behind.store.broken = True
    assert behind.ask("GET", "/eureka/apps").body == before
    reply = behind.ask("PUT", "/eureka/apps/USERS/a")
    assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
    assert b"disk" not in reply.body


@pytest.mark.parametrize("prefix", ["eureka", "/eureka/"])
def test_a_prefix_is_a_path(behind: Behind, prefix: str) -> None:
    with pytest.raises(ValueError, match="prefix"):
        EurekaApi(behind.registry, behind.access, prefix=prefix)


def test_one_that_changed_between_two_removals_is_replaced(behind: Behind) -> None:
    """A client that has missed all of it knows the instance as it was in the beginning."""
    register(behind, "a")
    behind.ask("DELETE", "/eureka/apps/USERS/a")
    moved = document("a", port={"$": 9999, "@enabled": "true"})
    for _ in range(2):
        assert behind.ask("POST", "/eureka/apps/USERS", moved).status == 204
        told = delta(behind)
        behind.ask("DELETE", "/eureka/apps/USERS/a")
    assert told == ("UP_1_", [("a", "MODIFIED")])
