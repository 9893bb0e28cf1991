"""A store for many machines: a Redis or Valkey that they all reach."""

from __future__ import annotations

import logging
import math
import os
import random
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

from redis.crc import key_slot

from wsgigate.rules.algorithms import Algorithm, Together
from wsgigate.rules.quota import Verdict
from wsgigate.runtime.fork import quiesce_at_fork
from wsgigate.store import MisconfiguredStore, StoreError, check_value, encoded, update
from wsgigate.store.redis_connections import SIZE, Connections, Fits, Refusal, Unreachable, command
from wsgigate.store.redis_scripts import GET, SWAP, Prepared, Script, prepared, verdicts_of
from wsgigate.store.redis_shapes import (
    NAMES_BYTES,
    SLOTS_BYTES,
    is_address,
    is_flag,
    is_page,
    is_role,
    is_slots,
    is_value,
    is_value_and_time,
)
from wsgigate.store.redis_url import Address, Place, read_url

__all__ = [
    "Ask",
    "Cluster",
    "Outage",
    "RedisStore",
    "Sentinels",
    "Servers",
    "Single",
    "Watch",
    "connect_to",
    "fit",
]


# When to ask a server again that fails: at once a few times, then after rests that grow.


class Outage:
    """What is known of one server's failures, and whether it is worth asking it.

    After *tolerated* failures in a row it is left to rest: nobody asks. When the rest is over one
    caller is let through as a probe, while all others still get their refusal at once. A probe that
    fails makes the next rest twice as long; any success ends the outage. Calls must not overlap.

    :param tolerated: How many failures in a row are borne before the first rest.
    :param first: Seconds of the first rest.
    :param longest: Seconds of the longest one; also how long a probe may stay away before another
        is let through.
    :raises ValueError: *tolerated* is below 1, or the rests are not ``0 < first <= longest``.
    """

    def __init__(self, *, tolerated: int = 3, first: float = 0.5, longest: float = 5.0) -> None:
        if tolerated < 1:
            raise ValueError(f"tolerated is 1 or more, not {tolerated}")
        if not 0 < first <= longest:
            raise ValueError(f"rests are 0 < first <= longest, not {first:g} and {longest:g}")
        self.failures = 0
        """How many calls have failed in a row; 0 while all is well."""
        self.since = 0.0
        """When the first of them failed."""
        self.until = 0.0
        """When the rest ends; means nothing unless :attr:`resting`."""
        self._tolerated = tolerated
        self._first = first
        self._longest = longest
        self._rest = first
        self._probing = False

    @property
    def resting(self) -> bool:
        """Whether nobody may ask but a probe."""
        return self.failures >= self._tolerated

    def admit(self, now: float) -> bool:
        """Return whether a caller may ask at *now*: anybody when all is well, else one probe."""
        if not self.resting:
            return True
        if now < self.until:
            return False
        self.until = now + self._longest  # a probe that is never heard of must not bar all others
        self._probing = True
        return True

    def failed(self, now: float, chance: float) -> bool:
        """Take note that a call failed; return whether a rest began with it, the first in a row.

        :param chance: In [0, 1): shortens the rest by up to half, so that not all who share the
            server come back at the same moment.
        """
        if self.resting and not self._probing:
            return False  # it was under way when the rest began, and tells nothing new
        if not self.failures:
            self.since = now
        before = self.resting
        self.failures += 1
        if not self.resting:
            return False
        self._rest = min(2 * self._rest, self._longest) if before else self._first
        self._probing = False
        self.until = now + self._rest * (1 - chance / 2)
        return not before

    def succeeded(self) -> bool:
        """Take note that a call was answered; return whether that ended a rest."""
        rested = self.resting
        self.failures = 0
        self._probing = False
        return rested


# Keeps an eye on one server: while it fails, nobody waits for it.

LOG = logging.getLogger("wsgigate.store")


class Watch:
    """Lets callers ask a server, or fail at once while it rests; see :class:`Outage`.

    One log record tells that it rests, one that it answers again.

    :param shown: What the server is called, without secrets.
    :param clock: Seconds of a clock that never steps back.
    :param chance: Gives numbers in [0, 1).
    """

    def __init__(
        self,
        shown: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._shown = shown
        self._clock = clock
        self._chance = chance
        self._outage = Outage()
        self._reason = ""
        self._kind: type[StoreError] = StoreError
        self._lock = threading.Lock()

    def admit(self) -> None:
        """Return when the server may be asked.

        :raises StoreError: It is left alone for now.
        """
        if not self._outage.failures:
            return
        with self._lock:
            now = self._clock()
            if self._outage.admit(now):
                return
            left = self._outage.until - now
        raise self._kind(f"{self._reason}; it is asked again in {left:.1f} s")

    def failed(self, reason: str, *, lasting: bool = False) -> StoreError:
        """Take note of why a call failed; return the error for its caller.

        :param lasting: Whether waiting does not help.
        """
        with self._lock:
            self._reason = f"the store {self._shown} fails: {reason}"
            self._kind = MisconfiguredStore if lasting else StoreError
            told, kind = self._reason, self._kind
            began = self._outage.failed(self._clock(), self._chance())
        if began:
            LOG.error("%s; until it answers again, nobody waits for it", told)
        return kind(told)

    def answered(self) -> None:
        """Take note that the server answered."""
        if not self._outage.failures:
            return
        with self._lock:
            lasted = self._clock() - self._outage.since
            ended = self._outage.succeeded()
        if ended:
            LOG.warning("the store %s answers again after %.1f s", self._shown, lasted)


# A Redis Cluster: each key has one primary, and keys may move to another at any time.

REDIRECTS = 3
"""How often one call follows a key that has moved."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at who has what, while something is wrong."""

_SLOTS = command(b"CLUSTER", b"SLOTS")

_ASKING = command(b"ASKING")

_REDIRECT = re.compile(r"(MOVED|ASK) [0-9]+ (.*):([0-9]{1,5})")


class Node(NamedTuple):
    """One server of the cluster, and how it has been doing."""

    connections: Connections
    watch: Watch
    ask: Ask


class Cluster:
    """Asks the primary that has the key; learns who that is from whichever server answers.

    Each server is watched by itself: while one is down, only its keys can not be had. (Redis
    documentation, "Redis cluster specification".)

    :param clock: Seconds of a clock that never steps back.
    """

    def __init__(self, place: Place, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._watch = Watch(place.shown)
        self._nodes: dict[Address, Node] = {}
        self._map: tuple[list[int], list[tuple[int, Address]]] = ([], [])
        # the first slots of the ranges, in order, and of each the last slot and who has it
        self._stale = True
        self._looked = float("-inf")
        self._lock = threading.Lock()

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        address = self._address_of(key)
        asking = False
        for _ in range(REDIRECTS + 1):
            if asking:
                # of the two answers the first, to ASKING, is any that is no error
                answer = self._ask(address, _ASKING + packed, 2, most=2 * SIZE)[1]
                if not isinstance(answer, Refusal) and not fits(answer):
                    raise StoreError(f"the store {self._place.shown} answers another question")
            else:
                answer = self._ask(address, packed, 1, fits)[0]
            redirect = _redirect(answer)
            if redirect is None:
                return answer
            kind, host, port = redirect
            asking = kind == "ASK"
            address = (host or address[0], port)
            if not asking:
                self._look(address)
        raise StoreError(f"the store {self._place.shown} sends {key!r} from server to server")

    def at(self, key: bytes) -> Ask:
        return self._node(self._address_of(key)).ask

    def each(self) -> Iterator[Ask]:
        self._refresh()
        for address in sorted({address for _, address in self._map[1]}):
            yield self._node(address).ask

    def close(self) -> None:
        with self._lock:
            nodes, self._nodes = list(self._nodes.values()), {}
            self._stale = True
            self._looked = float("-inf")
        for node in nodes:
            node.connections.close()

    def _ask(
        self,
        address: Address,
        packed: bytes,
        answers: int = 1,
        fits: Fits | None = None,
        most: int = SIZE,
    ) -> list[Any]:
        node = self._node(address)
        node.watch.admit()
        try:
            got = fit(node.connections.exchange(packed, answers, fits, most))
        except Unreachable as error:
            self._stale = True
            raise node.watch.failed(str(error), lasting=error.lasting) from error
        node.watch.answered()
        return got

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            connections = connect_to(self._place, address)
            with self._lock:
                watch = Watch(f"{self._place.shown} at {connections.shown}")
                ask = partial(self._ask, address)
                node = self._nodes.setdefault(address, Node(connections, watch, ask))
        return node

    def _address_of(self, key: bytes) -> Address:
        self._refresh()
        slot = key_slot(key)
        starts, ranges = self._map
        place = bisect_right(starts, slot) - 1
        if place >= 0:
            end, address = ranges[place]
            if slot <= end:
                return address
        self._stale = True
        raise StoreError(f"no server of {self._place.shown} has the slot {slot}")

    def _refresh(self) -> None:
        """Look who has what, if that is not known or was found to be wrong."""
        if not self._stale:
            return
        with self._lock:
            now = self._clock()
            if self._map[0] and now - self._looked < LOOK_AGAIN:
                return
            self._looked = now
        self._watch.admit()
        reasons, lasting = [], True
        known = [address for _, address in self._map[1]]
        for address in dict.fromkeys([*known, *self._place.addresses]):
            try:
                self._look(address)
            except StoreError as error:
                reasons.append(str(error))
                lasting = lasting and isinstance(error, MisconfiguredStore)
            else:
                self._watch.answered()
                return
        if not self._map[0]:
            raise self._watch.failed("; ".join(reasons), lasting=lasting)

    def _look(self, address: Address) -> None:
        """Take over what the server at *address* knows of who has what.

        :raises StoreError: It does not answer, or knows nothing.
        """
        answer = self._ask(address, _SLOTS, 1, is_slots, SLOTS_BYTES)[0]
        if isinstance(answer, Refusal) or not answer:
            refused = isinstance(answer, Refusal)
            told = answer.text if refused else "it knows of no slots"
            kind = MisconfiguredStore if refused and answer.lasting else StoreError
            raise kind(f"{self._place.shown} at {address[0]}:{address[1]}: {told}")
        found = []
        for start, end, (host, port, *_), *_replicas in answer:
            # no host, or "?": the one that was asked, as seen from here
            name = host.decode() if host not in (None, b"", b"?") else address[0]
            found.append((int(start), int(end), (name, int(port))))
        found.sort()
        with self._lock:
            self._map = ([start for start, _, _ in found], [(end, who) for _, end, who in found])
            self._stale = False
            used = {who for _, _, who in found}.union(self._place.addresses)
            gone = [self._nodes.pop(who) for who in list(self._nodes) if who not in used]
        for node in gone:
            node.connections.close()


def _redirect(answer: Any) -> tuple[str, str, int] | None:
    """Return where an answer sends its caller: ``MOVED`` or ``ASK``, the host and the port."""
    if not isinstance(answer, Refusal) or answer.code not in ("MOVED", "ASK"):
        return None
    found = _REDIRECT.fullmatch(answer.text)
    return (found[1], found[2], int(found[3])) if found and 0 < int(found[3]) < 65536 else None


# Which Redis is asked: the one there is, or the one that the sentinels call the primary.

UNFIT = frozenset(
    [
        *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "MISCONF"),
        *("NOAUTH", "WRONGPASS", "NOREPLICAS"),
    ]
)
"""The errors by which a server says that it can not serve at all at the moment."""

Ask = Callable[..., list[Any]]
"""``ask(packed, answers=1, fits=None, most=SIZE)``: one exchange with one server, guarded by its
watch; see :meth:`Connections.exchange`."""


class Servers(Protocol):
    """Where the values are."""

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        """Return the answer of the server that has *key*; it may be a :class:`Refusal`.

        :param fits: Whether an answer has the shape that was asked for.
        :raises StoreError: It is not to be had, or has another shape.
        """

    def at(self, key: bytes) -> Ask:
        """Return a way to ask the server that has *key*, the same for all keys it has.

        :raises StoreError: It is not known.
        """

    def each(self) -> Iterator[Ask]:
        """Yield a way to ask each of the servers that have values."""

    def close(self) -> None:
        """Close all connections."""


def connect_to(place: Place, address: tuple[str, int]) -> Connections:
    """Return connections to the server at *address*; none is open yet."""
    return Connections(
        address, tls=place.tls, settings=place.settings, most=place.most, wait=place.wait
    )


def fit(answers: list[Any]) -> list[Any]:
    """Return *answers* unless one of them says that the server can not serve.

    :raises Unreachable: One does.
    """
    for answer in answers:
        if isinstance(answer, Refusal) and answer.code in UNFIT:
            raise Unreachable(answer.text, lasting=answer.lasting)
    return answers


class Single:
    """One server, always at the same place."""

    def __init__(self, place: Place) -> None:
        self._connections = connect_to(place, place.addresses[0])
        self._watch = Watch(place.shown)

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        return self._ask(packed, 1, fits)[0]

    def at(self, key: bytes) -> Ask:
        return self._ask

    def each(self) -> Iterator[Ask]:
        yield self._ask

    def close(self) -> None:
        self._connections.close()

    def _ask(
        self, packed: bytes, answers: int = 1, fits: Fits | None = None, most: int = SIZE
    ) -> list[Any]:
        self._watch.admit()
        try:
            got = fit(self._connections.exchange(packed, answers, fits, most))
        except Unreachable as error:
            raise self._watch.failed(str(error), lasting=error.lasting) from error
        self._watch.answered()
        return got


class Sentinels:
    """A primary with replicas; sentinels tell which is the primary, and are asked after failures.

    (Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel".)
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._watch = Watch(place.shown)
        self._sentinels = [
            Connections(
                address, tls=place.tls, settings=place.sentinel_settings, most=2, wait=place.wait
            )
            for address in place.addresses
        ]
        self._question = command(
            b"SENTINEL", b"get-master-addr-by-name", place.service.encode("utf-8")
        )
        self._primary: Connections | None = None
        self._lock = threading.Lock()

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        return self._ask(packed, 1, fits)[0]

    def at(self, key: bytes) -> Ask:
        return self._ask

    def each(self) -> Iterator[Ask]:
        yield self._ask

    def close(self) -> None:
        self._forget(self._primary)
        for sentinel in self._sentinels:
            sentinel.close()

    def _ask(
        self, packed: bytes, answers: int = 1, fits: Fits | None = None, most: int = SIZE
    ) -> list[Any]:
        self._watch.admit()
        primary = self._primary
        try:
            if primary is None:
                primary = self._found()
            got = fit(primary.exchange(packed, answers, fits, most))
        except Unreachable as error:
            self._forget(primary)
            raise self._watch.failed(str(error), lasting=error.lasting) from error
        self._watch.answered()
        return got

    def _found(self) -> Connections:
        """Return the primary that the first of the sentinels to answer knows.

        :raises Unreachable: None knows one that says so itself.
        """
        reasons, lasting = [], True
        for sentinel in list(self._sentinels):
            try:
                primary = self._named_by(sentinel)
            except (Unreachable, StoreError) as error:
                reasons.append(str(error))
                lasting = lasting and getattr(error, "lasting", False)
                continue
            with self._lock:
                if self._primary is None:
                    self._primary = primary
                found = self._primary
                self._sentinels.remove(sentinel)  # who answered is asked first the next time
                self._sentinels.insert(0, sentinel)
            if found is not primary:
                primary.close()  # another thread was faster
            return found
        raise Unreachable("; ".join(reasons), lasting=lasting)

    def _named_by(self, sentinel: Connections) -> Connections:
        [answer] = sentinel.exchange(self._question, 1, is_address)
        if isinstance(answer, Refusal):
            raise Unreachable(
                f"the sentinel at {sentinel.shown} says {answer.text}", lasting=answer.lasting
            )
        if answer is None:
            raise Unreachable(
                f"the sentinel at {sentinel.shown} knows no service {self._place.service!r}",
                lasting=True,
            )
        host, port = answer
        primary = connect_to(self._place, (host.decode(), int(port)))
        try:
            [role] = fit(primary.exchange(command(b"ROLE"), 1, is_role))
            if isinstance(role, Refusal) or role[0] == b"master":  # ROLE may not be allowed
                return primary
        except BaseException:
            primary.close()
            raise
        primary.close()
        raise Unreachable(f"{primary.shown} is said to be the primary, and is none")

    def _forget(self, primary: Connections | None) -> None:
        if primary is None:
            return
        with self._lock:
            if self._primary is primary:
                self._primary = None
        primary.close()


def servers_of(place: Place) -> Servers:
    """Return what *place* describes; nothing is connected yet."""
    if place.kind == "sentinel":
        return Sentinels(place)
    if place.kind == "cluster":
        pass

        return Cluster(place)
    return Single(place)


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
        quiesce_at_fork(self)

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
