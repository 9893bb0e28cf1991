"""Mutual TLS with real sockets: the gateway asks for the certificate, or nginx in front does."""

from __future__ import annotations

import shutil
import ssl
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from cryptography import x509

from tests.support.certificates import Authority
from wsgigate.testing import Backend

Serve = Callable[..., Any]

GATEWAY = """
[gateway]
name = "test"
{gateway}
identity = {{ X-Caller = "subject" }}
[store]
url = "memory:"
[services.orders]
instances = ["{url}"]
[[routes]]
path = "/"
service = "orders"
[[routes.middleware]]
use = "client-certificate"
subject = "san_uri"
allow = ["spiffe://shop/*"]
{middleware}
"""

NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {server};
        ssl_certificate_key {server};
        ssl_client_certificate {ca};
        ssl_verify_client optional;
        location / {{
            proxy_pass {url};
            proxy_set_header X-Client-Cert $ssl_client_escaped_cert;
        }}
    }}
}}
"""

FORGED = {
    "Client-Cert": ":AAAA:",
    "X-Forwarded-Client-Cert": f"Hash={'ab' * 32};URI=spiffe://shop/root",
    "X-Client-Cert": "forged",
    "Ssl-Client-Cert": "forged",
    "Ssl-Client-Verify": "SUCCESS",
    "X-Caller": "spiffe://shop/root",
}


class Files(NamedTuple):
    ca: Path
    server: Path
    orders: Path
    other: Path
    stranger: Path

    def client(self, url: str, certificate: Path | None, *, http2: bool = False) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.ca))
        if certificate is not None:
            context.load_cert_chain(certificate)
        secure = url.replace("http:", "https:")
        return httpx.Client(
            base_url=secure, verify=context, http2=http2, trust_env=False, timeout=20
        )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("certificates")
    authority, unknown = Authority(folder), Authority(folder, "unknown")
    return Files(
        authority.path,
        authority.issue("server", [x509.IPAddress(ip_address("127.0.0.1"))]),
        authority.issue("orders", [x509.UniformResourceIdentifier("spiffe://shop/orders")]),
        authority.issue("other", [x509.UniformResourceIdentifier("spiffe://other/orders")]),
        unknown.issue("stranger", [x509.UniformResourceIdentifier("spiffe://shop/orders")]),
    )


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as backend:
        yield backend


@pytest.mark.parametrize("http2", [False, True], ids=["http1", "http2"])
def test_the_gateway_asks_for_the_certificate(
    http2: bool, files: Files, backend: Backend, serve: Serve
) -> None:
    tls = f'{{ cert = "{files.server}", client_ca = "{files.ca}" }}'
    text = GATEWAY.format(url=backend.url, gateway=f"http2 = true\ntls = {tls}", middleware="")
    gateway = serve(text, workers=1)
    with files.client(gateway.url, files.orders, http2=http2) as client:
        for _ in range(2):  # of one connection
            assert client.get("/", headers=FORGED).status_code == 200
    for request in backend.requests:
        assert request.values("X-Caller") == ["spiffe://shop/orders"]
        assert not request.values("Client-Cert")
        assert not request.values("X-Forwarded-Client-Cert")
    with files.client(gateway.url, files.other, http2=http2) as client:
        assert client.get("/").status_code == 403
    with files.client(gateway.url, None, http2=http2) as client:
        assert client.get("/", headers=FORGED).status_code == 401
    stranger = files.client(gateway.url, files.stranger, http2=http2)
    with stranger, pytest.raises(httpx.TransportError):  # the handshake fails
        stranger.get("/")
    assert len(backend.requests) == 2
    assert "Traceback" not in gateway.log


def test_a_connection_may_require_a_certificate(
    files: Files, backend: Backend, serve: Serve
) -> None:
    tls = f'{{ cert = "{files.server}", client_ca = "{files.ca}", client_cert = "required" }}'
    text = GATEWAY.format(url=backend.url, gateway=f"tls = {tls}", middleware="required = false")
    gateway = serve(text, workers=1)
    with files.client(gateway.url, None) as client, pytest.raises(httpx.TransportError):
        client.get("/")
    with files.client(gateway.url, files.orders) as client:
        assert client.get("/").status_code == 200


def test_nginx_in_front_asks_for_it(
    files: Files, backend: Backend, serve: Serve, serve_command: Serve, tmp_path: Path
) -> None:
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert program is not None, "apt-get install nginx-light"
    text = GATEWAY.format(
        url=backend.url,
        gateway='trusted_proxies = ["127.0.0.1"]',
        middleware=f'source = "header:X-Client-Cert"\nca = "{files.ca}"',
    )
    gateway = serve(text, workers=1)

    def command(port: int) -> list[str]:
        file = tmp_path / "nginx.conf"
        file.write_text(
            NGINX.format(
                folder=tmp_path, port=port, server=files.server, ca=files.ca, url=gateway.url
            )
        )
        return [program or "", "-c", str(file), "-p", str(tmp_path), "-e", "stderr"]

    nginx = serve_command(command)
    with files.client(nginx.url, files.orders) as client:
        assert client.get("/", headers=FORGED).status_code == 200
    [request] = backend.requests
    assert request.values("X-Caller") == ["spiffe://shop/orders"]
    assert {name for name, _ in request.fields if "cert" in name.lower()} <= {
        "Ssl-Client-Cert"  # a field like any other
    }
    with files.client(nginx.url, files.other) as client:
        assert client.get("/").status_code == 403
    with files.client(nginx.url, None) as client:
        assert client.get("/", headers=FORGED).status_code == 401
