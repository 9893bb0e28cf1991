"""Sender-constrained tokens: a token is accepted only from the client that it was issued to.

A token names what its client must have: a key, by ``cnf.jkt`` (DPoP, RFC 9449), or the certificate
of the TLS connection, by ``cnf.x5t#S256`` (RFC 8705). As soon as one of the two is checked, every
member of ``cnf`` must be one that is checked: a token that is bound in a way that is not understood
is not a bearer token (RFC 7800 section 3.1 leaves that to the application).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hmac import compare_digest
from typing import Any
from wsgiref.types import WSGIEnvironment

from wsgigate.auth.dpop import NonceRequired, Nonces, ProofRejected, ProofRules
from wsgigate.http.bodies import shown
from wsgigate.http.client_url import client_url
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import CLIENT_CERTIFICATE

__all__ = ["MODES", "PROOF", "ProofNotMarked", "SenderBinding", "SenderRejected"]

MODES = ("off", "optional", "required")

PROOF = "HTTP_DPOP"
"""The ``environ`` key of the field with the proof."""

_KEY, _CERTIFICATE = "jkt", "x5t#S256"


class SenderRejected(Exception):
    """The sender of a token is not the client that it was issued to.

    :ivar error: The code for the client: ``invalid_token``, ``invalid_dpop_proof`` or
        ``use_dpop_nonce``.
    """

    def __init__(self, error: str, reason: str) -> None:
        super().__init__(reason)
        self.error = error


class ProofNotMarked(Exception):
    """The store failed, so a valid proof may have been used before; the message has the cause."""


class SenderBinding:
    """Checks that the sender of a request is the client of its token.

    :param dpop: Whether proofs are checked: ``"off"``, ``"optional"`` (for tokens that are bound to
        a key), or ``"required"`` (every token must be).
    :param certificate: The same for tokens that are bound to a certificate.
    :param rules: The rules for proofs.
    :param spend: Marks a valid proof as used: called with the thumbprint of its key, its id, and
        the seconds for which it stays valid; returns whether it was not used before.
    :param nonces: The nonces that proofs must have; None if they need none.
    :param hide: Whether the proof is removed from a request that is accepted.
    """

    def __init__(
        self,
        *,
        dpop: str,
        certificate: str,
        rules: ProofRules,
        spend: Callable[[str, str, float], bool],
        nonces: Nonces | None,
        hide: bool,
    ) -> None:
        self._modes = {_KEY: dpop, _CERTIFICATE: certificate}
        self._rules = rules
        self._spend = spend
        self._nonces = nonces
        self._hides = hide

    def check(
        self,
        environ: WSGIEnvironment,
        cnf: Mapping[str, Any] | None,
        token: str,
        *,
        with_proof: bool,
        now: float,
    ) -> str | None:
        """Check the sender of a verified token.

        :param cnf: What the token is bound to, from :func:`~wsgigate.auth.dpop.confirmation`.
        :param with_proof: Whether it was sent with the scheme ``DPoP``, rather than ``Bearer``.
        :param now: Unix time in seconds.
        :returns: A new nonce for the client, if it is to use another one from now on.
        :raises SenderRejected: The sender is not its client.
        :raises ProofNotMarked: *spend* raised it: the proof may have been used before.
        """
        bound: Mapping[str, Any] = cnf or {}
        for member in bound:
            if self._modes.get(member, "off") == "off":
                raise SenderRejected("invalid_token", f"bound by {shown(member)}, not checked here")
        for member, mode in self._modes.items():
            if mode == "required" and member not in bound:
                raise SenderRejected("invalid_token", f"not bound by cnf.{member}")
            if member in bound and not isinstance(bound[member], str):
                raise SenderRejected("invalid_token", f"cnf.{member} is {shown(bound[member])}")
        if _CERTIFICATE in bound:
            _check_certificate(environ.get(CLIENT_CERTIFICATE), bound[_CERTIFICATE])
        if _KEY not in bound and with_proof:
            raise SenderRejected("invalid_token", "sent as DPoP, and not bound to a key")
        if _KEY in bound and not with_proof:
            raise SenderRejected("invalid_token", "bound to a key, and sent as a bearer token")
        nonce = None
        if with_proof:
            nonce = self._check_proof(environ, bound[_KEY], token, now)
        if self._hides:  # of an accepted request only: another authenticator may accept it
            environ.pop(PROOF, None)
        return nonce

    def new_nonce(self, now: float) -> str | None:
        """Return the nonce that proofs must have; None if they need none."""
        return None if self._nonces is None else self._nonces.current(now)

    def _check_proof(
        self, environ: WSGIEnvironment, key: str, token: str, now: float
    ) -> str | None:
        value = environ.get(PROOF)
        if not value:
            raise SenderRejected("invalid_dpop_proof", "no DPoP field")
        try:
            proof = self._rules.check(
                value,
                key=key,
                method=environ["REQUEST_METHOD"],
                url=client_url(environ).without_query,
                token=token,
                now=now,
                nonces=self._nonces,
            )
        except NonceRequired as error:
            raise SenderRejected("use_dpop_nonce", str(error)) from None
        except (ProofRejected, BadTarget) as error:
            raise SenderRejected("invalid_dpop_proof", str(error)) from None
        if not self._spend(proof.key, proof.id, proof.seconds):
            raise SenderRejected("invalid_dpop_proof", "the proof was used before (jti)")
        current = self.new_nonce(now)
        return None if current == proof.nonce else current


def _check_certificate(certificate: object, thumbprint: str) -> None:
    found = getattr(certificate, "thumbprint", None)
    if isinstance(certificate, Mapping):
        found = certificate.get("thumbprint")
    if not isinstance(found, str):
        raise SenderRejected("invalid_token", "bound to a certificate, and there is none")
    if not compare_digest(found.encode("utf-8", "replace"), thumbprint.encode("utf-8", "replace")):
        raise SenderRejected("invalid_token", "bound to another certificate than the client's")
