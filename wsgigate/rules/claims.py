"""Where a value stands in a verified caller: the one syntax for claims and identity fields.

``sub`` is a claim. ``realm_access.roles`` is a claim inside another. A name that contains a dot, a
space or a quotation mark is put into double quotes, with ``\\"`` and ``\\\\`` inside:
``resource_access."orders.api".roles``. A URL needs no quotes if it is the whole path, as in
``https://example.com/roles``, for providers that demand URLs as names of custom claims.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from typing import Any, Protocol

__all__ = ["FIELDS", "CallerValue", "ClaimPath", "VerifiedCaller", "names_one_of"]

_NAME = re.compile(r'[^\s."\x00-\x1f\x7f-\x9f]+|"((?:[^"\\\x00-\x1f\x7f-\x9f]|\\["\\])+)"')

_URL = re.compile(r'[A-Za-z][A-Za-z0-9+-]*://[^\s"\x00-\x1f\x7f-\x9f]+')

_ESCAPE = re.compile(r'\\(["\\])')


class ClaimPath:
    """The path of a claim, which may be inside another.

    :param text: Names separated by dots, as described above.
    :raises ValueError: *text* is malformed; the message has the cause and the cure.
    """

    __slots__ = ("names", "text")

    def __init__(self, text: str) -> None:
        if not isinstance(text, str) or not text:
            raise ValueError(
                f'expected the path of a claim, such as "realm_access.roles", not {text!r}'
            )
        self.text = text
        self.names = (text,) if _URL.fullmatch(text) else _names(text)

    def find(self, claims: Mapping[str, Any], missing: object = None) -> Any:
        """Return the value in *claims*, *missing* if there is none."""
        value: Any = claims
        try:
            for name in self.names:
                value = value[name]
        except (KeyError, TypeError):  # a text, a number or a list has no names
            return missing
        return value

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"ClaimPath({self.text!r})"


def _names(text: str) -> tuple[str, ...]:
    names = []
    place = 0
    while True:
        found = _NAME.match(text, place)
        if found is None:
            raise _malformed(text, place)
        quoted = found[1]
        names.append(found[0] if quoted is None else _ESCAPE.sub(r"\1", quoted))
        place = found.end()
        if place == len(text):
            return tuple(names)
        if text[place] != ".":
            raise _malformed(text, place)
        place += 1


def _malformed(text: str, place: int) -> ValueError:
    rest = text[place:]
    if rest.startswith('"') and not _NAME.match(rest):
        cause = 'a quotation mark is not closed, or \\" and \\\\ are missing in a quoted name'
    elif not rest or rest.startswith("."):
        cause = "a name is empty"
    else:
        cause = f"{rest[0]!r} is not allowed outside double quotes"
    return ValueError(
        f"{text!r} is not the path of a claim: {cause}; names are separated by dots, and a name "
        'with other characters is put into double quotes: realm_access."my role"'
    )


def names_one_of(value: object, names: Set[str]) -> bool:
    """Return whether the *value* of a claim has one of *names*.

    A text is one name, whatever it contains; a list has several. Any other type has none.
    """
    if isinstance(value, str):
        return value in names
    if isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, str) and item in names:
                return True
    return False


class VerifiedCaller(Protocol):
    """What these rules need of a :class:`~wsgigate.auth.identity.Identity`."""

    @property
    def subject(self) -> str | None: ...
    @property
    def scheme(self) -> str: ...
    @property
    def issuer(self) -> str | None: ...
    @property
    def client(self) -> str | None: ...
    @property
    def claims(self) -> Mapping[str, Any]: ...
    @property
    def scopes(self) -> frozenset[str]: ...


FIELDS = ("subject", "client", "issuer", "scheme", "scopes")
"""The fields of an identity that can be named like a claim."""


class CallerValue:
    """A value of a verified caller: a field of its identity, or a claim.

    :param text: ``subject``, ``client``, ``issuer``, ``scheme``, ``scopes``, or the path of a
        claim; ``claim:PATH`` is always a claim.
    :raises ValueError: *text* is malformed.
    """

    __slots__ = ("_path", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        field = isinstance(text, str) and text in FIELDS
        self._path = None if field else ClaimPath(_without_prefix(text))

    def find(self, caller: VerifiedCaller) -> Any:
        """Return the value; None if the caller has none. Scopes are sorted."""
        if self._path is not None:
            return self._path.find(caller.claims)
        value = getattr(caller, self.text)
        return tuple(sorted(value)) if self.text == "scopes" else value


def _without_prefix(text: str) -> str:
    return text.removeprefix("claim:") if isinstance(text, str) else text
