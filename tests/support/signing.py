"""A client that signs its requests (HTTP message signatures, RFC 9421), by code of its own.

It makes the signature base itself, so that it can sign what no library would.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.tokens import NOW
from wsgigate.auth.message_signature import Signer
from wsgigate.testing.fakes import new_environ

__all__ = ["SECRET", "Requester", "digest_of", "pem_of"]

SECRET = "a secret of the tests, thirty-two bytes or more"
COVERED = ("@method", "@target-uri")


def digest_of(body: bytes, algorithm: str = "sha-256") -> str:
    """Return a ``Content-Digest`` field."""
    found = hashlib.new(algorithm.replace("-", ""), body).digest()
    return f"{algorithm}=:{base64.b64encode(found).decode()}:"


def pem_of(public: Any) -> str:
    """Return a public key as PEM text."""
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()  # type: ignore[no-any-return]


class Requester:
    """A client with a key.

    :param sign: Signs a signature base. Default: by a new Ed25519 key.
    """

    def __init__(self, key_id: str = "ann-1", sign: Callable[[bytes], bytes] | None = None) -> None:
        self.key_id = key_id
        self.private = Ed25519PrivateKey.generate()
        self.public_key = pem_of(self.private.public_key())
        self._sign = sign or self.private.sign

    @classmethod
    def with_secret(cls, key_id: str = "ann-1", secret: str = SECRET) -> Requester:
        """Return a client that shares a secret with the gateway."""
        return cls(key_id, lambda base: hmac.digest(secret.encode(), base, "sha256"))

    def signer(self, **options: Any) -> Signer:
        """Return the gateway's side of it."""
        given = {"subject": "ann", "id": self.key_id, "public_key": self.public_key, **options}
        return Signer(**given)

    def fields(
        self,
        method: str = "GET",
        url: str = "http://api.example/orders?page=2",
        *,
        covers: tuple[str, ...] = COVERED,
        values: dict[str, str] | None = None,
        label: str = "sig",
        input: str | None = None,
        **changes: Any,
    ) -> dict[str, str]:
        """Return the fields of a signature.

        :param covers: What it covers, each as a name or as it is written with parameters.
        :param values: The values of fields by name, and of components that are to be lied about.
        :param input: The member of ``Signature-Input``, in place of that of *changes*.
        :param changes: Parameters; an Ellipsis in place of a value removes it.
        """
        parts = urlsplit(url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        known = {
            "@method": method,
            "@target-uri": url,
            "@authority": parts.netloc,
            "@scheme": parts.scheme,
            "@path": parts.path,
            "@query": f"?{parts.query}",
            "@request-target": target,
            **(values or {}),
        }
        parameters = {"created": int(NOW), "keyid": self.key_id, **changes}
        written = [name if name.startswith('"') else f'"{name}"' for name in covers]
        if input is None:
            input = f"({' '.join(written)})" + "".join(
                f";{name}={_bare(value)}" for name, value in parameters.items() if value is not ...
            )
        lines = [f"{one}: {known[name]}" for one, name in zip(written, covers, strict=True)]
        base = "\n".join([*lines, f'"@signature-params": {input}'])
        signature = base64.b64encode(self._sign(base.encode("latin-1"))).decode()
        return {"Signature-Input": f"{label}={input}", "Signature": f"{label}=:{signature}:"}

    def environ(
        self,
        method: str = "GET",
        url: str = "http://api.example/orders?page=2",
        body: bytes = b"",
        *,
        covers: tuple[str, ...] = COVERED,
        values: dict[str, str] | None = None,
        **changes: Any,
    ) -> dict[str, Any]:
        """Return a signed request; one with a body has its digest."""
        values = dict(values or {})
        if body and "content-digest" not in covers:
            covers = (*covers, "content-digest")
            values.setdefault("content-digest", digest_of(body))
        made = request(method, url, body)
        fields = self.fields(method, url, covers=covers, values=values, **changes)
        named = {name: value for name, value in values.items() if not name.startswith(("@", '"'))}
        for name, value in {**named, **fields}.items():
            made[f"HTTP_{name.upper().replace('-', '_')}"] = value
        return made


def request(method: str, url: str, body: bytes) -> dict[str, Any]:
    """Return the environ of a request."""
    parts = urlsplit(url)
    raw = parts.path + (f"?{parts.query}" if parts.query else "")
    made = {
        **new_environ(),
        "REQUEST_METHOD": method,
        "wsgi.url_scheme": parts.scheme,
        "HTTP_HOST": parts.netloc,
        "PATH_INFO": parts.path,
        "QUERY_STRING": parts.query,
        "RAW_URI": raw,
        "wsgi.input": io.BytesIO(body),
    }
    if body:
        made["CONTENT_LENGTH"] = str(len(body))
    return made


def _bare(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
