"""Registration documents, member by member; a rejected member is named."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgigate.rules.registry import METADATA_BYTES, MOST_BYTES, Invalid, Registered, Status, parse
from wsgigate.rules.registry_checks import RegisteredCheck

LEAST = {"serviceName": "users", "instanceId": "users-1", "host": "10.0.0.5", "port": 3001}


def nested(levels: int) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(levels - 1):
        tree = {"a": tree}
    return tree


def test_a_registration_with_the_required_members() -> None:
    entry = parse(LEAST)
    assert entry == Registered("users", "users-1", "10.0.0.5", 3001)
    assert entry.url == "http://10.0.0.5:3001"
    assert (entry.weight, entry.status, entry.tags, entry.metadata) == (1, Status.UP, (), {})


def test_a_registration_with_all_members() -> None:
    entry = parse(
        {
            **LEAST,
            "host": "FD00::5",
            "scheme": "https",
            "weight": 0,
            "status": "STARTING",
            "version": "2.1.0",
            "zone": "eu-1",
            "tags": ["blue", "canary", "blue"],
            "healthCheckPath": "/health?deep=1",
            "metadata": {"team": "a", "limits": {"cpu": 2}},
        }
    )
    assert entry.url == "https://[fd00::5]:3001"
    assert (entry.weight, entry.status) == (0, Status.STARTING)
    assert (entry.version, entry.zone, entry.tags) == ("2.1.0", "eu-1", ("blue", "canary"))
    assert entry.health_check_path == "/health?deep=1"
    assert entry.metadata == {"team": "a", "limits": {"cpu": 2}}


def test_version_zone_and_health_path_may_be_in_the_metadata() -> None:
    metadata = {"version": "1.0.0", "healthCheckPath": "/alive", "zone": "a"}
    entry = parse({**LEAST, "metadata": metadata})
    assert (entry.version, entry.health_check_path, entry.zone) == ("1.0.0", "/alive", "a")
    assert entry.metadata == metadata
    assert parse({**LEAST, "version": "2", "metadata": metadata}).version == "2"


def test_the_service_name_is_optional_if_it_is_given() -> None:
    unnamed = {name: value for name, value in LEAST.items() if name != "serviceName"}
    assert parse(unnamed, "orders").service == "orders"
    assert parse(LEAST, "users").service == "users"
    with pytest.raises(Invalid) as found:
        parse(LEAST, "orders")
    assert found.value.field == "serviceName"


@pytest.mark.parametrize("field", ["serviceName", "instanceId", "host", "port"])
@pytest.mark.parametrize("value", [None, "", 0, ...])
def test_a_missing_member_has_the_message_of_the_lesson(field: str, value: object) -> None:
    document: dict[str, Any] = {**LEAST, field: value}
    if value is ...:
        del document[field]
    with pytest.raises(Invalid) as found:
        parse(document)
    assert found.value.field == field
    assert found.value.why == "serviceName, instanceId, host, and port are required!"


WRONG: list[tuple[str, object]] = [
    *(  # H18
        ("serviceName", name)
        for name in (
            *("../x", "a/b", "%2e", "usеrs", "x" * 64, "a b", "a\n", ".a", "-a", "_a", "a:b"),
            *(["users"], 7, {"a": 1}, "\x1b[31m", "<b>"),
        )
    ),
    *(("instanceId", name) for name in ("a/b", "x" * 129, "a b", "é", "a\r\nb", ".a", ["a"], 1)),
    *(  # H02, H05, H06
        ("host", host)
        for host in (
            *("127.1", "0x7f.1", "2130706433", "017700000001", "0177.0.0.1", "1.2.3.4.5", "1.2.3"),
            *("http://10.0.0.5", "unix:///run/x", "user@10.0.0.5", "user:pw@host", "10.0.0.5:80"),
            *("a/b", "a?b", "a#b", "a\\b", "a\r\nb", "a\x00", "a b", " a", "①②⑦.0.0.1", "[::1]"),
            *("fe80::1%eth0", "x" * 64 + ".example", "a." * 127 + "b", "-a.example", "a..b", "."),
            *("a.0x", "a.0x7f", "10.0.0.5.", ["10.0.0.5"], 167772165, "::ffff:1.2.3.4%1"),
        )
    ),
    *(("port", port) for port in (65536, -1, "80", "80 ", 80.0, True, [80], 1e9)),  # H07
    *(("scheme", scheme) for scheme in ("ftp", "HTTP", "http://", 1, "")),
    *(  # H19
        ("weight", weight) for weight in (-1, 10**9, 65536, float("nan"), "5", True, 1.5)
    ),
    *(("status", status) for status in ("up", "OUT_OF_SERVICE", "", 1, ["UP"], {"a": 1})),
    *(("version", text) for text in ("", " 1", "1 ", "x" * 65, "1\n", 1.0, "é")),
    ("zone", "\x1b[0m"),
    *(("tags", tags) for tags in ("blue", [1], [""], ["a"] * 257, {"a": 1}, [["a"]], ["a\n"])),
    *(("tags", tags) for tags in (["a" * 4097], ["\x1b[0m"], ["\ud800"], ["é" * 3000] * 2)),
    *(  # H15
        ("healthCheckPath", path)
        for path in (
            *("http://evil/", "//evil/x", "/../admin", "/%2e%2e/admin", "/a\r\nb", "health", ""),
            *("/a\\b", "/" + "x" * 256, "/a b", 1, ["/health"]),
        )
    ),
    *(  # H14
        ("metadata", metadata)
        for metadata in (
            *("text", ["a"], 1, True, nested(5), {"a": [[[["deep"]]]]}, {"a": float("inf")}),
            *({"__proto__": 1}, {"a": {"__class__": 1}}, {"": 1}, {"a\n": 1}, {"x" * 129: 1}),
            *({"a": "\x1b[31m"}, {"a": ["\x00"]}, {"a": "x" * METADATA_BYTES}, {1: 2}, {"a": b"b"}),
            *(dict.fromkeys(map(str, range(65)), 1), nested(1000)),
        )
    ),
    ("surprise", 1),
    ("x" * 100, 1),
]


@pytest.mark.parametrize(
    ("field", "value"), WRONG, ids=[f"{f[:16]}-{n}" for n, (f, _) in enumerate(WRONG)]
)
def test_a_member_beyond_its_limits_is_rejected_by_name(field: str, value: object) -> None:
    with pytest.raises(Invalid) as found:
        parse({**LEAST, field: value})
    assert found.value.field == field[:64]
    assert len(str(found.value)) < 200


@pytest.mark.parametrize("name", ["healthCheckPath", "version"])
def test_a_member_in_the_metadata_is_checked(name: str) -> None:
    with pytest.raises(Invalid) as found:
        parse({**LEAST, "metadata": {name: "//evil/" + "x" * 60}})
    assert found.value.field == f"metadata.{name}"


@pytest.mark.parametrize(
    ("host", "kept"),
    [
        ("Users.Internal.", "users.internal"),
        ("user_service", "user_service"),
        ("localhost", "localhost"),
        ("a1", "a1"),
        ("::ffff:10.0.0.5", "10.0.0.5"),
        ("0:0:0:0:0:0:0:1", "::1"),
        ("x" * 63 + ".example", "x" * 63 + ".example"),
    ],
)
def test_a_host_is_stored_in_canonical_form(host: str, kept: str) -> None:
    assert parse({**LEAST, "host": host}).host == kept


def test_the_largest_entry_fits_into_a_store() -> None:
    entry = parse(
        {
            **LEAST,
            "serviceName": "s" * 63,
            "instanceId": "i" * 128,
            "host": ".".join(["h" * 61] * 4),
            "port": 65535,
            "weight": 65535,
            "version": "v" * 64,
            "zone": "z" * 64,
            "tags": [f"{n:060}" for n in range(255)],
            "healthCheckPath": "/" + "h" * 255,
            "metadata": {"a": "x" * (METADATA_BYTES - 8)},
        }
    ).heard(1e9)
    raw = replace(entry, lease=3600.123456789).to_bytes()
    assert len(raw) <= MOST_BYTES
    assert Registered.from_bytes(raw) == replace(entry, lease=3600.123456789)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_not_an_entry(raw: bytes) -> None:
    assert Registered.from_bytes(raw) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    st.sampled_from([*LEAST, "weight", "status", "tags", "metadata", "healthCheckPath", "zone"]),
)
def test_any_json_is_an_entry_or_rejected_by_name(value: Any, field: str) -> None:
    try:
        entry = parse({**LEAST, field: value})
    except Invalid as error:
        json.dumps([error.field, error.why])
    else:
        assert Registered.from_bytes(entry.to_bytes()) == entry


def test_a_heartbeat_changes_the_times_only() -> None:
    given = Registered(
        *("users", "users-1", "10.0.0.5", 3001, "https", 7, Status.DRAINING, "2.1", "eu-1"),
        *(("blue",), {"team": "a"}, "/alive", 60.0, 5.0, 6.0, 7.0),
        checks=(RegisteredCheck("alive", "Alive", "http://10.0.0.5:3001", "/up", 10.0),),
    )
    entry = Registered.from_bytes(given.to_bytes())
    assert entry is not None
    heard = entry.heard(8.0, 9.0)
    for each in fields(Registered):
        assert getattr(given, each.name) != each.default or not each.init  # else it tells nothing
        expected = {"last_heartbeat": 8.0, "silent_since": 9.0}
        assert getattr(heard, each.name) == expected.get(each.name, getattr(entry, each.name))
    assert entry.heard(8.0).silent_since == 8.0


def test_only_a_read_entry_has_its_written_bytes() -> None:
    entry = Registered.from_bytes(Registered("users", "users-1", "10.0.0.5", 3001).to_bytes())
    assert entry is not None
    assert entry.written == entry.heard(8.0).written == entry.body()
    assert replace(entry, weight=2).written == parse(LEAST).written == b""


@pytest.mark.parametrize(("more", "read"), [(0, True), (1, False)])
def test_an_entry_that_is_too_long_is_not_an_entry(more: int, read: bool) -> None:
    entry = Registered("users", "users-1", "10.0.0.5", 3001, metadata={"a": ""})
    padding = MOST_BYTES - len(entry.to_bytes()) + more
    raw = replace(entry, metadata={"a": "x" * padding}).to_bytes()
    assert len(raw) == MOST_BYTES + more
    if read:
        assert Registered.from_bytes(raw).metadata == {"a": "x" * padding}
    else:
        assert Registered.from_bytes(raw) is None
