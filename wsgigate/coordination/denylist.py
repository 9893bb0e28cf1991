"""Tokens that are refused before they end, told to all that share a store."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from wsgigate.auth.jwt import read_compact
from wsgigate.http.strict_json import TokenRejected, read_object, shown
from wsgigate.rules.arguments import checked
from wsgigate.runtime.clocks import steady
from wsgigate.store import Change, Store, update
from wsgigate.store.open import Namespaced, OpenedStore

__all__ = [
    "DenyList",
    "GRACE",
    "Identity",
    "LONGEST",
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


# Which tokens are denied before they end: a single one, or all that a subject was issued before.
#
# What is denied is kept under a key of its own, by hashes: a store sees no token and no name.

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


RECHECK = 30.0
"""For how many seconds at most a token that was found good is not looked up again."""


class _Known(NamedTuple):
    generation: bytes | None
    read: float
    since: float
    good: set[str]


@checked
class DenyList:
    """Tokens that are refused before they end, known to every worker that shares the store.

    Whatever is denied changes a mark in the store. A worker reads that mark at most every
    *staleness* seconds, and looks a token up again only if it has changed, and every half a minute;
    so a request costs a lookup in memory, a read of the store now and then, and a worker refuses
    what another one has denied *staleness* seconds later at the latest; itself, at once.

    :param store: What the workers share: a store, or the URL of one.
    :param namespace: Whose list it is, where several share a store; all with the same one share it.
        Default: whoever names the store.
    :param staleness: For how many seconds the mark is believed, 0 to 60; 0 reads it each time.
    :param cache_size: How many tokens that were found good are remembered.
    :param clock: Tells seconds that only go forward.
    :raises ValueError: One of the settings is wrong; says which.
    """

    PREFIX = "deny/"

    def __init__(
        self,
        store: Store | str,
        *,
        namespace: str | None = None,
        staleness: float = 1.0,
        cache_size: int = 10_000,
        clock: Callable[[], float] = steady,
    ) -> None:
        if not isinstance(staleness, (int, float)) or not 0 <= staleness <= 60:
            raise ValueError(f"staleness: 0 to 60 seconds, not {staleness!r}")
        if isinstance(cache_size, bool) or not isinstance(cache_size, int) or cache_size < 0:
            raise ValueError(f"cache_size: a number of tokens, 0 or more, not {cache_size!r}")
        if store is None:
            raise ValueError("store: a store or the URL of one, not None")
        self._opened = OpenedStore(store, namespace=namespace)
        self._mine = Namespaced(self._opened)
        self._staleness = staleness
        self._size = cache_size
        self._clock = clock
        self._known: _Known | None = None

    @property
    def store(self) -> Store:
        """What the workers share."""
        return self._mine

    def deny_token(self, token: str, until: float | None = None) -> float:
        """Deny this one token, whatever signature it is sent with.

        :param token: The token as it is sent, without ``Bearer``.
        :param until: Unix time at which it ends; unless said, its own ``exp``.
        :returns: *until*.
        :raises ValueError: It is no token, or names no end; or *until* is no such time.
        :raises StoreError: The store failed: it may be denied, or not.
        """
        entry, end = end_of(token)
        return self._deny(entry, end if until is None else until)

    def deny_jti(self, jti: str, until: float) -> float:
        """Deny the token with this ``jti``.

        :param until: Unix time at which it ends: thereafter it is not denied, but over.
        :returns: *until*, or the later one that it is denied until already.
        :raises ValueError: *jti* or *until* cannot be.
        :raises StoreError: The store failed: it may be denied, or not.
        """
        return self._deny(entry_of_jti(_text("jti", jti)), until)

    def deny_subject(self, sub: str, before: float, until: float) -> float:
        """Deny every token that *sub* was issued before a moment, whoever issued it.

        A token counts by its ``iat``, which most issuers cut to whole seconds; one without it is
        denied whenever it was issued. A denial never takes back an earlier one.

        :param before: Unix time, by the issuer's clock: those with an ``iat`` below are denied.
        :param until: Unix time at which the last of them ends.
        :returns: *until*, or the later one of an earlier denial.
        :raises ValueError: One of them cannot be.
        :raises StoreError: The store failed: they may be denied, or not.
        """
        moment = _moment("before", before)
        entry = entry_of_subject(_text("sub", sub))
        return self._write(entry, until, lambda old, end: extended_subject(old, moment, end))

    def why_denied(self, token: Identity) -> str:
        """Return why *token* is denied, in words for the log; empty if it is not.

        :param token: What is known of it once it was verified: :func:`.denial.identity`.
        :raises StoreError: The store failed, and what is known is too old.
        """
        now = self._clock()
        known = self._known
        if known is None or now - known.read >= self._staleness:
            known = self._known = self._read(known, now)
        if token.token in known.good:
            return ""
        for entry, reason in hit(token):
            value = self.store.get(self.PREFIX + entry)[0]
            if value is not None and covers(entry, value, token.issued):
                return reason
        if len(known.good) >= self._size:
            known.good.clear()
        if self._size:
            known.good.add(token.token)
        return ""

    def close(self) -> None:
        """Close the store, if it is the list's own and not one it was given."""
        self._opened.close()

    def _read(self, known: _Known | None, now: float) -> _Known:
        # Threads that do so at once may overwrite each other's: each is right for its own moment.
        generation = self.store.get(self.PREFIX + "mark")[0]
        if known is None or generation != known.generation or now - known.since >= RECHECK:
            return _Known(generation, now, now, set())
        return known._replace(read=now)

    def _deny(self, entry: str, until: float) -> float:
        return self._write(entry, until, extended)

    def _write(
        self, entry: str, until: float, make: Callable[[bytes | None, float], tuple[bytes, float]]
    ) -> float:
        until = _moment("until", until)

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, float | None]:
            if until > now + LONGEST:
                return old, 0.0, None
            new, end = make(old, until)
            return new, max(end - now, 0.0) + GRACE, end

        end = update(self.store, self.PREFIX + entry, change)
        if end is None:
            raise ValueError(f"until: a Unix time at most ten years ahead, not {until!r}")
        # Not before the entry is there, lest another worker reads the mark first; and never a mark
        # that has been there before.
        mark = secrets.token_bytes(16)
        renew: Change[None] = lambda old, now: (mark, LONGEST, None)  # noqa: E731
        update(self.store, self.PREFIX + "mark", renew)
        self._known = None
        return end


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise ValueError(f"{name}: a text of 1 to 1024 characters, not {type(value).__name__}")
    return value


def _moment(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**53:
        raise ValueError(f"{name}: a Unix time in seconds, not {shown(value)}")
    return float(value)
