"""A store for many machines: a Redis or Valkey that they all reach."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from wsgigate.rules.algorithms import Algorithm
from wsgigate.rules.quota import Verdict
from wsgigate.rules.together import Together
from wsgigate.store import MisconfiguredStore, StoreError, update
from wsgigate.store.forking import rest_at_fork
from wsgigate.store.limits import check_value, encoded
from wsgigate.store.redis_connections import Fits
from wsgigate.store.redis_quotas import Prepared, prepared, verdicts_of
from wsgigate.store.redis_scripts import GET, SWAP, Script
from wsgigate.store.redis_servers import Ask, Servers, servers_of
from wsgigate.store.redis_shapes import (
    NAMES_BYTES,
    is_flag,
    is_page,
    is_value,
    is_value_and_time,
)
from wsgigate.store.redis_url import read_url
from wsgigate.store.redis_wire import SIZE, Refusal, command

__all__ = ["RedisStore"]

PAGE = 256
"""How many values are asked for at once; none is held while the caller uses them."""

LOOKS = 1000
"""How many of its keys a server looks at for one page of them."""

MOST_PAGES = 1_000_000
"""Pages of names at most: those of a thousand million keys."""

LONGEST = 10**14
"""Milliseconds: a longer time to live is as good as for ever, and a server might not take it."""


class RedisStore:
    """Keeps values in a Redis or Valkey, for all processes and machines that reach it.

    Its time is the server's. Every call but :meth:`items` and :meth:`get_all` is one round trip. A
    call is never repeated after it may have been carried out. While the server fails, calls fail at
    once: after the first few failures only a probe now and then waits for it. Nothing is connected
    before the first call, and every process has connections of its own.

    :param url: ``redis://HOST:PORT/DB``, ``rediss://`` with TLS, ``unix:///PATH``,
        ``redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB``, ``redis+cluster://HOST:PORT,HOST:PORT``;
        ``valkey`` in place of ``redis`` is the same. A name and a password stand before the host,
        or in ``$WSGIGATE_STORE_USERNAME`` and ``$WSGIGATE_STORE_PASSWORD``.
    :param owner: Whose values these are, where several share a server: part of the names of the
        keys, unless the URL says ``?prefix=``.
    :raises ValueError: It is no such URL; says why without showing what may be secret.
    """

    def __init__(self, url: str, *, owner: str = "") -> None:
        self._place = read_url(url, owner=owner)
        self.prefix = self._place.prefix
        """What the names of its keys begin with, in the server."""
        self.own_prefix = self._place.named
        """Whether the URL says that, and so whose values they are."""
        self._prefix = self.prefix.encode()
        self.checked = False
        """Whether the start of a gateway looks at it."""
        self.cure = ""
        """What to do when it can never be used, in the terms of whoever named it."""
        self.lock = threading.RLock()
        self._servers: Servers | None = None
        self._pid = 0
        rest_at_fork(self)

    def __repr__(self) -> str:
        return f"RedisStore({self._place.shown!r}, prefix={self.prefix!r})"

    def get(self, key: str) -> tuple[bytes | None, float]:
        value, time = self._run(GET, is_value_and_time, self._prefix + encoded(key))
        return value, int(time[0]) + int(time[1]) / 1_000_000

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the live value of each of *keys*, None for those that have none.

        One round trip for each server that has some of them, and for each few hundred keys.

        :raises StoreError: A server fails.
        """
        names = [self._prefix + encoded(key) for key in keys]
        at = self._ready().at
        values: list[bytes | None] = []
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            values += self._values(page, {name: at(name) for name in page})
        return values

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        name = self._prefix + encoded(key)
        if new is not None:
            check_value(new)
            if ttl <= 0:  # over before it began
                new = None
        lives = max(1, math.ceil(min(ttl * 1000, LONGEST)))
        arguments = (name, _optional(old), _optional(new), b"%d" % lives)
        return bool(self._run(SWAP, is_flag, *arguments))

    def take(
        self, key: str, algorithms: Sequence[Algorithm], cost: int = 1
    ) -> tuple[tuple[Verdict, ...], float]:
        """Decide about one request against all *algorithms*, in one step of the server's.

        The request passes if all allow it; if one refuses, none is charged.

        :param cost: How many requests it counts as; 0 only looks.
        :returns: Each quota's own verdict, and the store's time in seconds.
        :raises ValueError: There is no algorithm, two are the same, or *cost* is not one that all
            of the quotas allow.
        """
        ready = prepared(tuple(algorithms))
        if ready is None:
            return update(self, key, partial(_by_rules, tuple(algorithms), cost))
        return self._taken(key, ready, cost, b"")

    def _taken(
        self, key: str, ready: Prepared, cost: int, moment: bytes
    ) -> tuple[tuple[Verdict, ...], float]:
        """Take at *moment*, a number of microseconds; empty: at the server's time."""
        if cost != 1 or cost.__class__ is not int:
            for quota in ready.quotas:
                quota.check_cost(cost)
        name = self._prefix + encoded(key)
        answer = self._ready().ask(name, ready.known(name, cost, moment), ready.fits)
        if answer.__class__ is Refusal:
            arguments = (moment, b"%d" % cost, *ready.arguments)
            answer = self._told(answer, ready.script, ready.fits, name, *arguments)
        return verdicts_of(ready.limits, answer)

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        begins = self._prefix + encoded(prefix)
        skipped = len(self._prefix)
        found: dict[bytes, Ask] = {}
        for ask in self._ready().each():
            for name in self._names(ask, begins):
                found[name] = ask
        names = sorted(found)  # the order of UTF-8 is that of the characters
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            for name, value in zip(page, self._values(page, found), strict=True):
                if value is not None:
                    try:
                        key = name[skipped:].decode()
                    except UnicodeDecodeError:  # another program's: no key of ours is so written
                        continue
                    yield key, value

    def close(self) -> None:
        with self.lock:
            servers, self._servers = self._servers, None
            mine = self._pid == os.getpid()
        if servers is not None and mine:
            servers.close()

    def check(self) -> None:
        """See that values can be kept: write one, remove it, and leave nothing open.

        :raises StoreError: They can not; names the server and the cause.
        """
        used = self._servers is not None
        key = f"wsgigate/check/{os.getpid()}"
        try:
            self.swap(key, self.get(key)[0], bytes(16), 1.0)
            self.swap(key, bytes(16), None, 1.0)
        finally:
            if not used:
                self.close()

    def before_fork(self) -> None:
        """Do nothing: the child sees by its process id that the connections are not its own."""

    def after_unseen_fork(self) -> None:
        """Do nothing, for the same reason."""

    def _ready(self) -> Servers:
        servers = self._servers
        if servers is None or self._pid != os.getpid():
            with self.lock:
                if self._servers is None or self._pid != os.getpid():
                    # connections that came over a fork are left to whoever opened them
                    self._servers, self._pid = servers_of(self._place), os.getpid()
                servers = self._servers
        return servers

    def _run(self, script: Script, fits: Fits, name: bytes, *arguments: bytes) -> Any:
        answer = self._ready().ask(name, script.known(name, *arguments), fits)
        if answer.__class__ is Refusal:
            answer = self._told(answer, script, fits, name, *arguments)
        return answer

    def _told(
        self, refusal: Refusal, script: Script, fits: Fits, name: bytes, *arguments: bytes
    ) -> Any:
        """Return the answer of a server that is told *script*, if all it said is to lack that."""
        answer: Any = refusal
        if refusal.code == "NOSCRIPT":
            answer = self._ready().ask(name, script.whole(name, *arguments), fits)
        if answer.__class__ is Refusal:
            raise self._refused(answer)
        return answer

    def _names(self, ask: Ask, begins: bytes) -> Iterator[bytes]:
        """Yield the names of one server that begin so; one may come twice."""
        pattern, cursor, fits = _literally(begins) + b"*", b"0", is_page(begins)
        for _ in range(MOST_PAGES):
            question = command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % LOOKS)
            [answer] = ask(question, 1, fits, NAMES_BYTES)
            if isinstance(answer, Refusal):
                raise self._refused(answer)
            before, (cursor, names) = cursor, answer
            yield from names
            if cursor == b"0":
                return
            if cursor == before:  # no server goes on where it was
                break
        raise StoreError(f"the store {self._place.shown} comes to no end with its keys")

    def _values(self, page: list[bytes], found: dict[bytes, Ask]) -> list[bytes | None]:
        """Return the values of a page of names, one round trip for each server that has some."""
        places: dict[Ask, list[bytes]] = {}
        for name in page:
            places.setdefault(found[name], []).append(name)
        values: dict[bytes, bytes | None] = {}
        for ask, names in places.items():
            packed = b"".join([command(b"GET", name) for name in names])
            answers = ask(packed, len(names), is_value, len(names) * SIZE)
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, Refusal):  # it may have moved to another server meanwhile
                    answer = self._run(GET, is_value_and_time, name)[0]
                values[name] = answer
        return [values[name] for name in page]

    def _refused(self, refusal: Refusal) -> StoreError:
        kind = MisconfiguredStore if refusal.lasting else StoreError
        return kind(f"the store {self._place.shown} refuses: {refusal.text}")


def _by_rules(
    algorithms: tuple[Algorithm, ...], cost: int, old: bytes | None, now: float
) -> tuple[bytes | None, float, tuple[tuple[Verdict, ...], float]]:
    if len(algorithms) == 1:
        new, ttl, verdict = algorithms[0].take(old, now, cost)
        return new, ttl, ((verdict,), now)
    new, ttl, verdicts = Together(algorithms).take(old, now, cost)
    return new, ttl, (verdicts, now)


def _optional(value: bytes | None) -> bytes:
    return b"-" if value is None else b"+" + value


def _literally(name: bytes) -> bytes:
    """Return the pattern that only *name* matches."""
    for special in (b"\\", b"*", b"?", b"[", b"]", b"^"):
        name = name.replace(special, b"\\" + special)
    return name
