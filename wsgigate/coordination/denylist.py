"""Revocation of tokens before they expire, shared by all workers of a store."""

from __future__ import annotations

import math
import re
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from itertools import islice
from typing import Any, NamedTuple

from wsgigate.auth.jwt import TokenRejected, read_compact
from wsgigate.http.bodies import InvalidJson, read_object, shown
from wsgigate.rules.arguments import checked
from wsgigate.runtime.clocks import steady
from wsgigate.store import Change, Store, StoreError, update
from wsgigate.store.open import Namespaced, OpenedStore

__all__ = [
    "GRACE",
    "LONGEST",
    "DeniedEntry",
    "DenyList",
    "TokenIdentity",
    "covers",
    "end_of",
    "entries_of",
    "entry_of_jti",
    "entry_of_subject",
    "entry_of_token",
    "extended",
    "extended_subject",
    "identity",
]


# The entries of the list: a single token, or all tokens issued to a subject before a moment. Each
# has its own key, made of hashes: the store holds no token and no name.

GRACE = 86400.0
"""Extra seconds for which a denial is kept, more than any clock skew or leeway."""

LONGEST = 3660 * 86400.0
"""Maximum seconds until a denied token expires."""

_SINGLE = struct.Struct(">d")  # until

_SUBJECT = struct.Struct(">dd")  # before, until


class TokenIdentity(NamedTuple):
    """The names of the entries by which a verified token can be denied."""

    token: str
    """Name of the entry of the token itself."""
    jti: str
    """Name of the entry of its ``jti``; empty without one."""
    subject: str
    """Name of the entry of its ``sub``; empty without one."""
    issued: float | None
    """Its ``iat``."""


def identity(signed: bytes, claims: Mapping[str, Any]) -> TokenIdentity:
    """Return the identity of the token with *claims*.

    :param signed: The signed part of the token. The signature itself is not included, because
        anyone can turn a valid ECDSA signature into another valid one.
    """
    jti, sub, iat = claims.get("jti"), claims.get("sub"), claims.get("iat")
    return TokenIdentity(
        entry_of_token(signed),
        entry_of_jti(jti) if isinstance(jti, str) and jti else "",
        entry_of_subject(sub) if isinstance(sub, str) and sub else "",
        float(iat) if isinstance(iat, (int, float)) else None,
    )


def entry_of_token(signed: bytes) -> str:
    """Return the name of the entry of a token, by its signed part."""
    return "token/" + sha256(signed).hexdigest()


def entry_of_jti(jti: str) -> str:
    """Return the name of the entry of the tokens with this ``jti``."""
    return "jti/" + _hashed(jti)


def entry_of_subject(sub: str) -> str:
    """Return the name of the entry of the tokens of this ``sub``."""
    return "subject/" + _hashed(sub)


KINDS = {"token": "token/", "jti": "jti/", "sub": "subject/"}
"""The kinds of denials, and the prefixes of the names of their entries."""

_DIGEST = re.compile("[0-9a-f]{64}")


class DeniedEntry(NamedTuple):
    """A denial that is in force.

    :ivar kind: ``token``, ``jti`` or ``sub``.
    :ivar digest: The SHA-256 hash of what is denied: the store has nothing else.
    :ivar until: The Unix time at which the last of the tokens expires.
    :ivar before: With ``sub``: tokens issued before this Unix time are denied. None otherwise.
    """

    kind: str
    digest: str
    until: float
    before: float | None = None

    @property
    def id(self) -> str:
        """The id of the denial, such as ``jti:`` and the hash."""
        return f"{self.kind}:{self.digest}"


def read_entry(entry: str, value: bytes) -> DeniedEntry | None:
    """Return the denial with this name and value; None if it is none."""
    place, _, digest = entry.partition("/")
    kind = next((kind for kind, prefix in KINDS.items() if prefix == f"{place}/"), None)
    if kind is None or not _DIGEST.fullmatch(digest):
        return None
    if len(value) == _SUBJECT.size:
        before, until = _SUBJECT.unpack(value)
        return DeniedEntry(kind, digest, until, before)
    until = _SINGLE.unpack(value)[0] if len(value) == _SINGLE.size else math.inf
    return DeniedEntry(kind, digest, until)


def entry_of_id(id: str) -> str:
    """Return the name of the entry of the denial with this id.

    :raises ValueError: *id* is malformed.
    """
    kind, _, digest = id.partition(":")
    if kind not in KINDS or not _DIGEST.fullmatch(digest):
        raise ValueError(
            f"id: token, jti or sub, a colon and 64 hexadecimal digits, not {shown(id)}"
        )
    return KINDS[kind] + digest


def _hashed(text: str) -> str:
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def end_of(token: str) -> tuple[str, float]:
    """Return the name of the entry of *token*, and its expiry (``exp``).

    The signature is not verified: a caller who may deny one token may deny any.

    :raises ValueError: *token* is not a JWT, or has no ``exp``.
    """
    try:
        compact = read_compact(token)
        exp = read_object(compact.payload, "payload").get("exp")
    except (InvalidJson, TokenRejected) as error:
        raise ValueError(f"token: {error}") from None
    if isinstance(exp, bool) or not isinstance(exp, (int, float)) or abs(exp) > 2.0**53:
        raise ValueError("token: the claim exp (expiry) is missing or not a number")
    return entry_of_token(compact.signed), float(exp)


def entries_of(found: TokenIdentity) -> Iterator[tuple[str, str]]:
    """Yield each entry that can deny *found*, with the reason it gives."""
    yield found.token, "the token was denied"
    if found.jti:
        yield found.jti, "its jti was denied"
    if found.subject:
        yield found.subject, "tokens issued to its subject before a moment were denied"


def covers(entry: str, value: bytes, issued: float | None) -> bool:
    """Return whether *value* of *entry* denies a token issued at *issued*.

    A malformed value denies. The entry of a subject denies a token without ``iat``.
    """
    if not entry.startswith("subject/") or len(value) != _SUBJECT.size or issued is None:
        return True
    before: float = _SUBJECT.unpack(value)[0]
    return not issued >= before


def extended(old: bytes | None, until: float) -> tuple[bytes, float]:
    """Return the value that denies until *until* or the end of *old*, the later; and its end."""
    if old is not None and len(old) == _SINGLE.size:
        (earlier,) = _SINGLE.unpack(old)
        until = max(until, earlier)
    return _SINGLE.pack(until), until


def extended_subject(old: bytes | None, before: float, until: float) -> tuple[bytes, float]:
    """Return the value that denies tokens before *before* and those of *old*; and its end."""
    if old is not None and len(old) == _SUBJECT.size:
        earlier, end = _SUBJECT.unpack(old)
        before, until = max(before, earlier), max(until, end)
    return _SUBJECT.pack(before, until), until


RECHECK = 30.0
"""Maximum seconds for which a token that is not denied is not looked up again."""


class _KnownTokens(NamedTuple):
    generation: bytes | None
    read: float
    since: float
    good: set[str]


@checked
class DenyList:
    """A deny list of tokens (revocation), shared by every worker of a store.

    Each denial changes a mark in the store. A worker reads that mark at most every *staleness*
    seconds, and looks a token up again only if the mark has changed, and every 30 s. So a request
    costs a lookup in memory and now and then a read of the store. A denial applies in the worker
    that makes it at once, and in every other at most *staleness* seconds later.

    :param store: The shared store: a store, or the URL of one.
    :param namespace: Identifies the list where several share a store; all users of the same
        namespace share one list. Default: all users of the store share one list.
    :param staleness: Seconds for which the mark is not read again, 0 to 60; 0 reads it each time.
    :param cache_size: Maximum number of accepted tokens remembered.
    :param clock: Returns monotonic seconds.
    :raises ValueError: An argument is invalid; the message names it.
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
        self._namespaced = Namespaced(self._opened)
        self._staleness = staleness
        self._size = cache_size
        self._clock = clock
        self._known: _KnownTokens | None = None

    @property
    def store(self) -> Store:
        """The store shared by the workers."""
        return self._namespaced

    def deny_token(self, token: str, until: float | None = None) -> float:
        """Deny one token, with any signature.

        :param token: The token as sent, without ``Bearer``.
        :param until: Unix time at which the token expires. Default: its ``exp``.
        :returns: *until*.
        :raises ValueError: *token* is not a JWT or has no ``exp``, or *until* is invalid.
        :raises StoreError: The store failed; the token may be denied or not.
        """
        entry, end = end_of(token)
        return self._deny(entry, end if until is None else until)

    def deny_jti(self, jti: str, until: float) -> float:
        """Deny the token with this ``jti``.

        :param until: Unix time at which the token expires; the denial ends with it.
        :returns: *until*, or the later end of an earlier denial.
        :raises ValueError: *jti* or *until* is invalid.
        :raises StoreError: The store failed; the token may be denied or not.
        """
        return self._deny(entry_of_jti(_text("jti", jti)), until)

    def deny_subject(self, sub: str, before: float, until: float) -> float:
        """Deny every token issued to *sub* before a moment, by any issuer.

        The ``iat`` of a token counts, which most issuers truncate to whole seconds; a token without
        it is denied. A denial never withdraws an earlier one.

        :param before: Unix time by the issuer's clock: tokens with an earlier ``iat`` are denied.
        :param until: Unix time at which the last of these tokens expires.
        :returns: *until*, or the later end of an earlier denial.
        :raises ValueError: An argument is invalid; the message names it.
        :raises StoreError: The store failed; the tokens may be denied or not.
        """
        moment = _moment("before", before)
        entry = entry_of_subject(_text("sub", sub))
        return self._write(entry, until, lambda old, end: extended_subject(old, moment, end))

    def why_denied(self, token: TokenIdentity) -> str:
        """Return the reason why *token* is denied, for the log; empty if it is not denied.

        :param token: The identity of a verified token, from :func:`identity`.
        :raises StoreError: The store failed, and the cached state is too old.
        """
        now = self._clock()
        known = self._known
        if known is None or now - known.read >= self._staleness:
            before, known = known, self._read(known, now)
            if self._known is before:  # else this worker has denied a token meanwhile
                self._known = known
        if token.token in known.good:
            return ""
        for entry, reason in entries_of(token):
            value = self.store.get(self.PREFIX + entry)[0]
            if value is not None and covers(entry, value, token.issued):
                return reason
        if len(known.good) >= self._size:
            known.good.clear()
        if self._size:
            known.good.add(token.token)
        return ""

    def denials(self, most: int = 1000) -> list[DeniedEntry]:
        """Return the denials that are in force, by kind and hash.

        :param most: The maximum number of them.
        :raises StoreError: The store failed.
        """
        now = self.store.get(self.PREFIX + "mark")[1]
        read = (
            read_entry(key.removeprefix(self.PREFIX), value)
            for key, value in self.store.items(self.PREFIX)
        )
        return list(islice((each for each in read if each and each.until > now), most))

    def allow(self, id: str) -> DeniedEntry | None:
        """Remove a denial, in all workers at once; return it, or None if there is none.

        :param id: The id of the denial: :attr:`DeniedEntry.id`.
        :raises ValueError: *id* is malformed.
        :raises StoreError: The store failed; the denial may have been removed or not.
        """
        entry = entry_of_id(id)

        def remove(old: bytes | None, now: float) -> tuple[bytes | None, float, bytes | None]:
            return None, 0.0, old

        # no mark: a worker looks up each token that it does not know to be good
        old = update(self.store, self.PREFIX + entry, remove)
        return None if old is None else read_entry(entry, old)

    def check_outage(self, error: StoreError) -> None:
        """Check that *error* of :meth:`why_denied` is an outage, which may pass by itself.

        :raises MisconfiguredStore: The store has not worked so far, and cannot be used until its
            configuration changes.
        """
        self._opened.check_outage(error, "the deny list cannot be read")

    def close(self) -> None:
        """Close the store, unless it was passed in as an object."""
        self._opened.close()

    def _read(self, known: _KnownTokens | None, now: float) -> _KnownTokens:
        # Concurrent threads may overwrite each other's result: each is correct for its own moment.
        generation = self.store.get(self.PREFIX + "mark")[0]
        if known is None or generation != known.generation or now - known.since >= RECHECK:
            return _KnownTokens(generation, now, now, set())
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
        # After the entry, or another worker could read the new mark before it; and random, so that
        # no earlier mark comes back.
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
