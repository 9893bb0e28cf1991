"""Services: the requests that their instances receive, on real sockets."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from werkzeug.test import Client

from tests.config.files import errors_of
from tests.support.certificates import make_certificate
from wsgigate.auth.jwt import mint
from wsgigate.config.build import build
from wsgigate.config.load import parse
from wsgigate.gateway import Gateway
from wsgigate.testing.backend import Backend, Received, reply

SECRET = "a-secret-of-at-least-thirty-two-bytes"
AUTHENTICATOR = f'{{ use = "authenticator", algorithms = ["HS256"], secret = "{SECRET}" }}'

Make = Callable[[str], Client]


@pytest.fixture
def make(backend: Backend) -> Iterator[Make]:
    """Yield a function that returns a client of a gateway with one route to the backend."""
    made: list[Gateway] = []

    def make(rest: str) -> Client:
        text = f"""
            [gateway]
            via = "here"
            identity = {{ X-User-Id = "sub" }}
            [store]
            url = "memory:"
            [services.orders]
            instances = ["{backend.url}"]
            [[routes]]
            service = "orders"
            {rest}
        """
        made.append(build(parse(text, environ={})))
        return Client(made[-1])

    yield make
    for gateway in made:
        gateway.close()


@pytest.mark.parametrize(
    ("rest", "asked", "arrives"),
    [
        ('path = "/api"', "/api/a?x=1", "/api/a?x=1"),
        ('path = "/api"\nstrip_prefix = true', "/api/a?x=1", "/a?x=1"),
        ('path = "/api"\nstrip_prefix = true', "/api", "/"),
        ('path = "/api/orders"\nstrip_prefix = "/api"', "/api/orders/7", "/orders/7"),
        ('path = "/api"\nstrip_prefix = true\nadd_prefix = "/v1"', "/api/a", "/v1/a"),
        ('path = "/t/{tenant}"\nstrip_prefix = true', "/t/acme/a", "/a"),
        ('paths = ["/a", "/b"]\nstrip_prefix = true', "/b/c", "/c"),
        ('path = "/"\nencoded_slash = "keep"', "/a%2fb", "/a%2Fb"),
    ],
)
def test_the_route_rewrites_the_path(
    backend: Backend, make: Make, rest: str, asked: str, arrives: str
) -> None:
    response = make(rest).get(asked)
    assert response.status_code == 200
    assert backend.requests[0].line == f"GET {arrives} HTTP/1.1"


def test_the_route_changes_header_fields(backend: Backend, make: Make) -> None:
    backend.answers = [reply(fields=[("X-Powered-By", "magic"), ("X-Kept", "1")])]
    response = make(
        'path = "/"\n'
        'request_fields = { set = { X-From = "gateway" }, remove = ["X-Less"] }\n'
        'response_fields = { add = { X-More = "2" }, remove = ["X-Powered-By"] }'
    ).get("/", headers={"X-Less": "1", "X-From": "client"})
    request = backend.requests[0]
    assert request.values("X-From") == ["gateway"]
    assert request.value("X-Less") is None
    assert request.value("Via") == "1.1 here"
    assert response.headers["X-More"] == "2"
    assert response.headers["X-Kept"] == "1"
    assert "X-Powered-By" not in response.headers


@pytest.mark.parametrize(
    ("rest", "arrives"), [("", None), ("forward_authorization = true", "Bearer ")]
)
def test_the_service_gets_the_identity_of_the_caller(
    backend: Backend, make: Make, rest: str, arrives: str | None
) -> None:
    client = make(f'path = "/"\nmiddleware = [{AUTHENTICATOR}]\n{rest}')
    token = mint(SECRET, "HS256", "7")
    client.get("/", headers={"Authorization": f"Bearer {token}", "X-User-Id": "admin"})
    request = backend.requests[0]
    assert request.values("X-User-Id") == ["7"]
    assert request.value("Authorization") == (arrives and arrives + token)


@pytest.mark.parametrize("preserved", [True, False])
def test_the_clients_host_is_forwarded_with_preserve_host(
    backend: Backend, make: Make, preserved: bool
) -> None:
    client = make(f'path = "/"\npreserve_host = {"true" if preserved else "false"}')
    client.get("/", headers={"Host": "shop.example"})
    assert (backend.requests[0].value("Host") == "shop.example") is preserved


def test_requests_and_health_checks_use_the_tls_settings_of_the_service(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(make_certificate(tmp_path))
    with Backend(reply(b"ok"), tls=lambda sock: context.wrap_socket(sock, True)) as backend:
        services = "".join(
            f"""
            [services.{name}]
            instances = ["{backend.url}"]
            health = {{ path = "/health", interval = "1h" }}
            {tls}
            [[routes]]
            path = "/{name}"
            service = "{name}"
            """
            for name, tls in [
                ("stranger", ""),
                ("known", 'tls = { ca = "both.pem" }'),
                ("careless", "tls = { verify = false }"),
            ]
        )
        text = f'[store]\nurl = "memory:"\n[admin]\nprefix = ""\n{services}'
        gateway = build(parse(text, environ={}), path=str(tmp_path / "gateway.toml"))
        client = Client(gateway)
        try:
            statuses = {
                name: client.get(f"/{name}").status_code
                for name in ("stranger", "known", "careless")
            }
            assert statuses == {"stranger": 502, "known": 200, "careless": 200}
            asked = {"/health", "/known", "/careless"}
            backend.wait(lambda: len(backend.requests) >= 4)
            assert {request.target for request in backend.requests} == asked
        finally:
            gateway.close()


@pytest.mark.parametrize(
    ("balance", "path", "said"),
    [
        ("balance = 'best'", "services.a.balance", "two-choices"),
        ("balance = 'sticky'", "services.a.balance", "two-choices"),
        (
            "balance = { use = 'random', key = 'address' }",
            "services.a.balance.key",
            "requires use = ",
        ),
        ("sticky = {}", "services.a.sticky.secret", "is required"),
        ("sticky = { secret = 'short' }", "services.a.sticky.secret", "at least 16 bytes"),
        (f"sticky = {{ secret = '{SECRET}', cookie = 'a b' }}", "services.a.sticky.cookie", "name"),
        (f"sticky = {{ secret = '{SECRET}', path = 'a' }}", "services.a.sticky.path", "path"),
        (
            f"sticky = {{ secret = '{SECRET}', cookie = '__Host-a', path = '/a' }}",
            "services.a.sticky.path",
            "__Host-",
        ),
        (
            f"sticky = {{ secret = '{SECRET}', max_age = '10ms' }}",
            "services.a.sticky.max_age",
            "1 second",
        ),
        ("hedge = { after = 'p100' }", "services.a.hedge.after", "p95"),
        ("hedge = { after = '2m' }", "services.a.hedge.after", "a minute"),
        ("hedge = { after = true }", "services.a.hedge.after", "duration"),
        ("hedge = { most = 9 }", "services.a.hedge.most", "from 1 to 5"),
        (
            f"hedge = {{}}\nsticky = {{ secret = '{SECRET}' }}",
            "services.a.hedge",
            "cannot be combined with sticky",
        ),
        ("max_in_flight = -1", "services.a.max_in_flight", "at least 0"),
        ("instance_max_in_flight = 0", "services.a.instance_max_in_flight", "at least 1"),
        (
            "balance = { use = 'consistent-hash', key = 'colour' }",
            "services.a.balance.key",
            "key is one of",
        ),
    ],
)
def test_an_invalid_balance_is_reported_at_its_key(balance: str, path: str, said: str) -> None:
    assert said in dict(errors_of(f"[services.a]\ninstances = ['http://a']\n{balance}"))[path]


def test_consistent_hash_sends_requests_with_one_key_to_one_instance() -> None:
    with Backend() as one, Backend() as other:
        for balance in (
            '"round-robin"',
            '{ use = "consistent-hash", key = "header:X-Tenant" }',
        ):
            one.requests.clear()
            other.requests.clear()
            text = f"""
                [store]
                url = "memory:"
                [services.a]
                instances = ["{one.url}", "{other.url}"]
                balance = {balance}
                [[routes]]
                path = "/"
                service = "a"
            """
            gateway = build(parse(text, environ={}))
            for _ in range(6):
                Client(gateway).get("/", headers={"X-Tenant": "acme"})
            gateway.close()
            counts = {len(one.requests), len(other.requests)}
            assert counts == ({3} if "robin" in balance else {0, 6})


def test_an_invalid_tier_is_reported_at_its_key() -> None:
    text = "[services.a]\ninstances = [{ url = 'http://a', tier = 16 }]"
    assert "from 0 to 15" in dict(errors_of(text))["services.a.instances[0].tier"]


def test_sticky_clients_stay_on_their_instance_and_services_do_not_get_the_cookie() -> None:
    with Backend(reply(b"one")) as one, Backend(reply(b"other")) as other:
        text = f"""
            [store]
            url = "memory:"
            [services.a]
            instances = ["{one.url}", "{other.url}"]
            balance = "round-robin"
            sticky = {{ secret = "${{STICKY_SECRET}}", cookie = "stay", max_age = "1h" }}
            [services.b]
            instances = ["{other.url}"]
            [[routes]]
            path = "/a"
            service = "a"
            [[routes]]
            path = "/b"
            service = "b"
        """
        gateway = build(parse(text, environ={"STICKY_SECRET": SECRET}))
        client = Client(gateway)
        first = client.get("/a")
        assert first.headers["Set-Cookie"].startswith("stay=")
        assert "; Max-Age=3600; HttpOnly" in first.headers["Set-Cookie"]
        assert {client.get("/a").text for _ in range(5)} == {first.text}
        client.get("/b")
        gateway.close()
        for request in [*one.requests, *other.requests]:
            assert request.values("Cookie") == []


def test_a_lower_tier_is_used_when_the_first_fails() -> None:
    with Backend(reply(b"spare")) as spare:
        text = f"""
            [store]
            url = "memory:"
            [services.a]
            instances = ["http://127.0.0.1:9", {{ url = "{spare.url}", tier = 1 }}]
            retry = {{}}
            [[routes]]
            path = "/"
            service = "a"
        """
        gateway = build(parse(text, environ={}))
        assert {Client(gateway).get("/").text for _ in range(3)} == {"spare"}
        gateway.close()


@pytest.mark.parametrize(
    ("settings", "services", "most"),
    [
        ("", 1, None),
        ("max_in_flight = 4", 2, 4),
        ("max_in_flight = 0", 2, None),
        ("max_in_flight = 4", 1, 4),
    ],
)
def test_a_service_holds_at_most_its_share_of_the_threads(
    settings: str, services: int, most: int | None, backend: Backend
) -> None:
    opened = threading.Event()

    def waits(connection: socket.socket, request: Received) -> None:
        assert opened.wait(20)
        connection.sendall(reply(b"late"))

    backend.answers = [waits]
    others = "".join(
        f"[services.s{number}]\ninstances = ['http://127.0.0.1:9']\n"
        for number in range(1, services)
    )
    text = f"""
        [gateway]
        threads = 7
        [store]
        url = "memory:"
        [admin]
        prefix = ""
        [services.a]
        instances = ["{backend.url}"]
        {settings}
        {others}
        [[routes]]
        path = "/a"
        service = "a"
    """
    gateway = build(parse(text, environ={}))

    def told() -> object:
        return Client(gateway).get("/services").get_json()["services"][0].get("bulkhead")

    said = {"inFlight": 0, "maxInFlight": most, "refused": 0}
    assert told() == (said if most and settings else None)
    with ThreadPoolExecutor(6) as threads:
        waiting = [
            threads.submit(lambda: Client(gateway).get("/a").status_code) for _ in range(most or 6)
        ]
        backend.wait_for_requests(most or 6)
        if most:
            assert Client(gateway).get("/a").status_code == 503
            assert told() == {"inFlight": most, "maxInFlight": most, "refused": 1}
        opened.set()
        assert {each.result(20) for each in waiting} == {200}
    gateway.close()


def test_an_instance_gets_at_most_its_limit_of_requests_in_flight() -> None:
    text = """
        [store]
        url = "memory:"
        [services.a]
        instances = ["http://127.0.0.1:9"]
        instance_max_in_flight = 2
    """
    gateway = build(parse(text, environ={}))
    assert gateway.pools["a"].instance_limit == 2
    gateway.close()


def test_a_request_above_the_limit_gets_a_503_at_once() -> None:
    opened = threading.Event()

    def slow(connection: socket.socket, _request: Received) -> None:
        assert opened.wait(20)
        connection.sendall(reply(b"late"))

    with Backend(slow) as one, Backend(reply(b"well")) as other:
        text = f"""
            [gateway]
            threads = 4
            [store]
            url = "memory:"
            [services.a]
            instances = ["{one.url}"]
            max_in_flight = 1
            [services.b]
            instances = ["{other.url}"]
            [[routes]]
            path = "/a"
            service = "a"
            [[routes]]
            path = "/b"
            service = "b"
        """
        gateway = build(parse(text, environ={}))
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(lambda: Client(gateway).get("/a").text)
            one.wait_for_requests(1)
            refused = Client(gateway).get("/a")
            assert refused.status_code == 503
            assert refused.get_json()["error"] == "Too many requests in flight"
            assert Client(gateway).get("/b").text == "well"
            opened.set()
            assert waiting.result(20) == "late"
        gateway.close()


@pytest.mark.parametrize("after", ['"10ms"', "0.01"])
def test_a_slow_request_is_hedged_at_another_instance(after: str) -> None:
    def silent(connection: socket.socket, _request: Received) -> bool:
        return connection.recv(1) != b""

    with Backend(silent) as slow, Backend(reply(b"fast")) as fast:
        text = f"""
            [store]
            url = "memory:"
            [services.a]
            instances = ["{slow.url}", "{fast.url}"]
            hedge = {{ after = {after} }}
            balance = "round-robin"
            [[routes]]
            path = "/"
            service = "a"
        """
        gateway = build(parse(text, environ={}))
        # as many as the budget has for sure; one at least is with the slow one first
        assert {Client(gateway).get("/").text for _ in range(3)} == {"fast"}
        gateway.close()
        slow.wait_until_closed()


ZONED = """
[gateway]
{gateway}
[services.a]
instances = [
  {{ url = "http://near", zone = "eu-1a" }}, {{ url = "http://far", zone = "eu-1b" }}
]
{service}
[[routes]]
path = "/a"
service = "a"
"""


@pytest.mark.parametrize(
    ("gateway", "service", "environ", "first"),
    [
        ('zone = "eu-1a"', "", {}, {"http://near"}),
        ('zone = "eu-1b"', "", {"WSGIGATE_ZONE": "eu-1a"}, {"http://far"}),
        ("", "", {"WSGIGATE_ZONE": "eu-1a"}, {"http://near"}),
        ('zone = "${ZONE:-eu-1b}"', "", {}, {"http://far"}),
        ("", "", {}, {"http://near", "http://far"}),
        ("", "", {"WSGIGATE_ZONE": ""}, {"http://near", "http://far"}),
        ('zone = "eu-1a"', "prefer_zone = false", {}, {"http://near", "http://far"}),
    ],
)
def test_instances_in_the_gateways_zone_are_preferred(
    gateway: str,
    service: str,
    environ: dict[str, str],
    first: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("WSGIGATE_ZONE", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    made = build(parse(ZONED.format(gateway=gateway, service=service), environ=environ))
    leases = [made.pools["a"].pick() for _ in range(40)]
    urls = {lease.instance.url for lease in leases if lease is not None and lease.release() is None}
    assert urls == first
