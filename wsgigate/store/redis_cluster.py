"""A Redis Cluster: each key has one primary, and keys may move to another at any time."""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from redis.crc import key_slot

from wsgigate.store import MisconfiguredStore, StoreError
from wsgigate.store.redis_connections import Connections, Fits, Unreachable
from wsgigate.store.redis_servers import Ask, connect_to, fit
from wsgigate.store.redis_shapes import SLOTS_BYTES, is_slots
from wsgigate.store.redis_url import Address, Place
from wsgigate.store.redis_watch import Watch
from wsgigate.store.redis_wire import SIZE, Refusal, command

__all__ = ["Cluster"]

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
