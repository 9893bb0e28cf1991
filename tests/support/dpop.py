"""A client that has a key, and makes proofs of it (DPoP)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from jwt.algorithms import ECAlgorithm

from tests.support.tokens import NOW, encoded
from wsgigate.auth.jwk import thumbprint

__all__ = ["Prover"]


class Prover:
    """A client with a key.

    :param private: Its private key. Default: a new one on the curve P-256.
    """

    def __init__(self, private: Any = None, algorithm: str = "ES256", jwk: Any = None) -> None:
        self.private = private or generate_private_key(SECP256R1())
        self.algorithm = algorithm
        self.jwk = jwk or json.loads(ECAlgorithm.to_jwk(self.private.public_key()))
        self.jwk.pop("key_ops", None)

    @property
    def key(self) -> str:
        """The thumbprint of its key, for ``cnf.jkt``."""
        return thumbprint(self.jwk)

    def proof(
        self,
        token: str = "token",
        method: str = "GET",
        url: str = "http://127.0.0.1/",
        *,
        header: dict[str, Any] | None = None,
        **changes: Any,
    ) -> str:
        """Return a proof; an Ellipsis in place of a member removes it."""
        ath = encoded(hashlib.sha256(token.encode()).digest())
        made = {"jti": "proof-1", "htm": method, "htu": url, "iat": int(NOW), "ath": ath, **changes}
        members = {"typ": "dpop+jwt", "jwk": self.jwk, **(header or {})}
        return jwt.encode(
            {name: value for name, value in made.items() if value is not ...},
            self.private,
            self.algorithm,
            headers={name: value for name, value in members.items() if value is not ...},
        )
