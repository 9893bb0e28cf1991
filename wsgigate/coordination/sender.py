"""Sender-constrained tokens: a token is accepted only from the client that it was issued to.

A token names what its client must have: a key, by ``cnf.jkt`` (DPoP, RFC 9449), or the certificate
of the TLS connection, by ``cnf.x5t#S256`` (RFC 8705). As soon as one of the two is checked, every
member of ``cnf`` must be one that is checked: a token that is bound in a way that is not understood
is not a bearer token (RFC 7800 section 3.1 leaves that to the application).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hmac import compare_digest
from logging import Logger
from typing import Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.dpop import NonceRequired, Nonces, Proof, ProofRejected, ProofRules, confirmation
from wsgigate.coordination.spent import SpentOnce
from wsgigate.http.bodies import shown
from wsgigate.http.client_url import client_url
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import CLIENT_CERTIFICATE, ExcInfo, Headers
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.store import Store, StoreError
from wsgigate.store.open import Namespaced, OpenedStore

__all__ = ["MODES", "ProofNotMarked", "SenderBinding", "SenderRejected", "with_nonce"]

MODES = ("off", "optional", "required")

_PROOF = "HTTP_DPOP"

_KEY, _CERTIFICATE = "jkt", "x5t#S256"


class SenderRejected(Exception):
    """The sender of a token is not the client that it was issued to.

    :ivar error: The code for the client: ``invalid_token``, ``invalid_dpop_proof`` or
        ``use_dpop_nonce``.
    :ivar nonce: The nonce that its proof must have, for ``use_dpop_nonce``.
    """

    def __init__(self, error: str, reason: str, nonce: str = "") -> None:
        super().__init__(reason)
        self.error = error
        self.nonce = nonce


class ProofNotMarked(Exception):
    """The store failed, so a valid proof may have been used before; the message has the cause."""


class SenderBinding:
    """Checks that the sender of a request is the client of its token.

    :param dpop: Whether proofs are checked: ``"off"``, ``"optional"`` (for tokens that are bound to
        a key), or ``"required"`` (every token must be).
    :param certificate_bound: The same for tokens that are bound to a certificate.
    :param algorithms: The signature algorithms of proofs.
    :param max_age: Maximum time since a proof was made, in seconds.
    :param nonce_secret: The secret of the nonces that proofs must have; None if they need none.
    :param hide_proof: Whether the proof is removed from a request that is accepted.
    :param allows_on_error: Whether a valid proof is accepted if the store fails.
    :param store: The store of used proofs, or the URL of one.
    :param app: The app that owns the values in the store.
    :param log: The logger for failures of the store.
    :param clock: Returns the Unix time in seconds.
    :raises ValueError: An argument is invalid; the message names the option of the middleware.
    :ivar active: Whether anything is checked.
    :ivar algorithms: How proofs may be signed.
    """

    def __init__(
        self,
        *,
        dpop: str,
        certificate_bound: str,
        algorithms: Sequence[str],
        max_age: float,
        nonce_secret: str | None,
        hide_proof: bool,
        allows_on_error: bool,
        store: Store | str | None,
        app: WSGIApplication,
        log: Logger,
        clock: Callable[[], float],
    ) -> None:
        for name, mode in (("dpop", dpop), ("certificate_bound", certificate_bound)):
            if mode not in MODES:
                raise ValueError(f'{name} is "off", "optional" or "required", not {mode!r}')
        if dpop == "off" and nonce_secret is not None:
            raise ValueError('dpop_nonce_secret: requires dpop = "optional" or "required"')
        self._modes = {_KEY: dpop, _CERTIFICATE: certificate_bound}
        self._rules = ProofRules(algorithms=algorithms, max_age=max_age)
        self._nonces = None if nonce_secret is None else Nonces(nonce_secret)
        self.active = dpop != "off" or certificate_bound != "off"
        self.algorithms = self._rules.algorithms
        self._with_proofs = dpop != "off"
        self._accepts_bearers = "required" not in (dpop, certificate_bound)
        self._hides = hide_proof and self.active
        self._allows_on_error = allows_on_error
        self._opened = OpenedStore(store, app) if self.active else None
        if self._opened is not None:
            self._spent = SpentOnce(Namespaced(self._opened), "dpop")
        self._log = log
        effect = "passed unchecked" if allows_on_error else "were rejected"
        self._outages = ThrottledLog(
            log.error,
            f"proofs (DPoP) cannot be marked as used, %s tokens {effect} since the last such "
            "message: %s",
            clock,
        )
        self._clock = clock

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove the proof, if no app gets it."""
        if self._hides:
            environ.pop(_PROOF, None)

    @property
    def store_errors(self) -> int:
        """Number of proofs that could not be marked as used, as the store failed."""
        return self._outages.total

    def close(self) -> None:
        """Close the store of used proofs."""
        if self._opened is not None:
            self._opened.close()

    def has_proof(self, authorization: str) -> bool:
        """Return whether a field ``Authorization`` has the scheme ``DPoP``, which is accepted."""
        return self._with_proofs and authorization[:5].lower() == "dpop "

    def confirmation(self, claims: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Return what the token of *claims* is bound to (``cnf``); None if nothing is checked.

        :raises TokenRejected: ``cnf`` is malformed.
        """
        return confirmation(claims) if self.active else None

    def with_key(self, cnf: Mapping[str, Any] | None) -> bool:
        """Return whether a token with *cnf* is accepted with a proof of its key only."""
        return self._with_proofs and cnf is not None and _KEY in cnf

    def check(
        self, environ: WSGIEnvironment, cnf: Mapping[str, Any] | None, authorization: str
    ) -> str | None:
        """Check the sender of a verified token.

        :param cnf: What the token is bound to, from :meth:`confirmation`.
        :param authorization: The field ``Authorization``, with the token.
        :returns: A new nonce for the client, if it is to use another one from now on.
        :raises SenderRejected: The sender is not its client.
        :raises ProofNotMarked: The store failed: the proof may have been used before.
        """
        nonce = None
        with_proof = self.has_proof(authorization)
        if with_proof or cnf is not None or not self._accepts_bearers:
            bound: Mapping[str, Any] = cnf or {}
            self._check_members(bound)
            if _CERTIFICATE in bound:
                _check_certificate(environ.get(CLIENT_CERTIFICATE), bound[_CERTIFICATE])
            if _KEY not in bound and with_proof:
                raise SenderRejected("invalid_token", "sent as DPoP, and not bound to a key")
            if _KEY in bound and not with_proof:
                raise SenderRejected("invalid_token", "bound to a key, and sent as a bearer token")
            if with_proof:
                token = authorization.partition(" ")[2]
                nonce = self._check_proof(environ, bound[_KEY], token, self._clock())
        self.hide(environ)  # of an accepted request only: another authenticator may accept it
        return nonce

    def _check_members(self, bound: Mapping[str, Any]) -> None:
        for member in bound:
            if self._modes.get(member, "off") == "off":
                raise SenderRejected("invalid_token", f"bound by {shown(member)}, not checked here")
        for member, mode in self._modes.items():
            if mode == "required" and member not in bound:
                raise SenderRejected("invalid_token", f"not bound by cnf.{member}")
            if member in bound and not isinstance(bound[member], str):
                raise SenderRejected("invalid_token", f"cnf.{member} is {shown(bound[member])}")

    def _check_proof(
        self, environ: WSGIEnvironment, key: str, token: str, now: float
    ) -> str | None:
        value = environ.get(_PROOF)
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
            nonce = "" if self._nonces is None else self._nonces.current(now)
            raise SenderRejected("use_dpop_nonce", str(error), nonce) from None
        except (ProofRejected, BadTarget) as error:
            raise SenderRejected("invalid_dpop_proof", str(error)) from None
        if not self._is_first_use(proof):
            raise SenderRejected("invalid_dpop_proof", "the proof was used before (jti)")
        current = None if self._nonces is None else self._nonces.current(now)
        return None if current == proof.nonce else current

    def _is_first_use(self, proof: Proof) -> bool:
        """Mark a proof as used; return whether it was not before.

        :raises ProofNotMarked: The store failed.
        """
        try:
            first = self._spent.spend(proof.key, proof.id, seconds=proof.seconds)
        except StoreError as error:
            if self._opened is not None:
                self._opened.check_outage(error, "used proofs (DPoP) cannot be stored")
            self._outages.log(error)
            if self._allows_on_error:
                return True
            raise ProofNotMarked(f"the proof cannot be marked as used: {error}") from error
        if self._outages.ongoing:
            self._outages.resolved(self._log.warning, "proofs can be marked as used again")
        return first


def _check_certificate(certificate: object, thumbprint: str) -> None:
    found = getattr(certificate, "thumbprint", None)
    if isinstance(certificate, Mapping):
        found = certificate.get("thumbprint")
    if not isinstance(found, str):
        raise SenderRejected("invalid_token", "bound to a certificate, and there is none")
    if not compare_digest(found.encode("utf-8", "replace"), thumbprint.encode("utf-8", "replace")):
        raise SenderRejected("invalid_token", "bound to another certificate than the client's")


def with_nonce(start_response: StartResponse, nonce: str) -> StartResponse:
    """Return a *start_response* that gives the client another nonce (RFC 9449 section 8.2)."""

    def start(
        status: str, headers: Headers, exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], object]:
        return start_response(status, [*headers, ("DPoP-Nonce", nonce)], exc_info)

    return start
