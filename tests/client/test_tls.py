"""Outgoing connections verify certificates by one policy, under every version of Python."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.support.certificates import Authority
from wsgigate.client.dial import dialer
from wsgigate.discovery import Instance
from wsgigate.discovery.sources import SourceError
from wsgigate.discovery.sources.http import ApiClient
from wsgigate.proxy.health_probe import Prober, TlsPolicy
from wsgigate.registration.client import RegistryClient
from wsgigate.registration.entry import Entry
from wsgigate.rules.health import CheckResult, HealthCheck
from wsgigate.rules.registration import Step, Wanted
from wsgigate.runtime.tls import Contexts
from wsgigate.store.redis_connections import RedisConnectionPool, Unreachable
from wsgigate.testing.backend import Backend

LOOPBACK = x509.IPAddress(ip_address("127.0.0.1"))
ELSEWHERE = x509.DNSName("elsewhere.test")


@dataclass(frozen=True)
class Case:
    """What a server presents, and what the client has."""

    chain: Path
    key: Path
    authorities: Path
    good: bool = True


def _bundle(folder: Path, *files: Path) -> Path:
    path = folder / "bundle.pem"
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    return path


def _plain(folder: Path, *, identified: bool) -> Case:
    authority = Authority(folder, identified=identified)
    server = authority.issue("server", [LOOPBACK])
    return Case(server, server, authority.path)


def _intermediate(folder: Path, *, identified: bool, root: bool) -> Case:
    authority = Authority(folder, identified=identified)
    between = Authority(folder, "between", issuer=authority, identified=identified)
    server = between.issue("server", [LOOPBACK])
    chain = _bundle(folder, server, between.path)
    return Case(chain, server, authority.path if root else between.path)


def _pinned(folder: Path, *, identified: bool) -> Case:
    server = Authority(folder, identified=identified).issue("server", [LOOPBACK])
    return Case(server, server, server)


def _stranger(folder: Path) -> Case:
    """Issued by another authority that calls itself the same."""
    (folder / "other").mkdir()
    server = Authority(folder / "other").issue("server", [LOOPBACK])
    return Case(server, server, Authority(folder).path)


def _expired(folder: Path) -> Case:
    authority = Authority(folder)
    server = authority.issue("server", [LOOPBACK], days=-1)
    return Case(server, server, authority.path)


def _elsewhere(folder: Path) -> Case:
    authority = Authority(folder)
    server = authority.issue("server", [ELSEWHERE])
    return Case(server, server, authority.path)


def _no_authority(folder: Path) -> Case:
    """Issued by a certificate that may issue none."""
    authority = Authority(folder)
    middle = authority.issue("middle", [LOOPBACK])
    (folder / "false").mkdir()
    false = Authority(folder / "false", "middle")
    false.key = _key(middle)
    server = false.issue("server", [LOOPBACK])
    return Case(_bundle(folder, server, middle), server, authority.path)


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


MAKERS: dict[str, Callable[[Path], Case]] = {
    "a private authority": lambda folder: _plain(folder, identified=True),
    "a private authority that names no keys": lambda folder: _plain(folder, identified=False),
    "an intermediate authority": lambda folder: _intermediate(folder, identified=True, root=True),
    "an intermediate authority that names no keys": lambda folder: _intermediate(
        folder, identified=False, root=True
    ),
    "an intermediate authority alone": lambda folder: _intermediate(
        folder, identified=False, root=False
    ),
    "its own certificate": lambda folder: _pinned(folder, identified=True),
    "another authority": _stranger,
    "an expired certificate": _expired,
    "another name": _elsewhere,
    "no authority": _no_authority,
}
REFUSED = ("another authority", "an expired certificate", "another name", "no authority")


@pytest.fixture(scope="module", params=MAKERS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    made = MAKERS[request.param](tmp_path_factory.mktemp("tls"))
    return replace(made, good=request.param not in REFUSED)


def _proxy(port: int, authorities: str) -> None:
    dial = dialer(f"https://127.0.0.1:{port}", authorities, None, Contexts(), time.monotonic)
    dial(time.monotonic() + 10).close()


def _registration(port: int, authorities: str) -> None:
    entry = Entry(service="users", port=3001, host="10.0.0.5")
    client = RegistryClient([f"https://127.0.0.1:{port}"], entry, verify=authorities)
    answer = client.send(Step.HEARTBEAT, Wanted.UP, 0)
    if answer.status != 200:
        raise ssl.SSLError(answer.why)


def _discovery(port: int, authorities: str) -> None:
    ApiClient(f"https://127.0.0.1:{port}", ca=authorities).get("/", threading.Event())


def _health(port: int, authorities: str) -> None:
    outcome: Future[CheckResult] = Future()
    prober = Prober({"svc": TlsPolicy(authorities)})
    instance = Instance(f"https://127.0.0.1:{port}")
    prober.probe("svc", instance, HealthCheck("/", timeout=10), outcome.set_result)
    found = outcome.result(20)
    prober.stop()
    if not found.ok:
        raise ssl.SSLError(found.error)


def _redis(port: int, authorities: str) -> None:
    settings = {"ssl_ca_certs": authorities, "socket_timeout": 10}
    pool = RedisConnectionPool(("127.0.0.1", port), tls=True, settings=settings, most=1, wait=1.0)
    with closing(pool), pytest.raises(Unreachable) as caught:
        pool.exchange(b"PING / HTTP/1.1\r\n\r\n")  # a web server answers
    if "certificate" in str(caught.value):
        raise ssl.SSLError(str(caught.value))


WAYS = {
    "the proxy": _proxy,
    "health checks": _health,
    "discovery": _discovery,
    "registration": _registration,
    "redis": _redis,
}


@pytest.mark.parametrize("way", WAYS)
def test_all_outgoing_connections_accept_the_same_certificates(way: str, case: Case) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(case.chain, case.key)
    with Backend(tls=lambda sock: context.wrap_socket(sock, server_side=True)) as backend:
        if case.good:
            WAYS[way](backend.port, str(case.authorities))
        else:
            with pytest.raises((OSError, SourceError)):
                WAYS[way](backend.port, str(case.authorities))
