"""Tokens that are refused before they end, told to all that share a store."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import NamedTuple

from wsgigate.clocks import steady
from wsgigate.rules.arguments import checked
from wsgigate.rules.compact import shown
from wsgigate.rules.denial import (
    GRACE,
    LONGEST,
    Identity,
    covers,
    end_of,
    entry_of_jti,
    entry_of_subject,
    extended,
    extended_subject,
    hit,
)
from wsgigate.store import Change, Store, update
from wsgigate.store.opened import Namespaced, OpenedStore

__all__ = ["DenyList"]

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
