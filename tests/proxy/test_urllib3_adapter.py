"""``requests``' own adapter: what a name resolves to is checked where it is connected to."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import requests

from tests.support.certificates import make_certificate
from wsgigate.client.destinations import Destinations
from wsgigate.proxy.urllib3_adapter import UrllibAdapter
from wsgigate.testing.backend import Backend


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize(
    ("networks", "reached"),
    [(["127.0.0.0/8", "::1"], True), (["127.0.0.1"], True), (["10.0.0.0/8"], False)],
)
def test_only_an_allowed_address_is_connected_to(
    host: str, networks: list[str], reached: bool, backend: Backend
) -> None:
    with requests.Session() as session:
        session.mount("http://", UrllibAdapter(check=Destinations(networks).check))
        url = f"http://{host}:{backend.port}/"
        if reached:
            assert session.get(url, timeout=10).text == "ok"
            assert dict(backend.requests[0].fields)["Host"] == f"{host}:{backend.port}"
        else:
            with pytest.raises(requests.ConnectionError, match="outside of the allowed networks"):
                session.get(url, timeout=10)
            assert backend.connections == 0


def test_a_name_that_is_none_is_no_connection() -> None:
    with requests.Session() as session:
        session.mount("http://", UrllibAdapter(check=Destinations().check))
        with pytest.raises(requests.ConnectionError, match="no address"):
            session.get("http://nowhere.invalid/", timeout=10)


def test_certificates_are_verified_against_the_name_all_the_same(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda sock, name, _: asked.append(name)
    with (
        Backend(tls=lambda sock: context.wrap_socket(sock, True)) as backend,
        requests.Session() as session,
    ):
        session.mount("https://", UrllibAdapter(check=Destinations().check))
        url = f"https://localhost:{backend.port}/"
        assert session.get(url, verify=str(certificate), timeout=10).text == "ok"
    assert asked == ["localhost"]
