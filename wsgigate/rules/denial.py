"""Which tokens are denied before they end: a single one, or all that a subject was issued before.

What is denied is kept under a key of its own, by hashes: a store sees no token and no name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from wsgigate.rules.compact import TokenRejected, read_compact, read_object

__all__ = [
    "GRACE",
    "LONGEST",
    "Identity",
    "covers",
    "end_of",
    "entry_of_jti",
    "entry_of_subject",
    "entry_of_token",
    "extended",
    "extended_subject",
    "hit",
    "identity",
]

GRACE = 86400.0
"""For how many seconds more than asked a denial is kept: no clock and no leeway is further off."""
LONGEST = 3660 * 86400.0
"""In how many seconds the last of the denied tokens may end."""

_SINGLE = struct.Struct(">d")  # until
_SUBJECT = struct.Struct(">dd")  # before, until


class Identity(NamedTuple):
    """What a verified token can be denied by."""

    token: str
    """Names its entry as a token."""
    jti: str
    """Names its entry by its ``jti``; empty without one."""
    subject: str
    """Names the entry of its ``sub``; empty without one."""
    issued: float | None
    """Its ``iat``."""


def identity(signed: bytes, claims: Mapping[str, Any]) -> Identity:
    """Return what the token with *claims* is denied by.

    :param signed: What its signature is over. The signature itself does not count, as that of an
        elliptic curve can be changed into another good one by anybody.
    """
    jti, sub, iat = claims.get("jti"), claims.get("sub"), claims.get("iat")
    return Identity(
        entry_of_token(signed),
        entry_of_jti(jti) if isinstance(jti, str) and jti else "",
        entry_of_subject(sub) if isinstance(sub, str) and sub else "",
        float(iat) if isinstance(iat, (int, float)) else None,
    )


def entry_of_token(signed: bytes) -> str:
    """Return the name of the entry of a token: of what its signature is over."""
    return "token/" + sha256(signed).hexdigest()


def entry_of_jti(jti: str) -> str:
    """Return the name of the entry of the tokens with this ``jti``."""
    return "jti/" + _hashed(jti)


def entry_of_subject(sub: str) -> str:
    """Return the name of the entry of the tokens of this ``sub``."""
    return "subject/" + _hashed(sub)


def _hashed(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def end_of(token: str) -> tuple[str, float]:
    """Return the name of the entry of *token*, and when it says that it ends.

    Its signature is not looked at: whoever may deny a token may deny any.

    :raises ValueError: It is no token, or says no end.
    """
    try:
        compact = read_compact(token)
        exp = read_object(compact.payload, "payload").get("exp")
    except TokenRejected as error:
        raise ValueError(f"token: {error}") from None
    if isinstance(exp, bool) or not isinstance(exp, (int, float)) or abs(exp) > 2.0**53:
        raise ValueError("token: it does not say when it ends (exp)")
    return entry_of_token(compact.signed), float(exp)


def hit(found: Identity) -> Iterator[tuple[str, str]]:
    """Yield each entry that can deny *found*, and what is said if it does."""
    yield found.token, "the token was denied"
    if found.jti:
        yield found.jti, "its jti was denied"
    if found.subject:
        yield found.subject, "what its subject was issued by then was denied"


def covers(entry: str, value: bytes, issued: float | None) -> bool:
    """Tell whether *value* of *entry* denies a token issued at *issued*.

    A value that cannot be read denies, and so does that of a subject a token without ``iat``.
    """
    if not entry.startswith("subject/") or len(value) != _SUBJECT.size or issued is None:
        return True
    before: float = _SUBJECT.unpack(value)[0]
    return not issued >= before


def extended(old: bytes | None, until: float) -> tuple[bytes, float]:
    """Return the value that denies until *until* and no shorter than *old*, and its end."""
    if old is not None and len(old) == _SINGLE.size:
        (earlier,) = _SINGLE.unpack(old)
        until = max(until, earlier)
    return _SINGLE.pack(until), until


def extended_subject(old: bytes | None, before: float, until: float) -> tuple[bytes, float]:
    """Return the value that denies all that *old* does and what was issued before *before*."""
    if old is not None and len(old) == _SUBJECT.size:
        earlier, end = _SUBJECT.unpack(old)
        before, until = max(before, earlier), max(until, end)
    return _SUBJECT.pack(before, until), until
