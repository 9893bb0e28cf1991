"""Authentication by client certificates (mutual TLS): of the TLS connection, or from a proxy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from ssl import DER_cert_to_PEM_cert
from typing import Annotated, Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing, check_realm
from wsgigate.auth.client_certificate import (
    SUBJECTS,
    Authorities,
    CertificateRejected,
    ForwardedCertificate,
    VerifiedCertificate,
    allowed_subjects,
    fingerprint_of,
    from_client_cert,
    from_pem,
    from_xfcc,
    subject_of,
)
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import Outcomes
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import (
    CLIENT_CERTIFICATE,
    FORWARDED_CERTIFICATES,
    environ_key,
    is_preflight,
    peer_trusted,
)
from wsgigate.rules.arguments import FIELD_NAME, OneOf, Pattern, checked
from wsgigate.runtime.clocks import wall

__all__ = ["ClientCertificate"]

_SOURCE = rf"server|client-cert|xfcc|header:{FIELD_NAME}"
_XFCC = "HTTP_X_FORWARDED_CLIENT_CERT"
_NO_BYTES = "::"  # an empty byte sequence, which HAProxy sends of a client without a certificate
_LEAF, _CHAIN = "HTTP_CLIENT_CERT", "HTTP_CLIENT_CERT_CHAIN"
_MOST_CACHED = 1024


class Accepted(NamedTuple):
    """A certificate that was checked.

    :ivar certificate: The certificate.
    :ivar identity: The caller.
    :ivar since: Unix time from which it is valid.
    :ivar until: Unix time until which it is valid.
    """

    certificate: VerifiedCertificate
    identity: Identity
    since: float
    until: float


@checked
class ClientCertificate:
    """Authentication: allow requests with a client certificate only (mutual TLS, mTLS).

    The caller is in ``environ["wsgigate.identity"]``, with the certificate's names, fingerprint and
    times as its ``claims``; the certificate is in ``environ["wsgigate.client_certificate"]``, with
    its ``thumbprint`` (``x5t#S256``), to which tokens may be bound (RFC 8705).

    The certificate is that of the TLS connection, which the server has verified; or one that a
    trusted proxy sends, if TLS ends there: a :class:`ClientAddress` around it decides whose fields
    are trusted. Fields of clients are removed in any case, and those of proxies before *app* is
    called.

    :param app: The WSGI application to protect.
    :param source: Where the certificate comes from: ``"server"``, the TLS connection; from trusted
        proxies ``"client-cert"``, the fields of RFC 9440, ``"xfcc"``, Envoy's
        ``X-Forwarded-Client-Cert``, or ``"header:NAME"``, a field with the certificate as
        URL-escaped PEM text: of nginx (``$ssl_client_escaped_cert``), Traefik or AWS.
    :param subject: The name that identifies the caller: ``"dn"``, the distinguished name (RFC
        4514), ``"cn"``, the common name, or the first ``"san_dns"``, ``"san_uri"`` (SPIFFE id) or
        ``"san_email"`` of the subject alternative names.
    :param allow: Subjects that are allowed, such as ``"spiffe://shop.example/*"``: ``*`` is any
        text within one part of the name, ``**`` any text. Default: all.
    :param revoked: SHA-256 fingerprints of certificates that are rejected.
    :param ca: A PEM file of the certificate authorities that must have issued the certificate.
        Default: those by which the server or the proxy has verified it.
    :param hide_credentials: Whether the fields of a trusted proxy are removed before *app* is
        called.
    :param required: Whether a request without a certificate is rejected. An invalid one always is.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require a certificate, which browsers never
        send. Default: they pass without an identity.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param clock: Returns the Unix time in seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        source: Annotated[
            str, Pattern(_SOURCE, '"server", "client-cert", "xfcc" or "header:NAME"')
        ] = "server",
        subject: Annotated[str, OneOf(SUBJECTS)] = "dn",
        allow: Sequence[str] = (),
        revoked: Sequence[str] = (),
        ca: str | None = None,
        hide_credentials: bool = True,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        realm: str = "api",
        clock: Callable[[], float] = wall,
        refuse: Refuse = answer_with,
    ) -> None:
        if not isinstance(source, str) or not re.fullmatch(_SOURCE, source):
            raise ValueError(
                f'source: "server", "client-cert", "xfcc" or "header:NAME", not {source!r}'
            )
        if subject not in SUBJECTS:
            raise ValueError(f"subject: one of {', '.join(SUBJECTS)}, not {subject!r}")
        if isinstance(revoked, str):
            raise ValueError(f"revoked: expected a list of fingerprints, not {revoked!r}")
        check_realm(realm)
        self.app = app
        self._outcomes = Outcomes("mtls")
        refuse = self._outcomes.counting(refuse)
        self._subject = subject
        self._allow = allowed_subjects(allow, subject)
        self._revoked = frozenset(map(fingerprint_of, revoked))
        self._authorities = None if ca is None else _authorities(ca)
        name = source.partition(":")[2]
        self._field = {"client-cert": _LEAF, "xfcc": _XFCC}.get(source) or (
            environ_key(name) if name else ""
        )
        self._fields = tuple(dict.fromkeys((_LEAF, _CHAIN, _XFCC, self._field or _LEAF)))
        self._hides = hide_credentials
        self._required = required
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._clock = clock
        self._cache: dict[tuple[str, str], Accepted] = {}
        challenge = ("WWW-Authenticate", f'Certificate realm="{realm}"')
        headers = (challenge,)
        self._missing = refuse(
            CredentialsMissing(401, "Client certificate required!", headers=headers)
        )
        self._invalid = refuse(Problem(401, "Invalid client certificate!", headers=headers))
        self._forbidden = refuse(Problem(403, "This client certificate is not allowed."))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(CLIENT_CERTIFICATE, None)
        if IDENTITY in environ and (self._required or not isinstance(environ[IDENTITY], Identity)):
            del environ[IDENTITY]
        sent = self._sent(environ)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        if sent is None:
            if not self._required or (self._passes_preflights and is_preflight(environ)):
                self._outcomes.anonymous(environ)
                return self.app(environ, start_response)
            return self._rejected(self._missing, "no certificate", environ, start_response)
        accepted = self._cache.get(sent)
        now = self._clock()
        try:
            if accepted is None:
                accepted = self._checked(sent, now)
                if len(self._cache) >= _MOST_CACHED:
                    self._cache.clear()
                self._cache[sent] = accepted
            elif not accepted.since <= now < accepted.until:
                raise CertificateRejected("it is not valid at this time")
        except CertificateRejected as error:
            reason = f"bad certificate: {error}"
            return self._rejected(self._invalid, reason, environ, start_response)
        if self._allow is not None and not self._allow.fullmatch(accepted.identity.subject or ""):
            reason = f"the certificate of {accepted.identity.subject!r} is not in allow"
            return self._rejected(self._forbidden, reason, environ, start_response)
        environ[CLIENT_CERTIFICATE] = accepted.certificate
        environ[IDENTITY] = accepted.identity
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        for key in self._fields:
            environ.pop(key, None)

    def _sent(self, environ: WSGIEnvironment) -> tuple[str, str] | None:
        """Return the certificate of a request and its chain as they were sent; remove the fields.

        A field counts if the peer is a trusted proxy only; one of another peer is removed.
        """
        found = {key: environ.pop(key) for key in self._fields if key in environ}
        if not self._field:
            return _of_server(environ)
        if not peer_trusted(environ):
            return None
        found |= environ.get(FORWARDED_CERTIFICATES, {})
        value: str = found.get(self._field, "")
        if not self._hides:
            environ |= {key: found[key] for key in (self._field, _CHAIN) if key in found}
        if not value or (self._field == _LEAF and value.strip(" \t") == _NO_BYTES):
            return None
        return value, found.get(_CHAIN, "") if self._field == _LEAF else ""

    def _checked(self, sent: tuple[str, str], now: float) -> Accepted:
        """Return the certificate that was sent, after all checks that the time does not change.

        :raises CertificateRejected: It is invalid.
        """
        found = self._read(*sent)
        certificate = found.certificate
        since, until = certificate.not_before or 0.0, certificate.not_after or float("inf")
        if not since <= now < until:
            raise CertificateRejected("it is not valid at this time")
        if certificate.fingerprint in self._revoked:
            raise CertificateRejected("it is revoked")
        if self._authorities is not None:
            if found.parsed is None:
                raise CertificateRejected("the proxy sends no certificate that ca could verify")
            until = min(until, self._authorities.verify(found.parsed, found.chain, now))
        claims = certificate.claims()
        name = subject_of(certificate, self._subject)
        identity = Identity(
            name,
            "mtls",
            issuer=certificate.issuer,
            client=certificate.fingerprint,
            claims={"sub": name, **claims},
        )
        return Accepted(certificate, identity, since, until)

    def _read(self, value: str, chain: str) -> ForwardedCertificate:
        if not self._field:
            return from_pem(value)
        if self._field == _LEAF:
            return from_client_cert(value, chain)
        if self._field == _XFCC:
            return from_xfcc(value)
        return from_pem(value, escaped=True)

    def _rejected(
        self,
        response: WSGIApplication,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "ClientCertificate", reason)
        return response(environ, start_response)


def _of_server(environ: WSGIEnvironment) -> tuple[str, str] | None:
    """Return the certificate of the TLS connection, if the server has verified it."""
    verified: str | None = environ.get("SSL_CLIENT_VERIFY")
    if verified is not None:
        pem: str = environ.get("SSL_CLIENT_CERT", "")
        return (pem, "") if verified == "SUCCESS" and pem else None
    # gunicorn's own workers have the socket only; it returns verified certificates alone
    of_socket = getattr(environ.get("gunicorn.socket"), "getpeercert", None)
    der = of_socket(binary_form=True) if of_socket is not None else None
    return (DER_cert_to_PEM_cert(der), "") if der else None


def _authorities(file: str) -> Authorities:
    """Return the authorities of a file.

    :raises ValueError: It cannot be read, or has none.
    """
    try:
        return Authorities(Path(file).read_bytes())
    except OSError as error:
        raise ValueError(f"ca: {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"ca: {file}: {error}") from None
