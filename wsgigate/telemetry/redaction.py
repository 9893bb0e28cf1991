"""Which values the logs mask: those whose names say that they are secrets, and parts of URLs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote_plus

__all__ = ["MASK", "SECRET_MEMBERS", "SECRET_NAMES", "Redaction", "masked"]


MASK = "***"
"""Replaces a value that is masked."""

SECRET_NAMES = (
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "x-auth-token",
    "x-amz-security-token",
    "x-csrf-token",
    "dpop",
    "signature",
    "x-hub-signature-256",
    "x-forwarded-client-cert",
    "token",
    "access_token",
    "refresh_token",
    "id_token",
    "id_token_hint",
    "logout_token",
    "session",
    "sessionid",
    "sid",
    "api_key",
    "apikey",
    "key",
    "password",
    "passwd",
    "pwd",
    "passphrase",
    "secret",
    "client_secret",
    "client_assertion",
    "assertion",
    "credential",
    "credentials",
    "private_key",
    "sig",
    "hmac",
    "jwt",
    "code",
    "code_verifier",
    "state",
    "nonce",
    "otp",
    "pin",
    "samlrequest",
    "samlresponse",
    "x-amz-credential",
    "x-amz-signature",
    "x-goog-credential",
    "x-goog-signature",
)
"""Names of header fields and query parameters that hold credentials.

Case, ``-`` and ``_`` do not matter.
"""

SECRET_MEMBERS = ("key", "keys", "digest", "digests", "sid", "jwt", "pwd", "passwd", "pin", "otp")
"""Names of claims, and of members of documents. Others, such as ``state``, are not secret there."""

_WORDS = re.compile(
    "token|secret|passw|passphrase|apikey|privatekey|signature|credential|authori[sz]ation|cookie"
)
"""What the name of a secret contains, whatever else: ``X-Gitlab-Token``, ``newPassword``."""

_SEPARATORS = str.maketrans("", "", "-_. []")

_NAMED = 1024  # names whose decision is remembered; clients choose names of parameters


def _plain(name: str) -> str:
    return name.lower().translate(_SEPARATORS)


class Redaction:
    """Decides by names which values are masked.

    A name that contains a word such as ``token``, ``secret`` or ``password`` is always secret.

    :param names: Further names of secret values.
    :param known: The names that are secret by default.
    """

    def __init__(self, names: Iterable[str] = (), *, known: Iterable[str] = SECRET_NAMES) -> None:
        self._names = frozenset(map(_plain, (*names, *known)))
        self._known: dict[str, bool] = {}

    def masks(self, name: str) -> bool:
        """Return whether the value called *name* is masked."""
        known = self._known.get(name)
        if known is None:
            plain = _plain(name)
            known = plain in self._names or _WORDS.search(plain) is not None
            if len(self._known) < _NAMED and len(name) <= 64:
                self._known[name] = known
        return known

    def query(self, query: str) -> str:
        """Return *query* with the values of secret parameters masked.

        A parameter without a ``=`` is kept unless its name is secret: it may be the value of a
        parameter that a ``&`` in it has cut off.
        """
        if not query:
            return query
        return "&".join(map(self._parameter, query.split("&")))

    def _parameter(self, parameter: str) -> str:
        name, equals, value = parameter.partition("=")
        # decoded twice, as some frameworks do: ``to%256ben`` is a token as well
        if (equals and value) and self.masks(unquote_plus(unquote_plus(name))):
            return f"{name}={MASK}"
        return parameter

    def url(self, url: str) -> str:
        """Return *url* without user information and fragment, and with its query redacted."""
        rest, _, _ = url.partition("#")
        rest, mark, query = rest.partition("?")
        scheme, separator, authority = rest.partition("://")
        if separator:
            host, slash, path = authority.partition("/")
            rest = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
        return f"{rest}{mark}{self.query(query)}"

    def members(self, value: Any, depth: int = 4) -> Any:
        """Return a document of mappings and lists with the values of secret members masked.

        What is nested deeper than *depth* is masked as well.
        """
        if isinstance(value, Mapping):
            if not depth:
                return MASK
            return {
                str(name): MASK
                if self.masks(str(name)) and each not in (None, "", True, False)
                else self.members(each, depth - 1)
                for name, each in value.items()
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [self.members(each, depth - 1) for each in value] if depth else MASK
        return value


_MEMBERS = Redaction(known=SECRET_MEMBERS)


def masked(value: Any) -> Any:
    """Return the document *value* with the values of members with secret names masked."""
    return _MEMBERS.members(value)
