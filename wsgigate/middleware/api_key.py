"""Authentication by API keys, which the gateway itself issues to partners and programs.

The middleware looks the key up and puts its owner into ``environ`` as the identity of the caller.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import unquote_plus
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from wsgigate.auth.api_keys import is_well_formed
from wsgigate.auth.challenge import (
    CredentialsMissing,
    bearer_challenge,
    check_realm,
    checked_scopes,
)
from wsgigate.auth.identity import IDENTITY, Identity
from wsgigate.auth.outcomes import Outcomes
from wsgigate.coordination.api_keys import ApiKeys, KeyRejected
from wsgigate.http.caller import Exempt, exempt_of
from wsgigate.http.fields import is_token
from wsgigate.http.problem import Problem, Refuse, answer_with, refused
from wsgigate.http.wsgi import environ_key, is_preflight
from wsgigate.rules.arguments import FieldName, OneOf, Pattern, checked
from wsgigate.runtime.clocks import wall
from wsgigate.runtime.logs import ThrottledLog
from wsgigate.store import StoreError

__all__ = ["ApiKeyAuthenticator", "without_parameter"]

SCHEMES = ("ApiKey", "Bearer")

_PARAMETER = r"[A-Za-z0-9._~-]{1,64}"
_log = logging.getLogger("wsgigate.api_keys")


def without_parameter(query: str, name: str) -> tuple[str, list[str]]:
    """Return *query* without the parameter *name*, and the values of that, decoded.

    The other parameters stay as they are, byte for byte.
    """
    kept, values = [], []
    for part in query.split("&"):
        given, _, value = part.partition("=")
        if unquote_plus(given) == name:
            values.append(unquote_plus(value))
        else:
            kept.append(part)
    return ("&".join(kept), values) if values else (query, values)


@checked
class ApiKeyAuthenticator:
    """Authentication: allow requests with a valid API key only.

    The caller is in ``environ["wsgigate.identity"]``: the owner of the key is its ``subject``, the
    id of the key its ``client``, and its ``claims`` have ``owner`` and ``sub``, which are
    the same, ``plan``, ``key_id`` and ``name``.

    Every invalid key (malformed, unknown, revoked, expired, replaced) gets the same response; the
    cause is in ``environ["wsgigate.reason"]``, for the log. The key itself is in no log, and is
    removed from the request, so that no backend sees it.

    An optional middleware keeps the identity of an authenticator around it if a request has no key.

    :param app: The WSGI application to protect.
    :param keys: The keys.
    :param header: The request field with the key.
    :param authorization: The scheme under which ``Authorization`` may have the key instead:
        ``"ApiKey"`` or ``"Bearer"``. A bearer token that does not have the form of a key counts as
        no key, so that tokens (JWT) can be used beside keys. Default: ``Authorization`` is ignored.
    :param query: The parameter of the query that may have the key instead. URLs are kept in
        histories and in the logs of others. Default: the query is ignored.
    :param hide_credentials: Whether the key is removed from the request before *app* is called, and
        the parameter *query* from the URL in any case.
    :param required: Whether a request without a key is rejected. An invalid key always is.
    :param exempt: Requests that pass unchecked and without an identity: a function of ``environ``,
        or a table of ``addresses``, ``paths``, ``methods`` and a ``rule``, as for a
        :class:`Limiter`.
    :param preflights: Whether CORS preflight requests require a key, which browsers never send.
        Default: they pass without an identity.
    :param scopes: Scopes that the key must have, all of them; otherwise the response is 403.
    :param realm: The name of the protected area, in ``WWW-Authenticate``.
    :param on_store_error: What to do when the keys cannot be read: ``"refuse"`` every key with 503,
        or ``"allow"`` those that this worker has verified before, even if they were revoked since;
        counted in ``store_errors``.
    :param refuse: A function that turns a :class:`Problem` into the WSGI app that responds with it.
    :raises ValueError: An argument is invalid; the message names it.
    """

    def __init__(
        self,
        app: WSGIApplication,
        keys: ApiKeys,
        *,
        header: FieldName = "X-API-Key",
        authorization: Annotated[str, OneOf(SCHEMES)] | None = None,
        query: Annotated[str, Pattern(_PARAMETER, 'a parameter such as "api_key"')] | None = None,
        hide_credentials: bool = True,
        required: bool = True,
        exempt: Exempt | Mapping[str, Any] | None = None,
        preflights: bool = False,
        scopes: Sequence[str] = (),
        realm: str = "api",
        on_store_error: Annotated[str, OneOf(("refuse", "allow"))] = "refuse",
        refuse: Refuse = answer_with,
    ) -> None:
        if not isinstance(keys, ApiKeys):
            raise ValueError(
                'keys: expected ApiKeys, such as ApiKeys(file="keys.json"), '
                f"not {type(keys).__name__}"
            )
        if not is_token(header):
            raise ValueError(f"header: the name of a field, such as X-API-Key, not {header!r}")
        if header.lower() in ("authorization", "cookie"):
            raise ValueError(
                f'header: {header} has other contents, too; use authorization = "ApiKey" for keys '
                "in Authorization"
            )
        if authorization is not None and authorization not in SCHEMES:
            raise ValueError(f'authorization is "ApiKey" or "Bearer", not {authorization!r}')
        if query is not None and not re.fullmatch(_PARAMETER, query):
            raise ValueError(f"query: a parameter such as api_key, not {query!r}")
        if scopes and not required:
            raise ValueError("scopes: cannot be required where a key is optional (required=False)")
        check_realm(realm)
        if on_store_error not in ("allow", "refuse"):
            raise ValueError(f'on_store_error is "allow" or "refuse", not {on_store_error!r}')
        self.app = app
        self._outcomes = Outcomes("api-key")
        refuse = self._outcomes.counting(refuse)
        self._keys = keys
        self._find = keys.find
        self._header = environ_key(header)
        self._scheme = None if authorization is None else authorization.lower()
        self._query = query
        self._elsewhere = authorization is not None or query is not None
        self._hides = hide_credentials
        self._exempt = exempt_of(exempt)
        self._passes_preflights = required and not preflights
        self._required = required
        self._scopes = checked_scopes(scopes)
        self._allows_on_error = on_store_error == "allow"
        effect = "known keys passed" if self._allows_on_error else "they were rejected"
        self._outages = ThrottledLog(
            _log.error,
            f"API keys cannot be read, %s requests with a key since the last such message; "
            f"{effect}: %s",
            wall,
        )
        scheme = authorization or "ApiKey"

        def answer(status: int, detail: str, error: str = "") -> WSGIApplication:
            scope = self._scopes if status == 403 else ()
            challenge = bearer_challenge(realm, scheme=scheme, error=error, scope=scope)
            kind = Problem if error else CredentialsMissing
            return refuse(kind(status, detail, headers=(challenge,)))

        # the codes of RFC 6750 section 3.1, which clients of ApiKey understand as well
        self._missing = answer(401, "API key required!")
        self._invalid = answer(401, "Invalid API key!", "invalid_token")
        self._insufficient = answer(403, "Insufficient scope.", "insufficient_scope")
        self._refuse = refuse
        self._unavailable = refuse(
            Problem(
                503, "API keys cannot be checked at the moment.", headers=(("Retry-After", "5"),)
            )
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if IDENTITY in environ and (self._required or not isinstance(environ[IDENTITY], Identity)):
            del environ[IDENTITY]
        key: str | None = environ.get(self._header)
        if self._hides and key is not None:
            del environ[self._header]
        if self._elsewhere:
            key = self._one(key, environ)
        if self._exempt is not None and self._exempt(environ):
            return self.app(environ, start_response)
        if not key:
            return self._without_key(environ, start_response)
        try:
            identity = self._find(key, environ)
        except KeyRejected as error:
            return self._rejected(error, environ)(environ, start_response)
        except StoreError as error:
            cached = self._during_outage(key, error)
            if cached is None:
                refused(environ, "ApiKeyAuthenticator", f"API keys cannot be read: {error}")
                return self._unavailable(environ, start_response)
            identity = cached
        else:
            if self._outages.ongoing:
                self._outages.resolved(_log.warning, "API keys can be read again")
        environ[IDENTITY] = identity  # also of a rejected request, for the access log
        if self._scopes and not self._scopes <= identity.scopes:
            missing = ", ".join(sorted(self._scopes - identity.scopes))
            refused(
                environ,
                "ApiKeyAuthenticator",
                f"key {identity.client} does not have the scope {missing}",
            )
            return self._insufficient(environ, start_response)
        self._outcomes.accepted(environ)
        return self.app(environ, start_response)

    def hide(self, environ: WSGIEnvironment) -> None:
        """Remove what no app behind it gets from a client."""
        if self._hides:
            environ.pop(self._header, None)
        if self._elsewhere:
            self._one(None, environ)

    @property
    def store_errors(self) -> int:
        """Number of keys that could not be looked up, as the store failed."""
        return self._outages.total

    def _one(self, key: str | None, environ: WSGIEnvironment) -> str | None:
        """Return the key of a request, wherever it may be, and remove it from there.

        Several keys are joined by commas, as servers join fields: that is no valid key.
        """
        found = [] if key is None else [key]
        if self._scheme is not None:
            scheme, _, text = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
            text = text.strip(" ")
            if scheme.lower() == self._scheme and (
                self._scheme != "bearer" or "," in text or is_well_formed(text)
            ):
                found.append(text)
                if self._hides:
                    del environ["HTTP_AUTHORIZATION"]
        if self._query is not None and environ.get("QUERY_STRING"):
            rest, values = without_parameter(environ["QUERY_STRING"], self._query)
            if values:
                environ["QUERY_STRING"] = rest
                found += values
        if self._query is not None:
            for name in ("RAW_URI", "REQUEST_URI"):  # servers have the whole URL in one of these
                path, _, query = environ.get(name, "").partition("?")
                rest, values = without_parameter(query, self._query)
                if values:
                    environ[name] = f"{path}?{rest}" if rest else path
        return ",".join(found) if found else None

    def _without_key(
        self, environ: WSGIEnvironment, start_response: StartResponse
    ) -> Iterable[bytes]:
        if not self._required or (self._passes_preflights and is_preflight(environ)):
            self._outcomes.anonymous(environ)
            return self.app(environ, start_response)
        refused(environ, "ApiKeyAuthenticator", "no API key")
        return self._missing(environ, start_response)

    def _rejected(self, error: KeyRejected, environ: WSGIEnvironment) -> WSGIApplication:
        refused(environ, "ApiKeyAuthenticator", f"bad API key: {error}")
        if not error.wait:
            return self._invalid
        return self._refuse(
            Problem(
                429,
                "Too many invalid API keys.",
                headers=(("Retry-After", str(error.wait)),),
                extensions={"retryAfter": error.wait},
            )
        )

    def _during_outage(self, key: str, error: StoreError) -> Identity | None:
        """Return the identity of a key while the keys cannot be read; None to refuse it."""
        self._keys.check_outage(error)
        self._outages.log(error)
        return self._keys.find_cached(key) if self._allows_on_error else None
