"""``python -m benchmarks.signatures``: the cost of signed requests and of proofs (DPoP).

Microseconds of processor time, the least of many rounds that alternate between the cases, as other
work of the machine only adds. The library alone verifies the same signature beside the gateway's
middleware, which also decides what it must cover, and marks it as used in a store in memory.
``bearer`` and ``bearer, dpop on`` are a cached token without a proof: they cost the same but for
one question.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import (
    HTTPMessageSigner,
    HTTPMessageVerifier,
    MappingKeyResolver,
    algorithms,
)

from benchmarks.meter import least_costs
from benchmarks.table import aligned
from wsgigate import Authenticator, MemoryStore, SignatureAuthenticator, Signer
from wsgigate.auth.jwk import thumbprint
from wsgigate.auth.jwt import mint
from wsgigate.http.wsgi import LOGGED

__all__ = ["costs"]

SECRET = "0123456789abcdef0123456789abcdef"
URL = "http://api.example/orders?page=2"
NOW = 1_764_547_200.0


def _app(environ: Any, start_response: Any) -> list[bytes]:
    return []


def _start(status: str, headers: Any, exc_info: Any = None) -> Any:
    if not status.startswith("2"):
        raise AssertionError(status)


def _environ(**fields: str) -> dict[str, Any]:
    parts = urlsplit(URL)
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": parts.path,
        "QUERY_STRING": parts.query,
        "RAW_URI": f"{parts.path}?{parts.query}",
        "HTTP_HOST": parts.netloc,
        "wsgi.url_scheme": "http",
        LOGGED: True,
        **fields,
    }


class _Request:
    method, url = "GET", URL

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}


def _signatures(most: int) -> dict[str, Callable[[], object]]:
    key = Ed25519PrivateKey.generate()
    public = key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    resolver = MappingKeyResolver(public_keys={"ann": public}, private_keys={"ann": key})
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=resolver)
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=resolver)
    made = []
    for number in range(most):
        request = _Request()
        signer.sign(request, key_id="ann", nonce=str(number))
        made.append(request)
    environs = itertools.cycle(
        _environ(
            HTTP_SIGNATURE_INPUT=each.headers["Signature-Input"],
            HTTP_SIGNATURE=each.headers["Signature"],
        )
        for each in made
    )
    signers = [Signer(subject="ann", id="ann", public_key=pem)]
    gate = SignatureAuthenticator(_app, signers, max_age=3600, store=MemoryStore())
    unknown = SignatureAuthenticator(
        lambda environ, start_response: [],
        [Signer(subject="bob", id="bob", public_key=pem)],
        store=MemoryStore(),
    )
    same = _environ(
        HTTP_SIGNATURE_INPUT=made[0].headers["Signature-Input"],
        HTTP_SIGNATURE=made[0].headers["Signature"],
    )
    return {
        "the library alone": lambda: verifier.verify(made[0]),
        "signature": lambda: gate(next(environs).copy(), _start),
        "signature, unknown key": lambda: unknown(same.copy(), lambda *args: print),
    }


def _proofs(most: int) -> dict[str, Callable[[], object]]:
    key = generate_private_key(SECP256R1())
    jwk = json.loads(jwt.get_algorithm_by_name("ES256").to_jwk(key.public_key()))
    jwk = {name: jwk[name] for name in ("kty", "crv", "x", "y")}
    token = mint(SECRET, "HS256", "ann", 3600, NOW, cnf={"jkt": thumbprint(jwk)})
    digest = hashlib.sha256(token.encode()).digest()
    claims = {
        "htm": "GET",
        "htu": "http://api.example/orders",
        "iat": int(NOW),
        "ath": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
    }
    header = {"typ": "dpop+jwt", "jwk": jwk}
    proofs = [
        jwt.encode({**claims, "jti": str(number)}, key, "ES256", header) for number in range(most)
    ]
    bound = itertools.cycle(
        _environ(HTTP_AUTHORIZATION=f"DPoP {token}", HTTP_DPOP=proof) for proof in proofs
    )
    options: dict[str, Any] = {"algorithms": ["HS256"], "secret": SECRET, "clock": lambda: NOW}
    off = Authenticator(_app, **options)
    on = Authenticator(_app, dpop="optional", store=MemoryStore(), **options)
    plain = _environ(HTTP_AUTHORIZATION=f"Bearer {mint(SECRET, 'HS256', 'ann', 3600, NOW)}")
    return {
        "PyJWT alone": lambda: jwt.decode(
            proofs[0], key.public_key(), ["ES256"], options={"verify_iat": False}
        ),
        "proof": lambda: on(next(bound).copy(), _start),
        "bearer": lambda: off(plain.copy(), _start),
        "bearer, dpop on": lambda: on(plain.copy(), _start),
    }


def costs(*, calls: int = 50, rounds: int = 20) -> dict[str, float]:
    """Return by name how many microseconds each case takes.

    :param calls: The calls of a case in each round.
    :param rounds: The number of rounds; the least counts.
    """
    most = calls * (rounds + 2)
    return least_costs({**_signatures(most), **_proofs(most)}, calls=calls, rounds=rounds)


if __name__ == "__main__":
    rows = [(name, f"{cost:.2f}") for name, cost in costs().items()]
    print(aligned([("", "CPU µs"), *rows]))
