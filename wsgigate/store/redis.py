"""The store for many machines: a Redis or Valkey that all of them reach.

An answer can be well-formed and still be useless: from a proxy that answers in place of the server,
a script replaced by another program, or a connection out of step. Each answer is checked before it
is used, so that one of another shape is a failure of the store, like an outage, and never an
exception in the caller. The predicates stand beside the commands: here, with the scripts
(:mod:`wsgigate.store.redis_scripts`) and with the servers (:mod:`wsgigate.store.redis_servers`,
whose theory of operation describes outages).

Connections never cross a fork: a child forgets them, and leaves them to the process that opened
them.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from wsgigate.rules.algorithms import Algorithm, CombinedAlgorithm
from wsgigate.rules.quota import Verdict
from wsgigate.runtime import fork
from wsgigate.store import (
    MisconfiguredStore,
    StoreError,
    check_value,
    encoded,
    update,
)
from wsgigate.store.meter import measured
from wsgigate.store.redis_connections import SIZE, ErrorReply, Fits, command, is_number
from wsgigate.store.redis_scripts import (
    GET,
    SWAP,
    LuaScript,
    Prepared,
    is_flag,
    is_value,
    is_value_and_time,
    prepared,
    verdicts_of,
)
from wsgigate.store.redis_servers import Ask, Servers, servers_of
from wsgigate.store.redis_url import read_url

__all__ = ["RedisStore"]


NAMES_BYTES = 4 * 1024 * 1024
"""Maximum bytes of a page of names: a thousand of the longest take an eighth of it."""

PAGE = 256
"""Values read at once; none is held while the caller uses them."""

LOOKS = 1000
"""Keys that a server scans for one page."""

MOST_PAGES = 1_000_000
"""Maximum number of pages: those of a thousand million keys."""

LONGEST = 10**14
"""Maximum time to live in milliseconds; a server may reject a longer one."""


class RedisStore:
    """Stores values in a Redis or Valkey, for all processes and machines that reach it.

    Its time is the server's. Every call but :meth:`items` and :meth:`get_all` is one round trip,
    and no call is repeated after it may have been carried out. During an outage calls fail at once,
    except for a probe now and then. The first call connects, and every process has its own
    connections.

    :param url: ``redis://HOST:PORT/DB``, ``rediss://`` with TLS, ``unix:///PATH``,
        ``redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB`` or
        ``redis+cluster://HOST:PORT,HOST:PORT``;
        ``valkey`` is a synonym of ``redis``. A user name and password stand before the host, or in
        ``$WSGIGATE_STORE_USERNAME`` and ``$WSGIGATE_STORE_PASSWORD``.
    :param owner: Identifies the owner of the values where several share a server: part of the
        names of the keys, unless the URL has ``?prefix=``.
    :param clock: Returns monotonic seconds, by which an outage is bounded.
    :param random: Returns numbers in [0, 1), which spread the probes of several processes.
    :raises ValueError: *url* is invalid; the message does not show secrets.
    """

    def __init__(
        self,
        url: str,
        *,
        owner: str = "",
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self._place = read_url(url, owner=owner)
        self._servers_of = partial(servers_of, self._place, clock=clock, chance=random)
        self.prefix = self._place.prefix
        """Prefix of the names of its keys in the server."""
        self.own_prefix = self._place.named
        """Whether the URL sets the prefix, and so identifies the owner."""
        self._prefix = self.prefix.encode()
        self.checked = False
        """Whether the gateway checks the store at its start."""
        self.cure = ""
        """The remedy to add to a lasting error, in the terms of the configuration in use."""
        self._servers: Servers | None = None
        self._lock: threading.Lock
        fork.renewed(self, _lock="Lock")
        fork.renew_at_fork(self)

    def __repr__(self) -> str:
        return f"RedisStore({self._place.shown!r}, prefix={self.prefix!r})"

    @measured("get")
    def get(self, key: str) -> tuple[bytes | None, float]:
        value, time = self._run(GET, is_value_and_time, self._prefix + encoded(key))
        return value, int(time[0]) + int(time[1]) / 1_000_000

    @measured("get_all")
    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the live value of each of *keys*, None for those that have none.

        It needs one round trip for each server involved and each 256 keys.

        :raises StoreError: A server fails.
        """
        names = [self._prefix + encoded(key) for key in keys]
        at = self._ready().at
        values: list[bytes | None] = []
        for first in range(0, len(names), PAGE):
            page = names[first : first + PAGE]
            values += self._values(page, {name: at(name) for name in page})
        return values

    @measured("swap")
    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        name = self._prefix + encoded(key)
        if new is not None:
            check_value(new)
            if ttl <= 0:  # already expired
                new = None
        lives = max(1, math.ceil(min(ttl * 1000, LONGEST)))
        arguments = (name, _optional(old), _optional(new), b"%d" % lives)
        return bool(self._run(SWAP, is_flag, *arguments))

    @measured("take")
    def take(
        self, key: str, algorithms: Sequence[Algorithm], cost: int = 1
    ) -> tuple[tuple[Verdict, ...], float]:
        """Decide about one request against all *algorithms*, in one step on the server.

        The request passes if all allow it; if one refuses, none is charged.

        :param cost: Quota units consumed; 0 checks without consuming.
        :returns: Each quota's own verdict, and the store's time in seconds.
        :raises ValueError: There is no algorithm, two are the same, or a quota does not allow
            *cost*.
        """
        ready = prepared(tuple(algorithms))
        if ready is None:
            return update(self, key, partial(_by_rules, tuple(algorithms), cost))
        return self.take_at(key, ready, cost, b"")

    def take_at(
        self, key: str, ready: Prepared, cost: int, moment: bytes
    ) -> tuple[tuple[Verdict, ...], float]:
        """Take at *moment*, in microseconds; empty: at the server's time."""
        if cost != 1 or cost.__class__ is not int:
            for quota in ready.quotas:
                quota.check_cost(cost)
        name = self._prefix + encoded(key)
        answer = self._ready().ask(name, ready.known(name, cost, moment), ready.fits)
        if answer.__class__ is ErrorReply:
            arguments = (moment, b"%d" % cost, *ready.arguments)
            answer = self._load_and_run(answer, ready.script, ready.fits, name, *arguments)
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
                    except UnicodeDecodeError:  # another program's key
                        continue
                    yield key, value

    def close(self) -> None:
        with self._lock:
            servers, self._servers = self._servers, None
        if servers is not None:
            servers.close()

    def check(self) -> None:
        """Check that values can be stored: write one, remove it, and leave nothing open.

        :raises StoreError: They cannot; the message names the server and the cause.
        """
        used = self._servers is not None
        key = f"wsgigate/check/{fork.pid}"
        try:
            self.swap(key, self.get(key)[0], bytes(16), 1.0)
            self.swap(key, bytes(16), None, 1.0)
        finally:
            if not used:
                self.close()

    def after_fork(self) -> None:
        """Forget the connections, which belong to the parent process."""
        self._servers = None

    def _ready(self) -> Servers:
        fork.notice_fork()  # processes that share a connection receive each other's answers
        servers = self._servers
        if servers is None:
            with self._lock:
                servers = self._servers = self._servers or self._servers_of()
        return servers

    def _run(self, script: LuaScript, fits: Fits, name: bytes, *arguments: bytes) -> Any:
        answer = self._ready().ask(name, script.known(name, *arguments), fits)
        if answer.__class__ is ErrorReply:
            answer = self._load_and_run(answer, script, fits, name, *arguments)
        return answer

    def _load_and_run(
        self, refusal: ErrorReply, script: LuaScript, fits: Fits, name: bytes, *arguments: bytes
    ) -> Any:
        """Return the answer to *script* sent in full, if the server answered ``NOSCRIPT``."""
        answer: Any = refusal
        if refusal.code == "NOSCRIPT":
            answer = self._ready().ask(name, script.whole(name, *arguments), fits)
        if answer.__class__ is ErrorReply:
            raise self._refused(answer)
        return answer

    def _names(self, ask: Ask, begins: bytes) -> Iterator[bytes]:
        """Yield the names with a prefix on one server; a name may come twice."""
        pattern, cursor, fits = _literally(begins) + b"*", b"0", _is_page(begins)
        for _ in range(MOST_PAGES):
            question = command(b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % LOOKS)
            [answer] = ask(question, 1, fits, NAMES_BYTES)
            if isinstance(answer, ErrorReply):
                raise self._refused(answer)
            before, (cursor, names) = cursor, answer
            yield from names
            if cursor == b"0":
                return
            if cursor == before:  # the scan makes no progress
                break
        raise StoreError(f"the store {self._place.shown}: the scan of its keys does not end")

    def _values(self, page: list[bytes], found: dict[bytes, Ask]) -> list[bytes | None]:
        """Return the values of a page of names, with one round trip per server."""
        places: dict[Ask, list[bytes]] = {}
        for name in page:
            places.setdefault(found[name], []).append(name)
        values: dict[bytes, bytes | None] = {}
        for ask, names in places.items():
            packed = b"".join([command(b"GET", name) for name in names])
            answers = ask(packed, len(names), is_value, len(names) * SIZE)
            for name, answer in zip(names, answers, strict=True):
                if isinstance(answer, ErrorReply):  # the key may have moved to another server
                    answer = self._run(GET, is_value_and_time, name)[0]
                values[name] = answer
        return [values[name] for name in page]

    def _refused(self, refusal: ErrorReply) -> StoreError:
        kind = MisconfiguredStore if refusal.lasting else StoreError
        return kind(f"the store {self._place.shown} answered with an error: {refusal.text}")


def _by_rules(
    algorithms: tuple[Algorithm, ...], cost: int, old: bytes | None, now: float
) -> tuple[bytes | None, float, tuple[tuple[Verdict, ...], float]]:
    if len(algorithms) == 1:
        new, ttl, verdict = algorithms[0].take(old, now, cost)
        return new, ttl, ((verdict,), now)
    new, ttl, verdicts = CombinedAlgorithm(algorithms).take(old, now, cost)
    return new, ttl, (verdicts, now)


def _is_page(begins: bytes) -> Callable[[Any], bool]:
    """Return the predicate for answers to ``SCAN`` for names with the prefix *begins*."""

    def page(answer: Any) -> bool:
        return (
            answer.__class__ is list
            and len(answer) == 2
            and is_number(answer[0])
            and answer[1].__class__ is list
            and all(name.__class__ is bytes and name.startswith(begins) for name in answer[1])
        )

    return page


def _optional(value: bytes | None) -> bytes:
    return b"-" if value is None else b"+" + value


def _literally(name: bytes) -> bytes:
    """Return the pattern that only *name* matches."""
    for special in (b"\\", b"*", b"?", b"[", b"]", b"^"):
        name = name.replace(special, b"\\" + special)
    return name
