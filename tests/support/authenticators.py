"""Every middleware that authenticates, for the tests of what they all do when they are combined.

One row each: a new authenticator is tested alone, as an alternative, and together with others.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from tests.support.certificates import Authority
from wsgigate import (
    ApiKeyAuthenticator,
    ApiKeys,
    Authenticator,
    BasicAuthenticator,
    ClientCertificate,
    MemoryStore,
)
from wsgigate.auth.jwt import mint

__all__ = ["AUTHENTICATORS", "Row", "Way"]

SECRET = "a secret of the tests, thirty-two bytes or more"
HASH = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash("secret")


@dataclass(frozen=True)
class Way:
    """One authenticator, and the requests that it judges.

    :ivar factory: Makes it: called with the app and ``refuse``.
    :ivar valid: The keyword arguments of a valid request, as for ``werkzeug.test.Client.open``.
    :ivar invalid: Those of a request with an invalid credential.
    :ivar subject: The subject of the valid one.
    :ivar scheme: The scheme of its identity.
    """

    factory: Callable[..., Any]
    valid: Mapping[str, Any]
    invalid: Mapping[str, Any]
    subject: str
    scheme: str


Row = Callable[[Path], Way]


def bearer(_folder: Path) -> Way:
    expired = mint(SECRET, "HS256", "ann", 60.0, time.time() - 9000)
    return Way(
        partial(Authenticator, algorithms=["HS256"], secret=SECRET),
        {"headers": {"Authorization": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}},
        {"headers": {"Authorization": f"Bearer {expired}"}},
        "ann",
        "bearer",
    )


def api_key(_folder: Path) -> Way:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    return Way(
        partial(ApiKeyAuthenticator, keys=keys),
        {"headers": {"X-API-Key": key}},
        {"headers": {"X-API-Key": "wk_forged"}},
        "acme",
        "api-key",
    )


def basic(folder: Path) -> Way:
    file = folder / "users"
    file.write_text(f"bob:{HASH}\n")

    def fields(password: str) -> dict[str, str]:
        return {"Authorization": f"Basic {base64.b64encode(f'bob:{password}'.encode()).decode()}"}

    return Way(
        partial(BasicAuthenticator, users_file=str(file), store=MemoryStore()),
        {"headers": fields("secret")},
        {"headers": fields("wrong")},
        "bob",
        "basic",
    )


def client_certificate(folder: Path) -> Way:
    def of_server(days: int) -> dict[str, Any]:
        pem = Authority(folder).issue("orders", [], days=days).read_text()
        pem = pem.partition("-----BEGIN PRIVATE")[0]
        return {"environ_overrides": {"SSL_CLIENT_CERT": pem, "SSL_CLIENT_VERIFY": "SUCCESS"}}

    factory = partial(ClientCertificate, subject="cn")
    return Way(factory, of_server(1), of_server(-1), "orders", "mtls")


AUTHENTICATORS: dict[str, Row] = {
    "api-key": api_key,
    "authenticator": bearer,
    "basic": basic,
    "client-certificate": client_certificate,
}
"""By ``use`` in the file."""
