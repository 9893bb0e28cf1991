"""A gateway that speaks HTTP/2, with a backend behind it."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.files import LOGGED_SERVICE
from tests.acceptance.http2.client import Client
from wsgigate.testing.backend import Backend

__all__ = ["GATEWAY", "Gate"]

GATEWAY = f"""
[gateway]
http2 = true
threads = 4
idle_timeout = "2s"
keep_alive = "2s"
tls = {{{{ cert = "{{certificate}}" }}}}
{LOGGED_SERVICE}
websocket = true
"""


class Gate:
    """A gateway that speaks HTTP/2, and the backend behind it."""

    def __init__(self, served: Any, certificate: Path, backend: Backend) -> None:
        self.served = served
        self.certificate = certificate
        self.backend = backend
        self.url = served.url.replace("http:", "https:")

    @property
    def log(self) -> str:
        return str(self.served.log)

    def client(self) -> Client:
        return Client(self.served.port, self.certificate)

    def http(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=str(self.certificate))
        return httpx.Client(
            http1=False, http2=True, verify=context, base_url=self.url, trust_env=False, timeout=20
        )
