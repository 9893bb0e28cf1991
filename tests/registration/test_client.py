"""The requests of a registration, and what it reads from the responses."""

from __future__ import annotations

import json

import pytest

from tests.support.ports import refused_port
from wsgigate.registration.client import RegistryClient
from wsgigate.registration.entry import Entry, check_registry, own_address
from wsgigate.rules.registration import RegistryResponse, Step, Wanted
from wsgigate.testing.backend import Backend, Received, cut, reply

TOKEN = "registry-token-of-the-tests"
ENTRY = Entry(service="users", port=3001, host="10.0.0.5")


def send(
    backend: Backend, step: Step, wanted: Wanted = Wanted.UP, entry: Entry = ENTRY
) -> tuple[RegistryResponse, Received]:
    answer = RegistryClient([backend.url], entry, TOKEN).send(step, wanted, 0)
    backend.wait(lambda: backend.requests[-1].complete)
    return answer, backend.requests[-1]


@pytest.mark.parametrize(
    ("step", "wanted", "line", "document"),
    [
        (Step.HEARTBEAT, Wanted.UP, "POST /heartbeat/users/10.0.0.5-3001 HTTP/1.1", None),
        (
            Step.UPDATE,
            Wanted.DRAINING,
            "PUT /status/users/10.0.0.5-3001 HTTP/1.1",
            {"status": "DRAINING"},
        ),
        (Step.DEREGISTER, Wanted.GONE, "DELETE /register/users/10.0.0.5-3001 HTTP/1.1", None),
        (
            Step.REGISTER,
            Wanted.STARTING,
            "POST /register HTTP/1.1",
            {
                "serviceName": "users",
                "instanceId": "10.0.0.5-3001",
                "host": "10.0.0.5",
                "port": 3001,
                "scheme": "http",
                "weight": 1,
                "status": "STARTING",
            },
        ),
    ],
)
def test_each_step_sends_its_request(
    backend: Backend, step: Step, wanted: Wanted, line: str, document: object
) -> None:
    answer, request = send(backend, step, wanted)
    assert answer.status == 200
    assert request.line == line
    assert (json.loads(request.body) if request.body else None) == document
    assert request.value("Authorization") == f"Bearer {TOKEN}"
    assert request.value("Host") == f"127.0.0.1:{backend.port}"


def test_a_registration_has_all_members_of_the_entry(backend: Backend) -> None:
    entry = Entry(
        service="users",
        port=443,
        host="users.internal",
        instance_id="users:1@a",
        scheme="https",
        weight=3,
        version="1.2.3",
        zone="a",
        tags=("blue", "new"),
        metadata={"team": "shop", "slots": [1, 2]},
        health_check_path="/health",
    )
    _, request = send(backend, Step.REGISTER, Wanted.UP, entry)
    assert json.loads(request.body) == {
        "serviceName": "users",
        "instanceId": "users:1@a",
        "host": "users.internal",
        "port": 443,
        "scheme": "https",
        "weight": 3,
        "status": "UP",
        "version": "1.2.3",
        "zone": "a",
        "tags": ["blue", "new"],
        "metadata": {"team": "shop", "slots": [1, 2]},
        "healthCheckPath": "/health",
    }
    _, request = send(backend, Step.HEARTBEAT, Wanted.UP, entry)
    assert request.target == "/heartbeat/users/users:1@a"


def test_the_path_of_the_registrys_url_precedes_the_target(backend: Backend) -> None:
    RegistryClient([f"{backend.url}/registry"], ENTRY).send(Step.HEARTBEAT, Wanted.UP, 0)
    assert backend.requests[-1].target == "/registry/heartbeat/users/10.0.0.5-3001"
    assert backend.requests[-1].values("Authorization") == []


def test_the_default_host_is_the_address_from_which_the_registry_is_reached(
    backend: Backend,
) -> None:
    _, request = send(backend, Step.REGISTER, entry=Entry(service="users", port=3001))
    document = json.loads(request.body)
    assert (document["host"], document["instanceId"]) == ("127.0.0.1", "127.0.0.1-3001")


def test_an_id_is_made_from_an_ipv4_or_ipv6_address() -> None:
    entry = Entry(service="users", port=3001)
    assert entry.id_at("2001:db8::5") == "2001-db8-5-3001"
    assert entry.id_at("::1") == "1-3001"
    assert own_address("http://127.0.0.1:3004") == "127.0.0.1"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (
            reply(b'{"instance": {"heartbeatInterval": 4}}', status="201 Created"),
            RegistryResponse(201, 4.0),
        ),
        (reply(b'{"instance": {"heartbeatInterval": 2.5}}'), RegistryResponse(200, 2.5)),
        (reply(b'{"instance": {"heartbeatInterval": "4"}}'), RegistryResponse(200)),
        (reply(b'{"instance": {"heartbeatInterval": true}}'), RegistryResponse(200)),
        (reply(b"[" * 60_000), RegistryResponse(200)),
        (reply(b"[]"), RegistryResponse(200)),
        (reply(b'{"instance": 4}'), RegistryResponse(200)),
        (reply(b"\xff"), RegistryResponse(200)),
        (reply(status="404 Not Found"), RegistryResponse(404, why="status 404")),
        (
            reply(b'{"field": "port", "detail": "1 to 65535"}', status="400 Bad Request"),
            RegistryResponse(400, why="status 400: port: 1 to 65535"),
        ),
        (
            reply(status="503 Busy", fields=[("Retry-After", "7")]),
            RegistryResponse(503, retry_after=7.0, why="status 503"),
        ),
        (
            reply(status="302 Found", fields=[("Location", "http://127.0.0.1:1/")]),
            RegistryResponse(302, why="status 302"),
        ),
        (cut(b""), RegistryResponse(None, why="the connection was closed")),
        (
            cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"),
            RegistryResponse(None, why="its answer is not valid HTTP"),
        ),
    ],
)
def test_a_response_is_read(sent: bytes, answer: RegistryResponse) -> None:
    with Backend(sent) as backend:
        assert send(backend, Step.HEARTBEAT)[0] == answer


def test_a_token_repeated_in_a_response_is_not_logged() -> None:
    words = f"the token {TOKEN}\n\x1b[31mis wrong" + "!" * 1000
    body = json.dumps({"detail": words}).encode()
    with Backend(reply(body, status="401 Unauthorized")) as backend:
        why = send(backend, Step.HEARTBEAT)[0].why
    assert TOKEN not in why
    assert why.startswith("status 401: the token ... [31mis wrong!!")
    assert len(why) == 200


def test_a_refused_connection_is_a_response_without_a_status() -> None:
    with refused_port() as port:
        client = RegistryClient([f"http://127.0.0.1:{port}"], ENTRY, TOKEN)
        assert client.send(Step.REGISTER, Wanted.UP, 0) == RegistryResponse(
            None, why="the connection was refused"
        )


def test_an_unknown_host_name_is_a_response_without_a_status() -> None:
    client = RegistryClient(["http://no.such.host.invalid"], Entry(service="users", port=3001))
    assert client.send(Step.REGISTER, Wanted.UP, 0).status is None
    assert client.name == "users"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://registry", "http://HOST:PORT"),
        ("registry:3004", "http://HOST:PORT"),
        ("http://", "http://HOST:PORT"),
        ("http://user:secret@registry", "must not carry credentials"),
        ("http://registry:99999", "valid host and port"),
        ("http://[registry", "valid host and port"),
        ("http://registry:0", "http://HOST:PORT"),
        ("http://registry/?a=b", "must end with its path"),
        ("http://registry/a b", "must end with its path"),
        ("http://registry/\r\nX: y", "must end with its path"),
    ],
)
def test_an_invalid_registry_url_is_an_error(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as raised:
        check_registry(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"service": ""}, "serviceName"),
        ({"port": 0}, "port"),
        ({"port": "3001"}, "port"),
        ({"host": ""}, "host"),
        ({"host": "a b"}, "host"),
        ({"instance_id": "a/b"}, "instanceId"),
        ({"scheme": "ftp"}, "scheme"),
        ({"weight": -1}, "weight"),
        ({"version": ""}, "version"),
        ({"tags": ("",)}, "tags"),
        ({"metadata": {"a": object()}}, "metadata"),
        ({"health_check_path": "health"}, "healthCheckPath"),
    ],
)
def test_an_invalid_entry_is_an_error_that_names_the_member(wrong: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Entry(**{"service": "users", "port": 3001, **wrong})
