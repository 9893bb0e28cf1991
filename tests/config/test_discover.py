"""Service discovery: sources in the file, and requests to the instances that they find."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from werkzeug.test import Client

from tests.config.files import errors_of
from tests.discovery.name_server import NameServer
from tests.support.certificates import make_certificate
from wsgigate.client.destinations import Destinations
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.discovery import Instance
from wsgigate.gateway import Gateway
from wsgigate.registry import Registry
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.rules.registry import Registered
from wsgigate.testing.backend import Backend

NEVER = threading.Event()


Make = Callable[..., Gateway]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Yield a function that builds a gateway with one service; closes all gateways at the end."""
    made: list[Gateway] = []

    def make(service: str, rest: str = "") -> Gateway:
        text = (
            "[store]\nurl = 'memory:'\n[admin]\n[[routes]]\npath = '/'\nservice = 'users'\n"
            f"[services.users]\n{service}\n{rest}"
        )
        made.append(build(parse(text, environ={}), path=str(tmp_path / "gateway.toml")))
        return made[-1]

    yield make
    for gateway in made:
        gateway.close()


def test_the_first_request_finds_its_instance(backend: Backend, make: Make, tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text(json.dumps([backend.url]))
    client = Client(make("discover = 'file:users.json'"))
    assert client.get("/").text == "ok"
    for path in ("services", "discover/users"):
        told = client.get(f"/_gateway/{path}").json
        assert told is not None
        service = told["services"][0] if path == "services" else told["service"]
        assert service["url"] == backend.url
        assert service["discovery"]["source"] == "file:users.json"
        assert service["discovery"]["instances"] == 1
        assert 0 <= service["discovery"]["age"] < 60
    health = client.get("/_gateway/health").json
    assert health is not None
    assert health["discovery"]["users"]["instances"] == 1


def test_requests_wait_for_the_first_answer_of_a_source(
    backend: Backend, make: Make, tmp_path: Path
) -> None:
    """The request that starts the threads of the gateway is not the only one that waits."""
    gateway = make("discover = 'file:users.json'")
    assert gateway.watcher is not None
    started, go_on = threading.Event(), threading.Event()
    start = gateway.watcher.start

    def slowly() -> None:
        started.set()
        go_on.wait(30)
        start()

    gateway.watcher.start = slowly  # type: ignore[method-assign, assignment]
    (tmp_path / "users.json").write_text(json.dumps([backend.url]))
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(Client(gateway).get("/").status_code))
        for _ in range(3)
    ]
    threads[0].start()
    started.wait(30)
    for thread in threads[1:]:
        thread.start()
    threads[1].join(0.05)
    assert answers == []
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert answers == [200, 200, 200]


def test_a_source_that_does_not_answer_causes_a_503_and_is_reported(make: Make) -> None:
    client = Client(make("discover = 'file:nowhere.json'"))
    response = client.get("/")
    assert response.status_code == 503
    assert "Retry-After" in response.headers
    health = client.get("/_gateway/health").json
    assert health is not None
    assert health["discovery"]["users"] == {
        "source": "file:nowhere.json",
        "instances": 0,
        "age": None,
        "error": "the file cannot be read: No such file or directory",
    }


def test_no_sources_are_reported_without_discovery(make: Make, backend: Backend) -> None:
    gateway = make(f"instances = ['{backend.url}']")
    assert gateway.watcher is None
    client = Client(gateway)
    health, services = client.get("/_gateway/health").json, client.get("/_gateway/services").json
    assert health is not None
    assert services is not None
    assert "discovery" not in health
    assert "discovery" not in services["services"][0]


def test_the_address_of_a_name_is_checked_when_connecting(
    make: Make, backend: Backend, tmp_path: Path
) -> None:
    """The address of a name in the list is not known until it is connected to."""
    (tmp_path / "users.json").write_text(json.dumps([f"http://localhost:{backend.port}"]))
    allowed = "allowed_networks = ['10.0.0.0/8']"
    refused = Client(make(f"discover = {{ use = 'file:users.json', {allowed} }}")).get("/")
    assert refused.status_code == 503
    assert backend.connections == 0
    assert Client(make("discover = 'file:users.json'")).get("/").text == "ok"


def test_the_gateway_is_never_its_own_instance(make: Make, tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text('["http://127.0.0.1:3999", "http://127.0.0.1:3998"]')
    gateway = make("discover = 'file:users.json'", "[gateway]\nbind = '127.0.0.1:3999'")
    gateway.start()
    assert [one.url for one in gateway.pools["users"].instances] == ["http://127.0.0.1:3998"]


def test_allowed_networks_do_not_apply_to_instances_of_the_file(make: Make) -> None:
    gateway = make("instances = ['http://169.254.169.254']")
    assert [one.url for one in gateway.pools["users"].instances] == ["http://169.254.169.254"]


def test_an_instance_registered_at_the_gateways_own_registry_is_found(
    make: Make, backend: Backend
) -> None:
    gateway = make("discover = 'registry'", "[registry]\nopen = true")
    assert gateway.registry is not None
    gateway.registry.register(Registered("users", "users-1", "127.0.0.1", backend.port))
    gateway.registry.register(Registered("others", "others-1", "127.0.0.1", 1))
    assert Client(gateway).get("/").text == "ok"


def moved(gateway: Gateway, port: int, at: str, **more: Any) -> None:
    """Register the name localhost at a registry whose lookups resolve it to *at*."""
    assert gateway.registry is not None

    def lookup(*asked: Any, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, port))]

    before = Registry(
        gateway.store,
        destinations=Destinations(["127.0.0.0/8", "10.0.0.0/8"], lookup=lookup),
        prefix="registry/wsgigate/",
    )
    before.register(Registered("users", "users-1", "localhost", port, **more))


@pytest.mark.parametrize(
    ("registry", "discover", "status"),
    [
        (["127.0.0.2"], None, 503),
        (["10.0.0.0/8"], None, 503),
        (["127.0.0.0/8", "::1"], None, 200),
        (["127.0.0.0/8", "::1"], ["10.0.0.0/8"], 503),
        (["10.0.0.0/8"], ["127.0.0.0/8", "::1"], 503),
        (["127.0.0.0/8", "::1", "10.0.0.0/8"], ["127.0.0.0/8", "::1"], 200),
    ],
)
def test_the_registrys_allowed_networks_apply_after_a_name_changes_its_address(
    make: Make, backend: Backend, registry: list[str], discover: list[str] | None, status: int
) -> None:
    narrowed = "" if discover is None else f", allowed_networks = {discover}"
    gateway = make(
        f"discover = {{ use = 'registry'{narrowed} }}\n"
        "health = { path = '/health', interval = '1h' }",
        f"[registry]\nopen = true\nallowed_networks = {registry}",
    )
    moved(gateway, backend.port, "127.0.0.2" if "127.0.0.2" in registry else "10.0.0.5")
    assert Client(gateway).get("/").status_code == status
    outcome = checked(gateway, f"http://localhost:{backend.port}")
    assert outcome.ok is (status == 200)
    if status != 200:
        assert outcome.error == "Address not allowed"
        assert backend.connections == 0


def test_an_instance_in_a_registrys_public_network_is_reachable(
    make: Make, backend: Backend
) -> None:
    """The allowed networks of the registry apply alone, even if wider than the default."""
    gateway = make(
        "discover = 'registry'", "[registry]\nopen = true\nallowed_networks = ['203.0.113.0/24']"
    )
    assert gateway.registry is not None
    gateway.registry.register(Registered("users", "users-1", "203.0.113.5", backend.port))
    gateway.start()
    assert [one.url for one in gateway.pools["users"].instances] == [
        f"http://203.0.113.5:{backend.port}"
    ]


def checked(gateway: Gateway, url: str, host: str = "") -> CheckResult:
    """Return the outcome of a health check of the service's instance."""
    assert gateway.health is not None
    found: SimpleQueue[CheckResult | Exception] = SimpleQueue()
    instance = Instance(url, host=host)
    check = HealthCheck("/health", timeout=5)
    gateway.health.prober.probe("users", instance, check, found.put)
    outcome = found.get(timeout=30)
    assert isinstance(outcome, CheckResult)
    return outcome


def host_of(backend: Backend) -> str:
    """Return the Host of the last request, with its port replaced by PORT."""
    return dict(backend.requests[-1].fields)["Host"].replace(str(backend.port), "PORT")


@pytest.mark.parametrize(
    ("more", "client", "host"),
    [
        ("", "shop.example", "users.test:PORT"),
        ("host = 'virtual.example'", "shop.example", "virtual.example"),
        ("host = 'virtual.example:81'", "shop.example", "virtual.example:81"),
        ("preserve_host = true", "shop.example", "shop.example"),
        ("preserve_host = true\nhost = 'virtual.example'", "shop.example", "shop.example"),
    ],
)
def test_an_instance_found_by_dns_gets_the_looked_up_host(
    more: str, client: str, host: str, make: Make, backend: Backend
) -> None:
    with NameServer("users 60 IN A 127.0.0.1\n") as server:
        discover = f"'dns:users.test:{backend.port}', nameservers = ['{server.address}']"
        gateway = make(f"discover = {{ use = {discover} }}\n{more}")
        assert Client(gateway).get("/", headers={"Host": client}).status_code == 200
        assert host_of(backend) == host


def test_redirects_to_the_looked_up_host_are_rewritten(make: Make) -> None:
    def answer(connection: socket.socket, request: Any) -> None:
        there = f"http://{dict(request.fields)['Host']}/items/".encode()
        connection.sendall(
            b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + there + b"\r\n\r\n"
        )

    with Backend(answer) as backend, NameServer("users 60 IN A 127.0.0.1\n") as server:
        discover = f"'dns:users.test:{backend.port}', nameservers = ['{server.address}']"
        for more in ("", "host = 'virtual.example'"):
            client = Client(make(f"discover = {{ use = {discover} }}\n{more}"))
            assert client.get("/items").headers["Location"] == "/items/"


@pytest.mark.parametrize("source", ["instances", "file", "registry"])
def test_a_service_gets_the_host_of_the_file(
    source: str, make: Make, backend: Backend, tmp_path: Path
) -> None:
    (tmp_path / "users.json").write_text(json.dumps([backend.url]))
    where = {
        "instances": f"instances = ['{backend.url}']",
        "file": "discover = 'file:users.json'",
        "registry": "discover = 'registry'",
    }[source]
    gateway = make(f"{where}\nhost = 'virtual.example'", "[registry]\nopen = true")
    assert gateway.registry is not None
    gateway.registry.register(Registered("users", "users-1", "127.0.0.1", backend.port))
    assert Client(gateway).get("/").text == "ok"
    assert host_of(backend) == "virtual.example"


@pytest.mark.parametrize("host", ["http://a", "a/b", "a b", "a:99999"])
def test_an_invalid_host_is_reported_at_its_key(host: str) -> None:
    errors = errors_of(f"[services.a]\ninstances = ['http://a']\nhost = '{host}'")
    assert "host must be a name such as" in dict(errors)["services.a.host"]


def test_the_host_of_the_file_is_the_tls_server_name_of_an_ip_address(
    make: Make, tmp_path: Path
) -> None:
    certificate = make_certificate(tmp_path, "virtual.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda sock, name, _: asked.append(name)
    with Backend(tls=lambda sock: context.wrap_socket(sock, True)) as backend:
        service = (
            f"instances = ['https://127.0.0.1:{backend.port}']\nhost = 'virtual.test'\n"
            "tls = { ca = 'both.pem' }\nhealth = { path = '/', interval = '1h' }"
        )
        gateway = make(service)
        assert Client(gateway).get("/").status_code == 200
        assert host_of(backend) == "virtual.test"
        assert checked(gateway, backend.url, "virtual.test").ok
        assert set(asked) == {"virtual.test"}


def test_certificates_are_verified_for_the_looked_up_name(make: Make, tmp_path: Path) -> None:
    """Certificates rarely contain addresses, so they are verified for the looked-up name."""
    certificate = make_certificate(tmp_path, "users.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    records = "users 60 IN A 127.0.0.1\nother 60 IN A 127.0.0.1\n"
    with (
        Backend(tls=lambda sock: context.wrap_socket(sock, True)) as backend,
        NameServer(records) as server,
    ):

        def ask(name: str, tls: str = "") -> int:
            service = (
                f"discover = {{ use = 'dns:{name}:{backend.port}', scheme = 'https',"
                f" nameservers = ['{server.address}'] }}\n"
                f"tls = {{ ca = 'both.pem'{tls} }}"
            )
            return Client(make(service)).get("/").status_code

        assert ask("users.test") == 200
        assert ask("other.test") == 502
        assert ask("other.test", ", server_name = 'users.test'") == 200
