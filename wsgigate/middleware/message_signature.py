"""Authentication by HTTP message signatures (RFC 9421), without a token or a password on the wire.

The rules are in :mod:`wsgigate.auth.message_signature`. What is checked comes in the order of its
cost, so that a request without a valid signature costs little, and nothing of its body is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import (
    CredentialsMissing,
    bearer_challenge,
    check_realm,
    checked_scopes,
)
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.message_signature import (
    ReceivedSignature,
    SignatureRejected,
    SignatureRules,
    Signer,
    check_digest,
    check_installed,
    digests_of,
)
from wsgigate.auth.outcomes import Outcomes
from wsgigate.coordination.spent import SpentOnce
from wsgigate.http.bodies import buffer_body, client_body, has_body
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.client_url import client_url
from wsgigate.http.fields import connection_tokens
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, refused
from wsgigate.http.target import BadTarget
from wsgigate.http.wsgi import BodyError, BodyTooLarge, environ_key, is_preflight
from wsgigate.rules.arguments import OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.store import Store, StoreError
from wsgigate.store.open import Namespaced, OpenedStore
from wsgigate.units import parse_size

__all__ = ["SignatureAuthenticator"]

_BLOCK = 64 * 1024
_INPUT, _SIGNATURE, _DIGEST = "HTTP_SIGNATURE_INPUT", "HTTP_SIGNATURE", "HTTP_CONTENT_DIGEST"
_log = logging.getLogger("wsgigate.signatures")


@checked
class SignatureAuthenticator:
    """Authentication: allow requests with a valid signature only (HTTP message signatures).

    The caller is in ``environ["wsgigate.identity"]``: the ``subject`` of the signer, and the id of
    the key as ``client``.

    A signature (RFC 9421) must cover the method and the whole URL: ``@method`` and ``@target-uri``,
    or ``@authority``, ``@scheme``, ``@path`` and ``@query`` instead of the latter. If the request
    has a body it must cover ``content-digest`` (RFC 9530), and the body is read and compared before
    *app* is called. The URL is the one that the client used: behind a trusted proxy with the scheme
    and the host that the proxy reports, and in the form that is forwarded.

    Each signature is accepted once, by all workers that share the store: one with a ``nonce`` by
    that, another by what it signs. So a client that sends the same request twice in one second
    needs a nonce.

    Every invalid signature gets the same response; the cause is in ``environ["wsgigate.reason"]``,
    for the log. It requires http-message-signatures: ``pip install "wsgigate[signatures]"``.

    An optional middleware keeps the identity of an authenticator around it if a request has no
    signature.

    :param app: The WSGI application to protect.
    :param signers: The callers and their keys: each a :class:`~wsgigate.Signer`, or a table of its
        arguments.
    :param tag: The ``tag`` of the signatures that are meant for this gateway; others are ignored.
        Default: signatures with any tag, or none.
    :param components: Further components that a signature must cover, such as ``"content-type"``.
    :param max_age: Maximum time since a signature was made (``created``), in seconds, 1 to 86400.
    :param leeway: Allowed difference of the client's clock, in seconds, 0 to 300.
    :param require_nonce: Whether a signature must have a ``nonce``.
    :param max_body: Maximum size of a signed body, which is kept in memory, in bytes; text such as
        ``"64KiB"`` is allowed. A larger one gets a 413.
    :param required: Whether a request without a signature is rejected. An invalid one always is.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require a signature, which browsers never
        send. Default: they pass without an identity.
    :param scopes: Scopes that the signer must have, all of them; otherwise the response is 403.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param on_store_error: What to do when the store of used signatures fails: ``"refuse"`` every
        request with 503, or ``"allow"`` those that are valid otherwise, which may then be sent
        again until they are too old; counted in ``store_errors``.
    :param store: Where used signatures are marked: a store, or its URL. Default: a directory of
        this machine that all workers of this app share and no other app does.
    :param namespace: Separates apps that share a store. Default: derived from the file and the name
        of the code of *app*.
    :param clock: Returns the Unix time in seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid, or http-message-signatures is not installed.
    """

    def __init__(
        self,
        app: WSGIApplication,
        signers: Annotated[Sequence[Signer | Mapping[str, Any]], Range(1)],
        *,
        tag: str | None = None,
        components: Sequence[str] = (),
        max_age: Seconds = 60.0,
        leeway: Annotated[Seconds, Range(0)] = 5.0,
        require_nonce: bool = False,
        max_body: Annotated[int | str, Trait.BYTES] = "10MiB",
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        scopes: Sequence[str] = (),
        realm: str = "api",
        on_store_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        store: Store | str | None = None,
        namespace: str | None = None,
        clock: Callable[[], float] = wall,
        refuse: Refuse = answer_with,
    ) -> None:
        if isinstance(components, str):
            raise ValueError(f'components: expected a list such as ["date"], not {components!r}')
        if scopes and not required:
            raise ValueError(
                "scopes: cannot be required where a signature is optional (required=False)"
            )
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        check_realm(realm)
        try:
            self._max_body = parse_size(max_body)
        except ValueError as error:
            raise ValueError(f"max_body: {error}") from None
        check_installed()
        self.app = app
        self._outcomes = Outcomes("signature")
        refuse = self._outcomes.counting(refuse)
        self._rules = SignatureRules(
            _signers(signers),
            tag=tag,
            components=components,
            max_age=max_age,
            leeway=leeway,
            require_nonce=require_nonce,
        )
        self._required = required
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._scopes = checked_scopes(scopes)
        self._opened = OpenedStore(store, app, namespace=namespace)
        self._spent = SpentOnce(Namespaced(self._opened), "signature")
        self._allows_on_error = on_store_error == "allow"
        effect = "passed unmarked" if self._allows_on_error else "were rejected"
        self._outages = ThrottledLog(
            _log.error,
            "signatures cannot be marked as used, %s requests "
            f"{effect} since the last such message: %s",
            clock,
        )
        self._clock = clock
        self._refuse = refuse
        wanted = ("Accept-Signature", self._rules.accepted)

        def challenge(error: str = "", scope: Iterable[str] = ()) -> tuple[str, str]:
            return bearer_challenge(realm, scheme="Signature", error=error, scope=scope)

        self._missing = refuse(
            CredentialsMissing(401, "Signature required!", headers=(challenge(), wanted))
        )
        self._invalid = refuse(
            Problem(401, "Invalid signature!", headers=(challenge("invalid_signature"), wanted))
        )
        self._insufficient = refuse(
            Problem(
                403,
                "Insufficient scope.",
                headers=(challenge("insufficient_scope", self._scopes),),
            )
        )
        self._too_large = refuse(
            Problem(413, f"A signed request body is at most {self._max_body} bytes.")
        )
        self._unavailable = refuse(
            Problem(
                503, "Signatures cannot be checked at the moment.", headers=(("Retry-After", "5"),)
            )
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not isinstance(environ[IDENTITY], Identity)):
            del environ[IDENTITY]
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        given, signature = environ.get(_INPUT), environ.get(_SIGNATURE)
        if not given and not signature:
            if not self._required or (self._passes_preflights and is_preflight(environ)):
                self._outcomes.anonymous(environ)
                return self.app(environ, start_response)
            refused(environ, "SignatureAuthenticator", "no signature")
            return self._missing(environ, start_response)
        try:
            found, used = self._verified(given or "", signature or "", environ)
        except (SignatureRejected, BadTarget) as error:
            return self._rejected(self._invalid, f"bad signature: {error}", environ, start_response)
        except BodyTooLarge as error:
            return self._rejected(self._too_large, str(error), environ, start_response)
        except BodyError as error:
            broken = self._refuse(Problem(400, "The body could not be read to its end."))
            return self._rejected(broken, str(error), environ, start_response)
        except Refusal as error:
            answer = self._refuse(error.problem)
            return self._rejected(answer, str(error), environ, start_response)
        replay = self._refusal_of_replay(found, used)
        if replay is not None:
            return self._rejected(*replay, environ, start_response)
        identity = found.key.identity
        if self._scopes and not self._scopes <= identity.scopes:
            missing = ", ".join(sorted(self._scopes - identity.scopes))
            reason = f"the signer {identity.subject} does not have the scope {missing}"
            return self._rejected(self._insufficient, reason, environ, start_response)
        environ[IDENTITY] = identity
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    @property
    def store_errors(self) -> int:
        """Number of signatures that could not be marked as used, as the store failed."""
        return self._outages.total

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._opened.close()

    def _verified(
        self, given: str, signature: str, environ: WSGIEnvironment
    ) -> tuple[ReceivedSignature, tuple[str, str]]:
        """Return the valid signature of a request, and what it is marked as used by."""
        now = self._clock()
        found = self._rules.candidate(given, signature, has_body=has_body(environ), now=now)
        fields = _covered_fields(found, environ)
        digests = digests_of(fields["content-digest"]) if found.covers_digest else None
        url = client_url(environ)
        signed = self._rules.verify(found, environ["REQUEST_METHOD"], url, fields)
        if digests is not None:
            self._check_body(digests, environ)
        return found, ("nonce", found.nonce) if found.nonce else ("signed", signed.hex())

    def _check_body(self, digests: Mapping[str, bytes], environ: WSGIEnvironment) -> None:
        """Check the digests of the body, and leave one that can be read from its beginning."""
        length = environ.get("CONTENT_LENGTH") or "0"
        if length.isascii() and length.isdigit() and int(length[:18]) > self._max_body:
            raise BodyTooLarge(f"a signed body of {length[:18]} bytes")
        kept = buffer_body(environ, self._max_body)
        body = client_body(environ)

        def block() -> bytes:
            part = b"" if body is None else body.read(_BLOCK)
            if kept is not None and kept.too_large:
                raise BodyTooLarge(f"a signed body of more than {self._max_body} bytes")
            return part

        try:
            check_digest(digests, block)
        finally:
            if kept is not None:
                kept.rewind()

    def _refusal_of_replay(
        self, found: ReceivedSignature, used: tuple[str, str]
    ) -> tuple[WSGIApplication, str] | None:
        """Mark a valid signature as used; return the response if it was before, and why."""
        try:
            first = self._spent.spend(found.key.id, *used, seconds=found.seconds)
        except StoreError as error:
            self._opened.check_outage(error, "used signatures cannot be stored")
            self._outages.log(error)
            if self._allows_on_error:
                return None
            return self._unavailable, f"the signature cannot be marked as used: {error}"
        if self._outages.ongoing:
            self._outages.resolved(_log.warning, "signatures can be marked as used again")
        return None if first else (self._invalid, f"bad signature: it was used before ({used[0]})")

    def _rejected(
        self,
        response: WSGIApplication,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "SignatureAuthenticator", reason)
        return response(environ, start_response)


def _signers(given: Sequence[Signer | Mapping[str, Any]]) -> list[Signer]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence) or not given:
        raise ValueError(
            f"signers: expected a list such as [Signer(...)], not {type(given).__name__}"
        )
    made = []
    for number, each in enumerate(given):
        if isinstance(each, Signer):
            made.append(each)
            continue
        if not isinstance(each, Mapping):
            raise ValueError(f"signers[{number}]: expected a table, not {type(each).__name__}")
        try:
            made.append(Signer(**each))
        except ValueError as error:
            raise ValueError(f"signers[{number}].{error}") from None
        except TypeError as error:  # an unknown or a missing argument
            reason = str(error).removeprefix("Signer.__init__() ")
            raise ValueError(f"signers[{number}]: {reason}") from None
    return made


def _covered_fields(found: ReceivedSignature, environ: WSGIEnvironment) -> dict[str, str]:
    """Return the values of the fields that a signature covers.

    :raises SignatureRejected: One is missing, or is removed before the request is forwarded.
    """
    try:
        removed = connection_tokens(environ.get("HTTP_CONNECTION", ""))
    except ValueError as error:
        raise SignatureRejected(str(error)) from None
    values = {}
    for name in found.fields:
        if name in removed:
            raise SignatureRejected(f"the covered field {name} is listed in Connection")
        value = environ.get(environ_key(name))
        if value is None or (value == "" and name in ("content-type", "content-length")):
            raise SignatureRejected(f"the covered field {name} is missing")
        values[name] = value
    return values
