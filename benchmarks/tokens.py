"""``python -m benchmarks.tokens``: what verifying a token costs, beside PyJWT's own decode.

Microseconds of processor time that a request takes more than one around the bare app, the least of
many rounds that alternate between the cases, as other work of the machine only adds. A miss is a
token that is not cached: it is parsed, its signature and claims are verified. ``introspection`` and
``forward-auth`` are remembered answers of another server.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.types import StartResponse, WSGIEnvironment

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from benchmarks.meter import least_costs
from benchmarks.table import aligned
from wsgigate import Authenticator, DenyList, ForwardAuth, IntrospectionAuthenticator
from wsgigate.auth.jwks import KeySources
from wsgigate.auth.jwks_record import JwksAnswer
from wsgigate.store.memory import MemoryStore
from wsgigate.testing import Backend, reply

__all__ = ["costs"]

ISSUER = "https://id.example.com/realms/shop"


def _app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    return [b""]


def _start(*_: object) -> Callable[[bytes], object]:
    return lambda _: None


def _cases() -> dict[str, Callable[[], object]]:
    private = generate_private_key(65537, 2048)
    public = private.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    jwk = {**jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True), "kid": "k"}
    jwk.pop("key_ops", None)
    now = int(time.time())
    times = {"iss": ISSUER, "aud": "api", "iat": now, "exp": now + 86_400, "sub": "ann"}
    claims: dict[str, Any] = {**times, "scope": "read write", "jti": "a" * 36}
    token = jwt.encode(claims, private, "RS256", {"kid": "k"})
    nested = jwt.encode({**claims, "realm_access": {"roles": ["clerk"]}}, private, "RS256")
    store = MemoryStore()
    sources = KeySources(store, ask=lambda *_, **__: JwksAnswer((jwk,)))

    def serve(app: Any, text: str = token) -> Callable[[], object]:
        environ = {
            "REQUEST_METHOD": "GET",
            "HTTP_AUTHORIZATION": f"Bearer {text}",
            "HTTP_HOST": "shop.example",
            "PATH_INFO": "/orders/7",
            "RAW_URI": "/orders/7",
            "wsgi.url_scheme": "https",
        }
        assert app(environ.copy(), _start) == [b""], "the token is rejected"
        return lambda: app(environ.copy(), _start)  # a middleware leaves its marks in one

    active = json.dumps({**claims, "active": True}).encode()
    with Backend(reply(active, fields=[("Content-Type", "application/json")])) as server:
        client: dict[str, Any] = {"client_id": "gate", "client_secret": "s", "audience": "api"}
        introspection = serve(
            IntrospectionAuthenticator(_app, server.url, **client, cache=86_400.0), "a" * 40
        )
    with Backend(reply(fields=[("Remote-User", "ann"), ("Remote-Groups", "clerks")])) as server:
        forward_auth = serve(
            ForwardAuth(
                _app,
                server.url,
                auth_response_headers=["Remote-User", "Remote-Groups"],
                header_field="Remote-User",
                cache=86_400.0,
                cache_key_headers=["Authorization"],
            ),
            "a" * 40,
        )
    rules: dict[str, Any] = {"issuer": ISSUER, "audience": "api"}
    keyed: dict[str, Any] = {**rules, "algorithms": ["RS256"], "public_key": pem}
    other = {"issuer": "https://other.example", "jwks": jwk}
    several: Any = [{**rules, "jwks": jwk}, other]
    return {
        "": serve(_app),
        "cached": serve(Authenticator(_app, **keyed)),
        "cached, deny list": serve(Authenticator(_app, **keyed, deny_list=DenyList(store))),
        "cached, nested claims": serve(Authenticator(_app, **keyed), nested),
        "cached, fetched keys": serve(Authenticator(_app, **rules, key_sources=sources)),
        "cached, two issuers": serve(Authenticator(_app, issuers=several)),
        "introspection": introspection,
        "forward-auth": forward_auth,
        "RS256 miss": serve(Authenticator(_app, **keyed, cache_size=0)),
        "RS256 miss, fetched keys": serve(
            Authenticator(_app, **rules, key_sources=sources, cache_size=0)
        ),
        "RS256 miss, two issuers": serve(Authenticator(_app, issuers=several, cache_size=0)),
        "PyJWT decodes": lambda: jwt.decode(
            token, public, algorithms=["RS256"], issuer=ISSUER, audience="api", leeway=30
        ),
    }


def costs(*, calls: int = 200, rounds: int = 50) -> dict[str, float]:
    """Return by name how many microseconds each case takes.

    :param calls: The calls of a case in each round.
    :param rounds: The number of rounds; the least counts.
    """
    least = least_costs(_cases(), calls=calls, rounds=rounds)
    bare = least.pop("")
    return {name: cost - bare for name, cost in least.items()}


if __name__ == "__main__":
    rows = [(name, f"{cost:.2f}") for name, cost in costs().items()]
    print(aligned([("", "CPU µs"), *rows]))
