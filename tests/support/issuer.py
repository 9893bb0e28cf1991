"""An issuer of tokens as Keycloak is one: keys that rotate, and endpoints that fail on demand."""

from __future__ import annotations

import base64
import json
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

__all__ = ["FaultyIssuer", "SigningKey", "octets", "signing_key"]

_KINDS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "RS256-1024": lambda: rsa.generate_private_key(65537, 1024),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES256K": lambda: ec.generate_private_key(ec.SECP256K1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
    "Ed448": ed448.Ed448PrivateKey.generate,
}
_ALIASES = {"PS256": "RS256", "RS512": "RS256", "PS512": "RS256"}


def octets(data: bytes) -> str:
    """Return *data* as base64url text."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@cache
def _private(kind: str, number: int) -> Any:
    return _KINDS[kind]()


def signing_key(algorithm: str, number: int = 0) -> SigningKey:
    """Return a key for *algorithm*; the same one for the same number, as making one is slow."""
    kind = _ALIASES.get(algorithm, algorithm)
    return SigningKey(
        algorithm.partition("-")[0].replace("Ed448", "EdDSA"),
        _private(kind, number),
        f"{kind}-{number}",
    )


class SigningKey:
    """A private key with its id."""

    def __init__(self, algorithm: str, private: Any, kid: str) -> None:
        self.algorithm = algorithm
        self.private = private
        self.kid = kid

    def jwk(self, **changes: Any) -> dict[str, Any]:
        """Return the public JWK; a change to ``...`` leaves a member out."""
        public = self.private.public_key()
        rule = jwt.get_algorithm_by_name(self.algorithm)
        made = json.loads(rule.to_jwk(public))
        members = {name: value for name, value in made.items() if name != "key_ops"}
        members |= {"kid": self.kid, "use": "sig", **changes}
        return {name: value for name, value in members.items() if value is not ...}

    def token(self, claims: dict[str, Any] | str, **header: Any) -> str:
        """Return a signed token, whatever it says; a header field of None is left out.

        :param claims: The claims, or the text of the payload.
        """
        fields = {"alg": self.algorithm, "typ": "JWT", "kid": self.kid, **header}
        fields = {name: value for name, value in fields.items() if value is not None}
        text = claims if isinstance(claims, str) else json.dumps(claims)
        body = ".".join(octets(part.encode()) for part in (json.dumps(fields), text))
        rule = jwt.get_algorithm_by_name(self.algorithm)
        return f"{body}.{octets(rule.sign(body.encode(), self.private))}"


class FaultyIssuer:
    """An issuer on loopback, with a discovery document and a JWK set; a context manager.

    :ivar mode: How its endpoints answer: ``good``, ``hang``, ``close``, ``error``, ``html``,
        ``empty``, ``redirect``, ``huge``, ``enc``; ``older``, the first set it ever had from a
        cache in front, or ``flapping``, that set at every second request.
    :ivar keys: The published keys; the last one signs.
    :ivar requests: The paths that were requested.
    """

    def __init__(self, *, algorithm: str = "ES256", path: str = "/realms/shop") -> None:
        self.algorithm = algorithm
        self.keys = [signing_key(algorithm)]
        self.mode = "good"
        self.requests: list[str] = []
        self.fields: dict[str, str] = {}
        self.jwks: Any = None
        self.discovery: dict[str, Any] = {}
        self._path = path
        self._released = threading.Event()
        self._first = [self.keys[0].jwk()]

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = self.origin + self._path
        self.jwks_url = f"{self.url}/protocol/openid-connect/certs"
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def fetches(self) -> int:
        """How often the keys were requested."""
        return self.requests.count(f"{self._path}/protocol/openid-connect/certs")

    def rotate(self) -> None:
        """Add a new key, which signs from now on; of the others, the last one stays published."""
        self.keys = [self.keys[-1], signing_key(self.algorithm, len(self.requests) + 100)]

    def token(self, key: SigningKey | None = None, **changes: Any) -> str:
        """Return a token that is valid for an hour."""
        now = int(time.time())
        claims = {"iss": self.url, "sub": "ann", "iat": now, "exp": now + 3600, **changes}
        return (key or self.keys[-1]).token(
            {name: value for name, value in claims.items() if value is not ...}
        )

    def _document(self, path: str) -> Any:
        if path == f"{self._path}/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": self.jwks_url, **self.discovery}
        if path != f"{self._path}/protocol/openid-connect/certs":
            return None
        if self.jwks is not None:
            return self.jwks
        keys = [key.jwk() for key in self.keys]
        return {
            "good": {"keys": keys},
            "older": {"keys": self._first},
            "flapping": {"keys": self._first if self.fetches % 2 else keys},
            "empty": {"keys": []},
            "enc": {"keys": [{**key, "use": "enc"} for key in keys]},
        }.get(self.mode, {"keys": keys})

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                issuer.requests.append(self.path)
                mode = issuer.mode
                if mode == "hang":
                    issuer._released.wait(30)
                if mode in ("hang", "close"):
                    self.close_connection = True
                    return
                document = issuer._document(self.path)
                body = json.dumps(document).encode()
                status = 404 if document is None else 200
                fields = dict(issuer.fields)
                if mode == "older":
                    fields["Age"] = "3600"
                if mode == "error":
                    status = 500
                if mode == "html":
                    body = b"<html>Sign in</html>"
                if mode == "huge":
                    body = b'{"keys": [' + b" " * 300_000 + b"]}"
                if mode == "redirect":
                    status, fields = 302, {**fields, "Location": f"{issuer.origin}/elsewhere"}
                self.send_response(status)
                for name, value in {**fields, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler
