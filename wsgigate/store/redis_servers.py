"""The servers of a Redis: one, the primary that sentinels name, or those of a cluster.

Theory of operation: outages
----------------------------

A rate limiter must not make its application as slow as a failing Redis. The rules:

1. **Fail fast.** After a few failures in a row (3 by default) a server is *paused*: every call
   fails at once with :class:`StoreError`, without a connection attempt. Without that, each request
   would wait for a timeout, and all threads of a worker would soon wait.
2. **One probe.** When the pause ends, one call is admitted as a probe; the others fail at once. A
   failed probe doubles the pause, from 0.5 s up to 5 s, and any success ends the outage. The pause
   is shortened at random by up to half, so that workers do not return at the same moment.
3. **A lost probe does not block.** A probe may never report (its thread was killed), so the next
   one is admitted after the longest pause.
4. **Stale failures do not count.** Calls in flight when the pause begins fail later and carry no
   news; only the probe extends the pause.
5. **No call is repeated after it may have been carried out.** A timeout leaves the outcome unknown,
   and a repeated quota would be charged twice. A call does follow a redirect of a cluster, and does
   send a script that the server lacks (``NOSCRIPT``), because neither was carried out.
6. **Doubt closes the connection.** An answer of another shape than the command demands counts as a
   failure, and its connection is never used again: its answers may belong to other calls.
7. **Each server of a cluster has its own state.** While one is down, only its keys are unavailable.
8. **Lasting errors.** A wrong password or a missing database does not pass without a change: such
   a failure is a :class:`MisconfiguredStore`, which rejects the configuration at the start.

The log has one record when a server is paused and one when it answers again.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

from redis.crc import key_slot

from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.redis_connections import (
    SIZE,
    ErrorReply,
    Fits,
    RedisConnectionPool,
    Unreachable,
    command,
    is_number,
)
from wsgigate.store.redis_url import HostPort, RedisLocation

__all__ = [
    "Ask",
    "Cluster",
    "Outage",
    "Sentinels",
    "ServerBreaker",
    "Servers",
    "Single",
    "connect_to",
    "fit",
    "servers_of",
]


# The outage of one server: counts failures and admits probes. Pure: the time is an argument.


class Outage:
    """The failures of one server in a row, and whether a call is admitted.

    Calls must not overlap.

    :param tolerated: Number of failures in a row before the first pause.
    :param first: Seconds of the first pause.
    :param longest: Seconds of the longest pause; also how long a probe may stay silent before the
        next is admitted.
    :raises ValueError: *tolerated* is below 1, or not ``0 < first <= longest``.
    """

    def __init__(self, *, tolerated: int = 3, first: float = 0.5, longest: float = 5.0) -> None:
        if tolerated < 1:
            raise ValueError(f"tolerated: 1 or more, not {tolerated}")
        if not 0 < first <= longest:
            raise ValueError(f"pauses: 0 < first <= longest, not {first:g} and {longest:g}")
        self.failures = 0
        """Number of failures in a row; 0 without an outage."""
        self.since = 0.0
        """Time of the first of these failures."""
        self.until = 0.0
        """End of the pause; meaningless unless :attr:`paused`."""
        self._tolerated = tolerated
        self._first = first
        self._longest = longest
        self._pause = first
        self._probing = False

    @property
    def paused(self) -> bool:
        """Whether calls fail at once, except for a probe."""
        return self.failures >= self._tolerated

    def admit(self, now: float) -> bool:
        """Return whether a call is admitted at *now*; during an outage only as a probe."""
        if not self.paused:
            return True
        if now < self.until:
            return False
        self.until = now + self._longest  # a lost probe must not block all calls: rule 3
        self._probing = True
        return True

    def failed(self, now: float, chance: float) -> bool:
        """Record a failed call; return whether it began the first pause of an outage.

        :param chance: In [0, 1): shortens the pause by up to half.
        """
        if self.paused and not self._probing:
            return False  # in flight when the pause began: rule 4
        if not self.failures:
            self.since = now
        before = self.paused
        self.failures += 1
        if not self.paused:
            return False
        self._pause = min(2 * self._pause, self._longest) if before else self._first
        self._probing = False
        self.until = now + self._pause * (1 - chance / 2)
        return not before

    def succeeded(self) -> bool:
        """Record a successful call; return whether it ended a pause."""
        was_paused = self.paused
        self.failures = 0
        self._probing = False
        return was_paused


# The breaker of one server.

LOG = logging.getLogger("wsgigate.store")


class ServerBreaker:
    """Admits calls to a server, or fails them at once during a pause; see :class:`Outage`.

    It logs one record when the server is paused, and one when it answers again.

    :param shown: The server's name for messages, without secrets.
    :param clock: Returns monotonic seconds.
    :param chance: Returns random numbers in [0, 1).
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
        """Return if a call is admitted.

        :raises StoreError: The server is paused.
        """
        if not self._outage.failures:
            return
        with self._lock:
            now = self._clock()
            if self._outage.admit(now):
                return
            left = self._outage.until - now
        raise self._kind(f"{self._reason}; next attempt in {left:.1f} s")

    def failed(self, reason: str, *, lasting: bool = False) -> StoreError:
        """Record a failed call; return the error for its caller.

        :param lasting: Whether the failure lasts until the configuration changes.
        """
        with self._lock:
            self._reason = f"the store {self._shown} fails: {reason}"
            self._kind = MisconfiguredStore if lasting else StoreError
            text, kind = self._reason, self._kind
            began = self._outage.failed(self._clock(), self._chance())
        if began:
            LOG.error("%s; requests bypass the store until it recovers", text)
        return kind(text)

    def answered(self) -> None:
        """Record a successful call."""
        if not self._outage.failures:
            return
        with self._lock:
            lasted = self._clock() - self._outage.since
            ended = self._outage.succeeded()
        if ended:
            LOG.warning("the store %s answers again after %.1f s", self._shown, lasted)


# Redis Cluster: each key belongs to one primary, and may move to another at any time.

SLOTS_BYTES = 16 * 1024 * 1024
"""Maximum bytes of a cluster's map of slots: 16,384 ranges of a kilobyte each."""

SLOTS = 16_384

REDIRECTS = 3
"""Maximum number of redirects that one call follows."""

REFRESH_EVERY = 1.0
"""Seconds between two requests for the map of slots, while it is known to be wrong."""

_SLOTS = command(b"CLUSTER", b"SLOTS")

_ASKING = command(b"ASKING")

_REDIRECT = re.compile(r"(MOVED|ASK) [0-9]+ (.*):([0-9]{1,5})")


class Node(NamedTuple):
    """One server of the cluster, with its connections and its breaker."""

    connections: RedisConnectionPool
    breaker: ServerBreaker
    ask: Ask


class Cluster:
    """A Redis Cluster: sends each command to the primary of its key.

    Any server that answers provides the map of slots. Each server has its own breaker: while one is
    down, only its keys are unavailable. (Redis documentation, "Redis cluster specification".)

    :param clock: Returns monotonic seconds.
    :param chance: Returns random numbers in [0, 1).
    """

    def __init__(
        self,
        place: RedisLocation,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._place = place
        self._clock = clock
        self._breaker_of = partial(ServerBreaker, clock=clock, chance=chance)
        self._breaker = self._breaker_of(place.shown)
        self._nodes: dict[HostPort, Node] = {}
        self._map: tuple[list[int], list[tuple[int, HostPort]]] = ([], [])
        # the first slots of the ranges in order, and for each its last slot and its primary
        self._stale = True
        self._refreshed_at = float("-inf")
        self._lock = threading.Lock()

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        address = self._address_of(key)
        asking = False
        for _ in range(REDIRECTS + 1):
            if asking:
                # the first of the two answers belongs to ASKING, and is anything but an error
                answer = self._ask(address, _ASKING + packed, 2, most=2 * SIZE)[1]
                if not isinstance(answer, ErrorReply) and not fits(answer):
                    raise StoreError(f"the store {self._place.shown} sent an unexpected answer")
            else:
                answer = self._ask(address, packed, 1, fits)[0]
            redirect = _redirect(answer)
            if redirect is None:
                return answer
            kind, host, port = redirect
            asking = kind == "ASK"
            address = (host or address[0], port)
            if not asking:
                self._read_slots(address)
        raise StoreError(
            f"the store {self._place.shown} redirects {key!r} more than {REDIRECTS} times"
        )

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
            self._refreshed_at = float("-inf")
        for node in nodes:
            node.connections.close()

    def _ask(
        self,
        address: HostPort,
        packed: bytes,
        answers: int = 1,
        fits: Fits | None = None,
        most: int = SIZE,
    ) -> list[Any]:
        node = self._node(address)
        node.breaker.admit()
        try:
            got = fit(node.connections.exchange(packed, answers, fits, most))
        except Unreachable as error:
            self._stale = True
            raise node.breaker.failed(str(error), lasting=error.lasting) from error
        node.breaker.answered()
        return got

    def _node(self, address: HostPort) -> Node:
        node = self._nodes.get(address)
        if node is None:
            connections = connect_to(self._place, address)
            with self._lock:
                breaker = self._breaker_of(f"{self._place.shown} at {connections.shown}")
                ask = partial(self._ask, address)
                node = self._nodes.setdefault(address, Node(connections, breaker, ask))
        return node

    def _address_of(self, key: bytes) -> HostPort:
        self._refresh()
        slot = key_slot(key)
        starts, ranges = self._map
        place = bisect_right(starts, slot) - 1
        if place >= 0:
            end, address = ranges[place]
            if slot <= end:
                return address
        self._stale = True
        raise StoreError(f"no server of {self._place.shown} serves the slot {slot}")

    def _refresh(self) -> None:
        """Read the map of slots if it is missing or was found to be wrong."""
        if not self._stale:
            return
        with self._lock:
            now = self._clock()
            if self._map[0] and now - self._refreshed_at < REFRESH_EVERY:
                return
            self._refreshed_at = now
        self._breaker.admit()
        reasons, lasting = [], True
        known = [address for _, address in self._map[1]]
        for address in dict.fromkeys([*known, *self._place.addresses]):
            try:
                self._read_slots(address)
            except StoreError as error:
                reasons.append(str(error))
                lasting = lasting and isinstance(error, MisconfiguredStore)
            else:
                self._breaker.answered()
                return
        if not self._map[0]:
            raise self._breaker.failed("; ".join(reasons), lasting=lasting)

    def _read_slots(self, address: HostPort) -> None:
        """Replace the map of slots by that of the server at *address*.

        :raises StoreError: The server does not answer, or has no map.
        """
        answer = self._ask(address, _SLOTS, 1, is_slots, SLOTS_BYTES)[0]
        if isinstance(answer, ErrorReply) or not answer:
            refused = isinstance(answer, ErrorReply)
            reason = answer.text if refused else "the server has no map of slots"
            kind = MisconfiguredStore if refused and answer.lasting else StoreError
            raise kind(f"{self._place.shown} at {address[0]}:{address[1]}: {reason}")
        found = []
        for start, end, (host, port, *_), *_replicas in answer:
            # no host, or "?": the host that answered, as seen from here
            name = host.decode() if host not in (None, b"", b"?") else address[0]
            found.append((int(start), int(end), (name, int(port))))
        found.sort()
        with self._lock:
            self._map = ([start for start, _, _ in found], [(end, at) for _, end, at in found])
            self._stale = False
            used = {at for _, _, at in found}.union(self._place.addresses)
            gone = [self._nodes.pop(at) for at in list(self._nodes) if at not in used]
        for node in gone:
            node.connections.close()


def _redirect(answer: Any) -> tuple[str, str, int] | None:
    """Return the redirect in *answer*: ``MOVED`` or ``ASK``, the host and the port."""
    if not isinstance(answer, ErrorReply) or answer.code not in ("MOVED", "ASK"):
        return None
    found = _REDIRECT.fullmatch(answer.text)
    return (found[1], found[2], int(found[3])) if found and 0 < int(found[3]) < 65536 else None


# A single server, or the primary that sentinels name.

UNFIT = frozenset(
    [
        *("LOADING", "READONLY", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "MISCONF"),
        *("NOAUTH", "WRONGPASS", "NOREPLICAS"),
    ]
)
"""Codes of errors by which a server reports that it cannot serve any command now."""

Ask = Callable[..., list[Any]]
"""``ask(packed, answers=1, fits=None, most=SIZE)``: one exchange with one server, guarded by its
breaker; see :meth:`RedisConnectionPool.exchange`."""


class Servers(Protocol):
    """The servers that hold the values."""

    def ask(self, key: bytes, packed: bytes, fits: Fits) -> Any:
        """Return the answer of the server that holds *key*; it may be an :class:`ErrorReply`.

        :param fits: Returns whether an answer has the expected shape.
        :raises StoreError: The server fails, or its answer has another shape.
        """

    def at(self, key: bytes) -> Ask:
        """Return the function that asks the server of *key*, the same for all its keys.

        :raises StoreError: The server is unknown.
        """

    def each(self) -> Iterator[Ask]:
        """Yield the function that asks it for each server that holds values."""

    def close(self) -> None:
        """Close all connections."""


def connect_to(place: RedisLocation, address: tuple[str, int]) -> RedisConnectionPool:
    """Return a pool for the server at *address*, without an open connection."""
    return RedisConnectionPool(
        address, tls=place.tls, settings=place.settings, most=place.most, wait=place.wait
    )


def fit(answers: list[Any]) -> list[Any]:
    """Return *answers* unless one of them reports that the server cannot serve.

    :raises Unreachable: One of them does.
    """
    for answer in answers:
        if isinstance(answer, ErrorReply) and answer.code in UNFIT:
            raise Unreachable(answer.text, lasting=answer.lasting)
    return answers


class Single:
    """One server at a fixed address."""

    def __init__(self, place: RedisLocation, breaker: ServerBreaker) -> None:
        self._connections = connect_to(place, place.addresses[0])
        self._breaker = breaker

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
        self._breaker.admit()
        try:
            got = fit(self._connections.exchange(packed, answers, fits, most))
        except Unreachable as error:
            raise self._breaker.failed(str(error), lasting=error.lasting) from error
        self._breaker.answered()
        return got


class Sentinels:
    """A primary with replicas; sentinels name the primary, and are asked again after failures.

    (Redis documentation, "Guidelines for Redis clients with support for Redis Sentinel".)
    """

    def __init__(self, place: RedisLocation, breaker: ServerBreaker) -> None:
        self._place = place
        self._breaker = breaker
        self._sentinels = [
            RedisConnectionPool(
                address, tls=place.tls, settings=place.sentinel_settings, most=2, wait=place.wait
            )
            for address in place.addresses
        ]
        self._question = command(
            b"SENTINEL", b"get-master-addr-by-name", place.service.encode("utf-8")
        )
        self._primary: RedisConnectionPool | None = None
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
        self._breaker.admit()
        primary = self._primary
        try:
            if primary is None:
                primary = self._find_primary()
            got = fit(primary.exchange(packed, answers, fits, most))
        except Unreachable as error:
            self._forget(primary)
            raise self._breaker.failed(str(error), lasting=error.lasting) from error
        self._breaker.answered()
        return got

    def _find_primary(self) -> RedisConnectionPool:
        """Return the primary named by the first sentinel that answers.

        :raises Unreachable: No sentinel names a server that confirms to be the primary.
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
                self._sentinels.remove(sentinel)  # asked first the next time
                self._sentinels.insert(0, sentinel)
            if found is not primary:
                primary.close()  # another thread was faster
            return found
        raise Unreachable("; ".join(reasons), lasting=lasting)

    def _named_by(self, sentinel: RedisConnectionPool) -> RedisConnectionPool:
        [answer] = sentinel.exchange(self._question, 1, is_address)
        if isinstance(answer, ErrorReply):
            raise Unreachable(
                f"the sentinel at {sentinel.shown} answered {answer.text}", lasting=answer.lasting
            )
        if answer is None:
            raise Unreachable(
                f"the sentinel at {sentinel.shown} monitors no service {self._place.service!r}",
                lasting=True,
            )
        host, port = answer
        primary = connect_to(self._place, (host.decode(), int(port)))
        try:
            [role] = fit(primary.exchange(command(b"ROLE"), 1, is_role))
            if isinstance(role, ErrorReply) or role[0] == b"master":  # ROLE may not be allowed
                return primary
        except BaseException:
            primary.close()
            raise
        primary.close()
        raise Unreachable(f"{primary.shown}, which a sentinel named, is not the primary")

    def _forget(self, primary: RedisConnectionPool | None) -> None:
        if primary is None:
            return
        with self._lock:
            if self._primary is primary:
                self._primary = None
        primary.close()


def servers_of(
    place: RedisLocation,
    *,
    clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> Servers:
    """Return the servers that *place* describes, without an open connection.

    :param clock: Returns monotonic seconds.
    :param chance: Returns random numbers in [0, 1).
    """
    if place.kind == "cluster":
        return Cluster(place, clock=clock, chance=chance)
    breaker = ServerBreaker(place.shown, clock=clock, chance=chance)
    return Sentinels(place, breaker) if place.kind == "sentinel" else Single(place, breaker)


# The shapes of the answers of sentinels and clusters.

_LONGEST_HOST = 255


def is_role(answer: Any) -> bool:
    """Return whether *answer* is one to ``ROLE``; only its first item is used."""
    return answer.__class__ is list and bool(answer) and answer[0].__class__ is bytes


def is_address(answer: Any) -> bool:
    """Return whether *answer* is a sentinel's: the primary's address, or null if unknown."""
    if answer is None:
        return True
    if answer.__class__ is not list or len(answer) != 2:
        return False
    host, port = answer
    return _is_host(host) and is_number(port) and _is_port(int(port))


def is_slots(answer: Any) -> bool:
    """Return whether *answer* is one to ``CLUSTER SLOTS``; it may be empty."""
    return answer.__class__ is list and all(map(_is_range, answer))


def _is_range(item: Any) -> bool:
    if item.__class__ is not list or len(item) < 3:
        return False
    start, end, node = item[:3]
    return (
        start.__class__ is int
        and end.__class__ is int
        and 0 <= start <= end < SLOTS
        and node.__class__ is list
        and len(node) >= 2
        and (node[0] in (None, b"", b"?") or _is_host(node[0]))
        and node[1].__class__ is int
        and _is_port(node[1])
    )


def _is_host(text: Any) -> bool:
    """Return whether *text* can be a host name or an address."""
    return (
        text.__class__ is bytes
        and 0 < len(text) <= _LONGEST_HOST
        and text.isascii()
        and text.decode("ascii").isprintable()
        and b" " not in text
    )


def _is_port(number: int) -> bool:
    return 0 < number < 65_536
