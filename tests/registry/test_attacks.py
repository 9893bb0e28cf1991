"""Attacks on the registry over HTTP: section H of the attacks, each by its id, and tokens."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from werkzeug.test import Client, TestResponse

from wsgigate.auth.bearer import Access, Caller
from wsgigate.client.destinations import Destinations
from wsgigate.http.json_app import LARGEST
from wsgigate.http.problem import Refusal
from wsgigate.http.wsgi import REASON, BodyError
from wsgigate.registry import Registry
from wsgigate.registry.api import RegistryApi
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import FakeClock

ALL = "the-token-of-all-services"
USERS = "the-token-of-users-alone"
BOTH = "the-token-of-two-services"
ONE = {"serviceName": "users", "instanceId": "u-1", "host": "10.0.0.1", "port": 3001}


class Registered:
    """The registry's app with tokens for all, for users, and one that two services share."""

    def __init__(self, access: Access | None = None, **options: Any) -> None:
        self.store = MemoryStore(clock=FakeClock())
        self.registry = Registry(self.store, **options)
        access = access or Access(ALL, {"users": USERS, "a": BOTH, "b": BOTH})
        self.app = RegistryApi(self.registry, access)
        self.reason = ""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        try:
            return self.app(environ, start_response)
        finally:
            self.reason = environ.get(REASON, "")

    def send(
        self,
        method: str,
        path: str,
        document: object = None,
        token: str | None = ALL,
        **fields: str,
    ) -> TestResponse:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        headers |= {name.replace("_", "-"): value for name, value in fields.items()}
        options: dict[str, Any] = {}
        if isinstance(document, bytes):
            options = {"data": document}
            headers.setdefault("Content-Type", "application/json")
        elif document is not None:
            options = {"json": document}
        return Client(self).open(path, method=method, headers=headers, **options)

    def state(self) -> object:
        return self.registry.services(), self.registry.version()


@pytest.fixture
def served() -> Registered:
    return Registered()


CHANGES = [
    ("POST", "/register", ONE),
    ("POST", "/register", {**ONE, "instanceId": "u-2"}),
    ("DELETE", "/register/users/u-1", None),
    ("POST", "/heartbeat/users/u-1", None),
    ("POST", "/heartbeat/users/u-1", {"status": "DOWN"}),
    ("PUT", "/status/users/u-1", {"status": "DOWN"}),
]


@pytest.mark.parametrize(("method", "path", "document"), CHANGES)
@pytest.mark.parametrize(
    "token", [None, "", "x" * 30, ALL + "x", ALL[:-1], ALL.upper(), "é" * 20, f"{ALL}, {ALL}"]
)
def test_h08_without_a_token_nothing_changes(
    served: Registered, method: str, path: str, document: object, token: str | None
) -> None:
    served.send("POST", "/register", ONE)
    before = served.state()
    answer = served.send(method, path, document, token)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="registry"'
    assert served.reason == "the registry token is missing or wrong"
    assert served.state() == before


def test_h08_a_token_is_read_from_the_authorization_field_only(served: Registered) -> None:
    for path, fields in (
        (f"/register?token={ALL}", {}),
        (f"/register?access_token={ALL}", {}),
        ("/register", {"X-Registry-Token": ALL}),
        ("/register", {"Authorization": ALL}),
        ("/register", {"Authorization": f"Basic {ALL}"}),
        ("/register", {"Cookie": f"token={ALL}"}),
    ):
        assert served.send("POST", path, ONE, None, **fields).status_code == 401
    assert served.state() == ({}, 0)


@pytest.mark.parametrize(("method", "path", "document"), CHANGES)
def test_h09_a_service_token_changes_that_service_only(
    served: Registered, method: str, path: str, document: Any
) -> None:
    served.send("POST", "/register", ONE)
    assert served.send(method, path, document, USERS).status_code in (200, 201)
    others = Registered()
    others.send("POST", "/register", {**ONE, "serviceName": "orders"})
    before = others.state()
    if document and "serviceName" in document:
        document = {**document, "serviceName": "orders"}
    answer = others.send(method, path.replace("/users/", "/orders/"), document, USERS)
    assert answer.status_code == 403
    assert others.reason == "the token belongs to another service"
    assert others.state() == before


def test_h09_two_services_can_share_a_token(served: Registered) -> None:
    for service, status in (("a", 201), ("b", 201), ("users", 403), ("A", 403)):
        answer = served.send("POST", "/register", {**ONE, "serviceName": service}, BOTH)
        assert answer.status_code == status


def test_h09_a_service_name_of_another_type_is_rejected(served: Registered) -> None:
    for name in (["users"], {"users": 1}, 1, True, "users ", "users/../orders"):
        answer = served.send("POST", "/register", {**ONE, "serviceName": name}, USERS)
        assert answer.status_code == 403
    assert served.state() == ({}, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_i05_a_page_of_another_site_changes_nothing(fields: dict[str, str]) -> None:
    served = Registered(Access(open_writes=True))  # no token protects it
    for method, path, document in CHANGES:
        answer = served.send(method, path, document, None, **fields)
        assert answer.status_code == 403
    assert served.state() == ({}, 0)


def test_i05_a_form_cannot_register() -> None:
    served = Registered(Access(open_writes=True))
    body = json.dumps(ONE).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = served.send("POST", "/register", body, None, Content_Type=kind)
        assert answer.status_code == 415
    assert served.send("POST", "/register", ONE, None).status_code == 201


@pytest.mark.parametrize(
    "host",
    [
        *("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "0.0.0.0", "::", "224.0.0.1"),
        *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "8.8.8.8"),
        *("127.1", "0x7f.1", "2130706433", "017700000001", "[::ffff:127.0.0.1]", "fe80::1%eth0"),
        *("user:pw@host", "http://10.0.0.1", "①②⑦.0.0.1", "a\r\nX: y", "x" * 254),
        "nowhere.invalid",
    ],
)
def test_h01_to_h06_an_instance_at_a_forbidden_address_is_rejected(
    served: Registered, host: str
) -> None:
    answer = served.send("POST", "/register", {**ONE, "host": host})
    assert answer.status_code == 400
    assert answer.json
    assert answer.json["field"] == "host"
    assert served.state() == ({}, 0)


def test_h02_loopback_is_rejected_unless_it_is_allowed() -> None:
    served = Registered(destinations=Destinations(["10.0.0.0/8"]))
    for host in ("127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1"):
        answer = served.send("POST", "/register", {**ONE, "host": host})
        assert (answer.status_code, (answer.json or {}).get("field")) == (400, "host")
    assert served.send("POST", "/register", ONE).status_code == 201


def test_h04_the_registry_itself_cannot_be_an_instance() -> None:
    served = Registered(destinations=Destinations(own=[("0.0.0.0", 3004)]))
    for host in ("127.0.0.1", "localhost", "127.9.9.9", "::1"):
        answer = served.send("POST", "/register", {**ONE, "host": host, "port": 3004})
        assert (answer.status_code, (answer.json or {}).get("field")) == (400, "host")


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"port": 65536}, "port"),
        ({"port": "80 "}, "port"),
        ({"metadata": {"__proto__": {"a": 1}}}, "metadata"),
        ({"metadata": {"a": "x" * 5000}}, "metadata"),
        ({"healthCheckPath": "//evil/x"}, "healthCheckPath"),
        ({"metadata": {"healthCheckPath": "http://evil/"}}, "metadata.healthCheckPath"),
        ({"serviceName": "../x"}, "serviceName"),
        ({"serviceName": "<script>"}, "serviceName"),
        ({"instanceId": "\x1b[31m"}, "instanceId"),
        ({"weight": 10**9}, "weight"),
        ({"url": "http://evil/"}, "url"),
    ],
)
def test_h07_h14_to_h19_an_invalid_member_is_named(
    served: Registered, members: dict[str, object], field: str
) -> None:
    answer = served.send("POST", "/register", {**ONE, **members})
    assert answer.status_code == 400
    assert answer.json
    assert answer.json["field"] == field
    assert answer.json["success"] is False
    assert served.state() == ({}, 0)


BAD_BODIES = [
    (b"", 411),
    (b"[]", 400),
    (b'"text"', 400),
    (b"{", 400),
    (b"\xff", 400),
    (b'{"serviceName": "a", "serviceName": "b"}', 400),
    (b'{"port": NaN}', 400),
    (b'{"port": 1e999}', 400),
    (b'{"metadata": ' + b'{"a":' * 1500 + b"1" + b"}" * 1501, 400),
    (b'{"metadata": ' + b"[" * 7000 + b"]" * 7000 + b"}", 400),
    (b" " * (LARGEST + 1), 413),
]


@pytest.mark.parametrize(("body", "status"), BAD_BODIES, ids=map(str, range(len(BAD_BODIES))))
def test_h14_a_body_that_is_not_a_registration_is_rejected(
    served: Registered, body: bytes, status: int
) -> None:
    assert served.send("POST", "/register", body).status_code == status
    assert served.send("PUT", "/status/users/u-1", body).status_code == status


class Broken(io.RawIOBase):
    def readinto(self, buffer: Any) -> int:
        raise BodyError("the client left")


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"CONTENT_LENGTH": "1e3"}, 400),
        ({"CONTENT_LENGTH": "9" * 30}, 413),
        ({"CONTENT_LENGTH": "-1"}, 400),
        ({"CONTENT_LENGTH": "500"}, 400),
        ({"CONTENT_LENGTH": ""}, 411),
        ({"wsgi.input": Broken()}, 400),
    ],
)
def test_h14_an_incomplete_body_is_rejected(
    served: Registered, changes: dict[str, Any], status: int
) -> None:
    answer = Client(served).post(
        "/register",
        json=ONE,
        headers={"Authorization": f"Bearer {ALL}"},
        environ_overrides=changes,
    )
    assert answer.status_code == status
    assert served.state() == ({}, 0)


def test_h11_a_heartbeat_of_an_unknown_instance_is_answered_with_404(served: Registered) -> None:
    for path in ("/heartbeat/users/u-1", "/heartbeat/us%2Fers/u-1", "/heartbeat/..%2F/u-1"):
        assert served.send("POST", path).status_code in (400, 404)
    assert served.state() == ({}, 0)


def test_h13_a_flood_is_bounded() -> None:
    served = Registered(most_services=20, most_instances=50, most_of_one=10)
    answers = [
        served.send(
            "POST", "/register", {**ONE, "serviceName": f"s{n % 40}", "instanceId": f"i{n}"}
        ).status_code
        for n in range(500)
    ]
    assert answers.count(201) == 50
    assert set(answers) == {201, 507}
    full = served.send("POST", "/register", {**ONE, "serviceName": "one-more"})
    assert (full.status_code, full.headers["Retry-After"]) == (507, "30")
    assert sum(len(each) for each in served.registry.services().values()) == 50
    assert len(list(served.store.items(""))) < 50 + 20 + 10


def test_h18_no_path_reaches_another_key_of_the_store(served: Registered) -> None:
    served.send("POST", "/register", ONE)
    for path in (
        "/discover/users%2Fu-1",
        "/discover/../health",
        "/discover/%2e%2e/health",
        "/discover/users%00",
        "/discover/us ers",
        "/discover/" + "x" * 64,
        "/discover/usеrs",
        "/discover/users//",
        "/discover/users;a",
    ):
        answer = served.send("GET", path)
        assert answer.status_code in (200, 400, 404), path
        if answer.status_code == 200:
            assert answer.json
            assert answer.json["count"] == 0


def test_h25_no_response_is_interpreted_as_html(served: Registered) -> None:
    served.send("POST", "/register", {**ONE, "metadata": {"name": "<script>alert(1)</script>"}})
    answer = served.send("GET", "/discover/users")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.content_type == "application/json; charset=utf-8"


def test_reads_require_a_token_unless_they_are_open() -> None:
    served = Registered(Access(ALL, {"users": USERS}, open_reads=False))
    for path in ("/discover/users", "/instance/users", "/services", "/health"):
        for token, status in ((None, 401), ("x" * 20, 401), (ALL, 200), (USERS, 200)):
            answer = served.send("GET", path, None, token)
            assert (answer.status_code == 401) == (status == 401), path


def test_no_token_is_returned_or_logged(
    served: Registered, caplog: pytest.LogCaptureFixture
) -> None:
    access = Access(ALL, {"users": USERS})
    assert ALL not in repr(access)
    with caplog.at_level(logging.DEBUG):
        for token in (ALL, USERS, "wrong-" + ALL):
            answer = served.send("POST", "/register", {**ONE, "serviceName": "orders"}, token)
            assert token not in answer.text
            assert token not in served.reason
    assert ALL not in caplog.text
    kept = repr(list(served.store.items("")))
    assert ALL not in kept


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "x" * 1025, "with spaces in it", "é" * 20]
)
def test_a_short_token_is_rejected(token: str) -> None:
    with pytest.raises(ValueError, match="the token is 16 to 1024"):
        Access(token)
    with pytest.raises(ValueError, match="token of 'users'"):
        Access(ALL, {"users": token})


def test_an_access_without_any_token_is_rejected() -> None:
    with pytest.raises(ValueError, match="a token is required"):
        Access()
    with pytest.raises(ValueError, match="serviceName"):
        Access(ALL, {"../x": USERS})
    assert Access(open_writes=True).caller_of(b"") == Caller(everything=True)


def test_caller_of_returns_the_permissions_of_a_token() -> None:
    access = Access(ALL, {"users": USERS})
    assert access.caller_of(ALL.encode()) == Caller(everything=True)
    assert access.caller_of(USERS.encode()) == Caller(False, frozenset({"users"}))
    assert access.caller_of(b"") is None
    with pytest.raises(Refusal):
        access.check_caller(Caller(False, frozenset({"users"})), "orders")
