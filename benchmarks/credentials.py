"""``python -m benchmarks.credentials``: what a request costs in each authenticator, and in AnyOf.

Microseconds of processor time of a whole call with an app that does nothing, the least of many
rounds that alternate between the cases, as other work of the machine only adds. Each request has a
valid credential, which the authenticator has seen before.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from io import BytesIO
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from benchmarks.meter import least_costs
from benchmarks.table import aligned
from wsgigate import (
    AllOf,
    AnyOf,
    ApiKeyAuthenticator,
    ApiKeys,
    Authenticator,
    ClientAddress,
    ClientCertificate,
    MemoryStore,
    WebhookVerifier,
)
from wsgigate.auth.jwt import mint
from wsgigate.testing.fakes import new_environ

__all__ = ["costs"]

SECRET = "a secret of the benchmark, 32 bytes or more"
BODY = b"x" * 1024


def _app(environ: Any, start_response: Any) -> Iterable[bytes]:
    return []


def _start(*_: Any) -> Any:
    return None


def _pem() -> str:
    key = generate_private_key(SECP256R1())
    name, now = (
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "orders")]),
        datetime.now(UTC),
    )
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7)
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(days=1))
    made = builder.sign(key, hashes.SHA256())
    return made.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _cases() -> dict[str, Callable[[], object]]:
    keys = ApiKeys(MemoryStore())
    key, _ = keys.create("acme")
    token = {"HTTP_AUTHORIZATION": f"Bearer {mint(SECRET, 'HS256', 'ann')}"}
    of_key, pem = {"HTTP_X_API_KEY": key}, _pem()
    of_tls = {"SSL_CLIENT_CERT": pem, "SSL_CLIENT_VERIFY": "SUCCESS"}
    xfcc = {"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_CLIENT_CERT": f"Hash={'ab' * 32};URI=a"}
    signature = hmac.digest(SECRET.encode(), BODY, "sha256").hex()
    hook = {"HTTP_X_HUB_SIGNATURE_256": f"sha256={signature}", "CONTENT_LENGTH": str(len(BODY))}
    bearer = partial(Authenticator, algorithms=["HS256"], secret=SECRET)
    api_key = partial(ApiKeyAuthenticator, keys=keys)
    of_proxy = ClientCertificate(_app, source="xfcc", subject="san_uri")
    apps: dict[str, tuple[Any, dict[str, Any]]] = {
        "no authenticator": (_app, {}),
        "token": (bearer(_app), token),
        "API key": (api_key(_app), of_key),
        "token, first of any": (AnyOf(_app, [bearer, api_key]), token),
        "API key, second of any": (AnyOf(_app, [bearer, api_key]), of_key),
        "token and API key, all": (AllOf(_app, [bearer, api_key]), {**token, **of_key}),
        "client certificate": (ClientCertificate(_app), of_tls),
        "client certificate, XFCC": (ClientAddress(of_proxy, trusted_proxies=["10.0.0.1"]), xfcc),
        "webhook of 1 KiB": (WebhookVerifier(_app, provider="github", secret=SECRET), hook),
    }

    def case(app: Any, fields: dict[str, Any]) -> Callable[[], object]:
        environ = {**new_environ(), **fields}

        def call() -> object:
            request = environ.copy()
            request["wsgi.input"] = BytesIO(BODY)
            return app(request, _start)

        return call

    return {name: case(app, fields) for name, (app, fields) in apps.items()}


def costs(*, calls: int = 200, rounds: int = 50) -> dict[str, float]:
    """Return by name how many microseconds each case takes.

    :param calls: The calls of a case in each round.
    :param rounds: The number of rounds; the least counts.
    """
    return least_costs(_cases(), calls=calls, rounds=rounds)


if __name__ == "__main__":
    rows = [(name, f"{cost:.2f}") for name, cost in costs().items()]
    print(aligned([("", "CPU µs"), *rows]))
