"""Who the caller is: a bearer token (RFC 6750), verified, and its claims for those behind."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.jwt import (
    MAX_LENGTH,
    ClaimRules,
    Keys,
    RequiredClaims,
    Text,
    granted_scopes,
    read_compact,
)
from wsgigate.coordination.denylist import GRACE, DenyList, Identity, identity
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.problem import Problem, Refuse, answer_with
from wsgigate.http.refusals import refused
from wsgigate.http.strict_json import TokenRejected, read_object, shown
from wsgigate.http.wsgi import CLAIMS, is_preflight
from wsgigate.rules.arguments import checked
from wsgigate.runtime import fork
from wsgigate.runtime.clocks import wall
from wsgigate.store import StoreError

__all__ = ["Authenticator"]

# One value of another scheme; a comma may be the seam of two fields that the server joined.
_OTHER_SCHEME = re.compile(r"(?!bearer)[!#$%&'*+.^_`|~0-9a-z-]+(?: [^,]*)?", re.IGNORECASE)
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")  # RFC 6749 section 3.3
SILENCE = 60.0  # seconds between two log records about a store that fails

_log = logging.getLogger("wsgigate.authenticator")


class Verified(NamedTuple):
    """What is known of a token once its signature was verified."""

    claims: dict[str, Any]
    text: str  # the payload, to be read again where claims hold lists or objects; else empty
    until: float
    missing: frozenset[str]
    identity: Identity


@checked
class Authenticator:
    """Let pass who brings a good token, with its claims in ``environ["wsgigate.claims"]``.

    The token is that of the ``Authorization: Bearer`` field and of nowhere else. It must be signed
    by a key that was given here, with an algorithm that was named here, and say itself when it
    ends. Every flaw gets the same answer; which one it was is in ``environ["wsgigate.reason"]``.

    A token that was verified is remembered by its hash until it ends. Each request gets claims of
    its own to change.

    :param app: The WSGI application to protect.
    :param algorithms: Names such as ``HS256`` or ``RS256``; symmetric and asymmetric never mixed.
    :param secret: For ``HS*``: the shared secret, or several while they are rotated.
    :param public_key: For the others: the public key as PEM text, or several.
    :param issuer: What ``iss`` must be, to the letter.
    :param audience: One or several names of this gateway; ``aud`` must hold one of them. A token
        that has an ``aud`` is refused when none is given here.
    :param required: Whether a request without a token is refused. A bad token always is.
    :param exempt: Which requests pass unchecked and without claims: a function of ``environ``, or
        a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a :class:`Limiter`.
    :param preflights: Whether CORS preflight requests need a token, which browsers never send.
        Default: they pass without claims, so that a page can read the response that follows.
    :param scopes: What the token must grant, all of it; else the answer is 403.
    :param invalid_token_status: The answer to a bad token: 401 (RFC 6750), or 403.
    :param leeway: How many seconds the issuer's clock may differ from ours.
    :param max_lifetime: How many seconds may lie between ``iat`` and ``exp``.
    :param typ: What the header's ``typ`` must be: ``at+jwt`` for access tokens of RFC 9068.
    :param required_claims: Names of claims that a token must have, or a table of names and values,
        ``{"token_type": "access", "tenant": ["a", "b"]}``: the claim must be the value, or one of
        them; a claim that is a list must hold one of them.
    :param also_accept: Kinds of tokens that are accepted although they are marked as no access
        tokens: ``refresh``, ``id``, ``logout``, ``action`` (reset a password, verify an address),
        ``event``, ``proof``, ``request`` or ``introspection``. By default a token is rejected whose
        header's ``typ``, or whose claim ``typ``, ``type`` or ``token_type``, names one of these
        (RFC 8725 section 3.11).
    :param realm: Names what is protected in ``WWW-Authenticate``.
    :param cache_size: How many verified tokens are remembered.
    :param deny_list: Tokens that are refused before they end; asked for each request, a remembered
        token's too.
    :param on_store_error: What to do when the store of the deny-list fails: ``"refuse"`` every
        token with 503, or ``"allow"`` those that are good otherwise; counted in ``store_errors``.
    :param clock: Unix time in seconds.
    :param refuse: Turns a problem into the app that answers it.
    :raises ValueError: A setting cannot be, or a key is missing, weak or of the wrong kind.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        algorithms: Sequence[str],
        secret: Text | Sequence[Text] | None = None,
        public_key: Text | Sequence[Text] | None = None,
        issuer: str | None = None,
        audience: str | Sequence[str] | None = None,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        scopes: Sequence[str] = (),
        invalid_token_status: int = 401,
        leeway: float = 30.0,
        max_lifetime: float | None = None,
        typ: str | None = None,
        required_claims: RequiredClaims = (),
        also_accept: Sequence[str] = (),
        realm: str = "api",
        cache_size: int = 10_000,
        deny_list: DenyList | None = None,
        on_store_error: str = "refuse",
        clock: Callable[[], float] = wall,
        refuse: Refuse = answer_with,
    ) -> None:
        if invalid_token_status not in (401, 403):
            raise ValueError(f"invalid_token_status is 401 or 403, not {invalid_token_status!r}")
        if scopes and not required:
            raise ValueError("scopes: cannot be asked for where a token is not required")
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        if deny_list is not None and not isinstance(deny_list, DenyList):
            raise ValueError(f"deny_list: expected a DenyList, not {deny_list!r}")
        self.app = app
        self.store_errors = 0
        self._failing = False  # whether it has failed since it last worked
        self._over = float("-inf")  # which of its failures that were logged is over
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._keys = Keys(algorithms, secret=secret, public_key=public_key)
        self._rules = ClaimRules(
            issuer=issuer,
            audience=audience,
            leeway=leeway,
            max_lifetime=max_lifetime,
            typ=typ,
            required_claims=required_claims,
            also_accept=also_accept,
        )
        if deny_list is not None and self._rules.leeway > GRACE:
            raise ValueError(f"leeway: at most {GRACE:g} s with a deny_list, not {leeway!r}")
        self._deny_list = deny_list
        self._allows_on_error = on_store_error == "allow"
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        self._told = float("-inf")
        self._scopes = _checked_scopes(scopes)
        self._recent = Recent(cache_size)
        self._clock = clock

        def answer(status: int, detail: str, error: str = "", scope: str = "") -> WSGIApplication:
            said = [("realm", realm), ("error", error), ("scope", scope)]
            challenge = ", ".join(f'{name}="{value}"' for name, value in said if value)
            return refuse(
                Problem(status, detail, headers=(("WWW-Authenticate", f"Bearer {challenge}"),))
            )

        _check_realm(realm)
        missing = answer(401, "Access token required!")
        self._missing = missing
        self._without_token = self._no_token if required else app
        self._invalid = answer(invalid_token_status, "Invalid or expired token!", "invalid_token")
        self._insufficient = answer(
            403, "Insufficient scope.", "insufficient_scope", " ".join(sorted(self._scopes))
        )
        unknown = Problem(
            503, "Tokens cannot be checked at the moment.", headers=(("Retry-After", "5"),)
        )
        self._unknown = unknown if deny_list is None else refuse(unknown)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop(CLAIMS, None)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        value: str | None = environ.get("HTTP_AUTHORIZATION")
        if not value:
            if self._passes_preflights and is_preflight(environ):
                return self.app(environ, start_response)
            return self._without_token(environ, start_response)
        try:
            verified = self._look(value)
        except TokenRejected as error:
            refused(environ, "Authenticator", f"bad token: {error}")
            return self._invalid(environ, start_response)
        if verified is None:
            return self._without_token(environ, start_response)
        if self._deny_list is not None:
            refusal = self._refusal(self._deny_list, verified.identity, environ)
            if refusal is not None:
                return refusal(environ, start_response)
        if verified.missing:
            refused(
                environ,
                "Authenticator",
                f"the token does not grant {', '.join(sorted(verified.missing))}",
            )
            return self._insufficient(environ, start_response)
        text = verified.text
        environ[CLAIMS] = json.loads(text) if text else verified.claims.copy()
        return self.app(environ, start_response)

    def _no_token(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refused(environ, "Authenticator", "no token")
        return self._missing(environ, start_response)

    def _refusal(
        self, deny_list: DenyList, token: Identity, environ: WSGIEnvironment
    ) -> WSGIApplication | None:
        """Return what answers a *token* that is denied, or of which that cannot be told."""
        try:
            reason = deny_list.why_denied(token)
        except StoreError as error:
            now = self._clock()
            with self._lock:
                self.store_errors += 1
                self._failing = True
                telling = abs(now - self._told) >= SILENCE
                if telling:
                    self._told = now
            if telling:
                said = "are not asked for" if self._allows_on_error else "cannot be told apart"
                _log.error("denied tokens %s, %s so far: %s", said, self.store_errors, error)
            if self._allows_on_error:
                return None
            refused(environ, "Authenticator", f"the deny-list cannot be read: {error}")
            return self._unknown
        if self._failing:
            self._failing = False
            if self._told != self._over:  # the log has that it failed
                self._over = self._told
                _log.warning("denied tokens are known again")
        if not reason:
            return None
        refused(environ, "Authenticator", f"bad token: {reason}")
        return self._invalid

    def _look(self, value: str) -> Verified | None:
        """Return what the ``Authorization`` field *value* proves; None when it is no bearer's."""
        scheme, _, token = value.partition(" ")
        if scheme != "Bearer" and scheme.lower() != "bearer":
            if _OTHER_SCHEME.fullmatch(value):
                return None
            raise TokenRejected(f"the Authorization field is {shown(scheme)} and more")
        if len(token) > MAX_LENGTH:
            raise TokenRejected(f"a token of {len(token)} characters")
        now = self._clock()
        # All of the token and nothing but the token: two tokens never share an entry.
        name = sha256(token.encode("utf-8", "replace")).digest()
        verified = self._recent.get(name)
        if verified is None:
            verified = self._verify(token, now)
            self._recent.put(name, verified)
        elif now >= verified.until:
            raise TokenRejected("expired since it was verified")
        return verified

    def _verify(self, token: str, now: float) -> Verified:
        if "," in token:
            raise TokenRejected("more than one Authorization field")
        compact = read_compact(token)
        algorithm = compact.header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._keys:
            raise TokenRejected(f"alg is {shown(algorithm)}")
        self._rules.check_header(compact.header)
        if not self._keys.verify(algorithm, compact.signed, compact.signature):
            raise TokenRejected("the signature is by no key of ours")
        claims = read_object(compact.payload, "payload")
        until = self._rules.check(claims, now)
        flat = not any(isinstance(claim, (dict, list)) for claim in claims.values())
        text = "" if flat else compact.payload.decode("utf-8")
        missing = self._scopes - granted_scopes(claims) if self._scopes else self._scopes
        return Verified(claims, text, until, missing, identity(compact.signed, claims))


class Recent:
    """The tokens that were verified lately, at most *size*: two generations, the older dropped.

    Every step is one atomic operation on a dict, so no lock is needed; the worst that two threads
    can do to each other is a token verified twice.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise ValueError(f"cache_size: a number of tokens, 0 or more, not {size!r}")
        self._half = size // 2
        self._young: dict[bytes, Verified] = {}
        self._old: dict[bytes, Verified] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, name: bytes) -> Verified | None:
        found = self._young.get(name)
        if found is None:
            found = self._old.get(name)
            if found is not None:
                self.put(name, found)
        return found

    def put(self, name: bytes, verified: Verified) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        if self._half:
            self._young[name] = verified


def _checked_scopes(scopes: Sequence[str]) -> frozenset[str]:
    if isinstance(scopes, str):
        raise ValueError(f"scopes: expected a list of names, not {scopes!r}")
    for scope in scopes:
        if not isinstance(scope, str) or not _SCOPE.fullmatch(scope):
            raise ValueError(f"scopes: {scope!r} cannot be the name of a scope")
    return frozenset(scopes)


def _check_realm(realm: str) -> None:
    if not realm or not re.fullmatch(r"[ !\x23-\x5b\x5d-\x7e]+", realm):
        raise ValueError(f"realm: printable ASCII without quotes and backslashes, not {realm!r}")
