"""Authentication of webhooks by the signatures of their senders."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.challenge import CredentialsMissing, check_realm
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import Outcomes
from wsgigate.auth.webhooks import (
    ALGORITHMS,
    ENCODINGS,
    PROVIDERS,
    CustomSignature,
    SignedWebhook,
    WebhookRejected,
    WebhookSignatures,
    check_content,
)
from wsgigate.coordination.spent import SpentOnce
from wsgigate.http.bodies import has_body, read_body
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem, Refusal, Refuse, answer_with, refused
from wsgigate.rules.arguments import FieldName, OneOf, Range, Seconds, Trait, checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.store import Store, StoreError
from wsgigate.store.open import Namespaced, OpenedStore
from wsgigate.units import parse_size

__all__ = ["WebhookVerifier"]

_LONGEST_TOLERANCE = 86_400.0
_log = logging.getLogger("wsgigate.webhooks")


@checked
class WebhookVerifier:
    """Authentication: allow webhooks with a valid signature only.

    The caller is in ``environ["wsgigate.identity"]``: *subject*, with the scheme ``webhook``. Its
    claims have the ``provider``, and ``id`` and ``timestamp`` if the sender signs them.

    The body is read before *app* is called, and *app* receives it unchanged, byte for byte. A
    larger one than *max_body* gets a 413.

    :param app: The WSGI application to protect.
    :param secret: The secret that the sender shares with you, or several during rotation. Of
        ``"standard"`` and ``"svix"`` it is in base64, with or without ``whsec_``, or the sender's
        public key (Ed25519), ``whpk_...``.
    :param provider: The form of the signatures: ``"standard"`` (Standard Webhooks), ``"svix"`` (the
        same with the fields of Svix), ``"github"``, ``"stripe"``, ``"slack"``, or ``"hmac"`` for
        any other sender.
    :param subject: The subject of the identity. Default: the provider.
    :param tolerance: Maximum difference between the signed time and the clock, in seconds, at most
        a day. A sender that signs no time, such as GitHub, is not checked.
    :param once: Whether a copy of a request is rejected with 409 within *tolerance*, in every
        worker. The sender's next attempt to deliver the same message is no copy, as it has another
        time. It requires a sender that signs the time.
    :param max_body: Maximum size of the body, in bytes.
    :param header: Of ``"hmac"``: the field with the signature, such as ``X-Shopify-Hmac-Sha256``.
    :param prefix: Of ``"hmac"``: what the field has before the signature, such as ``"sha256="``.
    :param encoding: Of ``"hmac"``: ``"hex"`` or ``"base64"``.
    :param algorithm: Of ``"hmac"``: ``"sha256"``, ``"sha384"`` or ``"sha512"``.
    :param timestamp_header: Of ``"hmac"``: the field with the Unix time of the attempt in seconds.
    :param content: Of ``"hmac"``: what is signed, with ``{body}`` and ``{timestamp}``. Default:
        ``"{timestamp}.{body}"`` with *timestamp_header*, ``"{body}"`` without.
    :param required: Whether a request without a signature is rejected. An invalid one always is.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param store: Where the copies of *once* are recognized: a store, or its URL. Default: a
        directory of this machine that all workers of this app share and no other app does.
    :param namespace: Separates apps that share a store. Default: derived from the name of the code
        of *app*.
    :param on_store_error: What *once* does when the store fails: ``"refuse"`` every webhook with
        503, or ``"allow"`` valid ones, copies included; counted in ``store_errors``.
    :param clock: Returns the Unix time in seconds.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it, and shows no secret.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        secret: Annotated[str, Trait.SECRET]
        | Annotated[Sequence[Annotated[str, Trait.SECRET]], Range(1)]
        | None = None,
        provider: Annotated[str, OneOf(PROVIDERS)] = "standard",
        subject: str | None = None,
        tolerance: Seconds = 300.0,
        once: bool = False,
        max_body: Annotated[int | str, Trait.BYTES] = "1MiB",
        header: FieldName | None = None,
        prefix: str = "",
        encoding: Annotated[str, OneOf(ENCODINGS)] = "hex",
        algorithm: Annotated[str, OneOf(ALGORITHMS)] = "sha256",
        timestamp_header: FieldName | None = None,
        content: str | None = None,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        realm: str = "api",
        store: Store | str | None = None,
        namespace: str | None = None,
        on_store_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        clock: Callable[[], float] = wall,
        refuse: Refuse = answer_with,
    ) -> None:
        if provider not in PROVIDERS:
            raise ValueError(f"provider: one of {', '.join(PROVIDERS)}, not {provider!r}")
        custom = CustomSignature(
            header or "", prefix, encoding, algorithm, timestamp_header, content
        )
        timed = provider != "github" and (provider != "hmac" or timestamp_header is not None)
        _check_custom(provider, custom)
        if isinstance(tolerance, bool) or not 0 < tolerance <= _LONGEST_TOLERANCE:
            raise ValueError(f"tolerance: above 0 s, at most a day, not {tolerance!r}")
        if once and not timed:
            raise ValueError(
                f'once: requires a signed time, which "{provider}" does not have here: a copy of a '
                "request looks like another attempt to deliver it"
            )
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        if subject is not None and (not isinstance(subject, str) or not subject):
            raise ValueError(f"subject: a text such as billing-events, not {subject!r}")
        check_realm(realm)
        try:
            self._max_body = parse_size(max_body)
        except ValueError as error:
            raise ValueError(f"max_body: {error}") from None
        try:
            self._signatures = WebhookSignatures(
                provider, _secrets(secret), custom if provider == "hmac" else None
            )
        except ValueError as error:
            raise ValueError(f"secret: {error}") from None
        self.app = app
        self._outcomes = Outcomes("webhook")
        refuse = self._outcomes.counting(refuse)
        self._provider = provider
        self._subject = subject or provider
        self._tolerance = tolerance
        self._opened = OpenedStore(store, app, namespace=namespace) if once else None
        self._spent = (
            None if self._opened is None else SpentOnce(Namespaced(self._opened), "webhook")
        )
        self._allows_on_error = on_store_error == "allow"
        effect = "passed unmarked" if self._allows_on_error else "were rejected"
        self._outages = ThrottledLog(
            _log.error,
            f"webhooks cannot be marked as received, %s requests {effect} since the last such "
            "message: %s",
            clock,
        )
        self._required = required
        self._exempt = exempt_of(exempt)
        self._clock = clock
        self._refuse = refuse
        headers = (("WWW-Authenticate", f'Webhook realm="{realm}"'),)
        self._missing = refuse(CredentialsMissing(401, "Signature required!", headers=headers))
        self._invalid = refuse(Problem(401, "Invalid signature!", headers=headers))
        self._copy = refuse(Problem(409, "This request was received before."))
        self._unavailable = refuse(
            Problem(
                503, "Webhooks cannot be checked at the moment.", headers=(("Retry-After", "5"),)
            )
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not isinstance(environ[IDENTITY], Identity)):
            del environ[IDENTITY]
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        now = self._clock()
        try:
            signed = self._signatures.read(environ)
            if signed is None:
                if not self._required:
                    self._outcomes.anonymous(environ)
                    return self.app(environ, start_response)
                return self._rejected(self._missing, "no signature", environ, start_response)
            if signed.time is not None and abs(now - signed.time) > self._tolerance:
                raise WebhookRejected(f"signed {now - signed.time:.0f} s ago")
            body = self._body(environ)
            self._signatures.verify(signed, body)
        except WebhookRejected as error:
            reason = f"bad signature: {error}"
            return self._rejected(self._invalid, reason, environ, start_response)
        except Refusal as error:
            response = self._refuse(error.problem)
            return self._rejected(response, str(error), environ, start_response)
        refusal = self._refusal(signed, body, now)
        if refusal is not None:
            return self._rejected(*refusal, environ, start_response)
        environ[IDENTITY] = self._identity(signed)
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    @property
    def store_errors(self) -> int:
        """Number of webhooks that could not be marked as received, as the store failed."""
        return self._outages.total

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        if self._opened is not None:
            self._opened.close()

    def _body(self, environ: WSGIEnvironment) -> bytes:
        """Return the body, and put it back unchanged.

        :raises Refusal: It is too large, or cannot be read to its end.
        """
        if environ.get("HTTP_TRANSFER_ENCODING") and environ.get("CONTENT_LENGTH"):
            raise Refusal.of(400, "Ambiguous body length.")
        body = read_body(environ, self._max_body) if has_body(environ) else b""
        environ["wsgi.input"] = io.BytesIO(body)
        if environ.pop("HTTP_TRANSFER_ENCODING", None) is not None or body:
            environ["CONTENT_LENGTH"] = str(len(body))
        return body

    def _refusal(
        self, signed: SignedWebhook, body: bytes, now: float
    ) -> tuple[WSGIApplication, str] | None:
        """Return the response to a copy of a request, and why; None to let it pass."""
        if self._spent is None or signed.time is None:
            return None
        seconds = max(0.0, signed.time + self._tolerance - now)
        try:
            first = self._spent.spend(
                self._provider,
                self._subject,
                self._signatures.fingerprint(signed, body),
                seconds=seconds,
            )
        except StoreError as error:
            if self._opened is not None:
                self._opened.check_outage(error, "received webhooks cannot be stored")
            self._outages.log(error)
            if self._allows_on_error:
                return None
            return self._unavailable, f"the webhook cannot be marked as received: {error}"
        if self._outages.ongoing:
            self._outages.resolved(_log.warning, "webhooks can be marked as received again")
        return None if first else (self._copy, "a copy of a request that was received before")

    def _identity(self, signed: SignedWebhook) -> Identity:
        claims: dict[str, Any] = {"sub": self._subject, "provider": self._provider}
        if signed.id is not None:
            claims["id"] = signed.id
        if signed.time is not None:
            claims["timestamp"] = signed.time
        return Identity(self._subject, "webhook", issuer=self._provider, claims=claims)

    def _rejected(
        self,
        response: WSGIApplication,
        reason: str,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> Iterable[bytes]:
        refused(environ, "WebhookVerifier", reason)
        return response(environ, start_response)


def _secrets(secret: object) -> Sequence[str]:
    """Return the secrets as a list.

    :raises ValueError: There is none, or one is no text.
    """
    if secret is None:
        raise ValueError("is required: the secret that the sender shares with you")
    secrets = [secret] if isinstance(secret, str) else secret
    if not isinstance(secrets, (list, tuple)) or not secrets:
        raise ValueError("expected a text, or a list of texts")
    if not all(isinstance(each, str) and each for each in secrets):
        raise ValueError("is empty, or no text")
    return secrets


_OF_HMAC = ("header", "prefix", "encoding", "algorithm", "timestamp_header", "content")


def _check_custom(provider: str, custom: CustomSignature) -> None:
    """Check the arguments that are for ``hmac``.

    :raises ValueError: One is invalid, or the provider is another one.
    """
    plain = CustomSignature("")
    if provider != "hmac":
        for name in _OF_HMAC:
            if getattr(custom, name) != getattr(plain, name):
                raise ValueError(f'{name}: applies to provider = "hmac" only, not "{provider}"')
        return
    for name in ("header", "timestamp_header"):
        value = getattr(custom, name)
        if value is not None and (not isinstance(value, str) or not is_token(value)):
            raise ValueError(f"{name}: the name of a field, such as X-Signature, not {value!r}")
    if custom.encoding not in ENCODINGS:
        raise ValueError(f"encoding: one of {', '.join(ENCODINGS)}, not {custom.encoding!r}")
    if custom.algorithm not in ALGORITHMS:
        raise ValueError(f"algorithm: one of {', '.join(ALGORITHMS)}, not {custom.algorithm!r}")
    if custom.content is not None:
        check_content(custom.content, custom.timestamp_header is not None)
