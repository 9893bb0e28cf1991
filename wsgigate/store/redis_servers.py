"""Which Redis is asked: the one there is, or the one that the sentinels call the primary."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from wsgigate.store import StoreError
from wsgigate.store.redis_connections import Connections, Fits, Unreachable
from wsgigate.store.redis_shapes import is_address, is_role
from wsgigate.store.redis_url import Place
from wsgigate.store.redis_watch import Watch
from wsgigate.store.redis_wire import SIZE, Refusal, command

__all__ = ["Ask", "Sentinels", "Servers", "Single", "connect_to", "fit"]

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
        from wsgigate.store.redis_cluster import Cluster

        return Cluster(place)
    return Single(place)
