"""What workers share: small values under string keys, each gone after its time to live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from wsgigate.rules.algorithms import Algorithm
    from wsgigate.rules.quota import Verdict


__all__ = [
    "COUNTERS",
    "Change",
    "DamagedStore",
    "KEY_BYTES",
    "MisconfiguredStore",
    "NETWORKED",
    "Quotas",
    "Several",
    "Store",
    "StoreError",
    "Updates",
    "VALUE_BYTES",
    "VITAL",
    "check_value",
    "encoded",
    "get_all",
    "update",
    "usage",
]


# What a store takes: how large a key and a value may be, and which go first when it is full.
#
# Whoever sends requests can make up keys of counters: an address of IPv6, an API key, a claim.
# What keeps the gateway right must not depend on how many. So there are three ranks, told by what
# a key begins with, and a full store treats each in its own way:
#
# - **vital**: health, circuits, the registry, the deny list, leases, maintenance. How many there
#   are is bounded by the configuration and the operator. They have room that nothing else may
#   use, and when that is used up, too, counters are removed for them.
# - **counters** of callers. There is no room for new ones in a full store; the limiter's
#   ``on_store_error`` says what becomes of the request. One that is lost is a caller with a whole
#   quota.
# - all others, which are the user's own: nothing is removed for them, and they are not removed.

KEY_BYTES = 480

VALUE_BYTES = 64 * 1024

COUNTERS = ("limit/", "concurrency/")
"""What keys of counters begin with, in the order in which they are removed."""

VITAL = (
    *("circuit/", "deny/", "health/", "instances/", "log/", "maintenance/"),
    *("registration/", "registry/", "service-circuit/"),
)
"""What the keys begin with that have room of their own."""


def encoded(key: str) -> bytes:
    """Return *key* in UTF-8.

    :raises ValueError: It is longer than 480 bytes, or no Unicode text (a lone surrogate).
    """
    data = key.encode()
    if len(data) > KEY_BYTES:
        raise ValueError(f"a store's key is at most {KEY_BYTES} bytes of UTF-8, got {len(data)}")
    return data


def check_value(value: bytes | bytearray) -> None:
    """Refuse a value of more than 64 KiB with a ValueError."""
    if len(value) > VALUE_BYTES:
        raise ValueError(f"a store's value is at most {VALUE_BYTES} bytes, got {len(value)}")


R = TypeVar("R")

Change: TypeAlias = Callable[[bytes | None, float], tuple[bytes | None, float, R]]
"""``change(old, now) -> (new, ttl, result)``: what becomes of a value, decided in one step.

*old* is the live value or ``None``; *now* is the store's own time in seconds. A *new* that is *old*
itself leaves the value and its time to live as they are; ``None`` removes it.
"""


class StoreError(Exception):
    """The store could not be read or written; the message names the store and the cause.

    Most causes pass: a server that does not answer, a full disk. Whoever gets this goes on without
    the store, as its ``on_store_error`` or the like says, and asks again.
    """


class MisconfiguredStore(StoreError):
    """The store cannot be used until its configuration changes; waiting does not help.

    A wrong password, a database that does not exist, a folder of another user, a file of another
    program: each is an error at the start. The message names the cause and the cure.
    """


class DamagedStore(StoreError):
    """The file of the store is damaged; its next user moves it aside and begins a new one."""


@runtime_checkable
class Store(Protocol):
    """Small values shared by workers. Every value may vanish after its ttl.

    The store tells the time: those who share a counter must share a clock. A key is at most 480
    bytes of UTF-8, a value at most 64 KiB; more is a ``ValueError``. Every method raises
    :class:`StoreError` when the store fails.
    """

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or None, and the store's own time in seconds."""

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace *old* by *new* if it is still there; ``None`` means absent.

        :param ttl: How long *new* lives, in seconds from now.
        :returns: Whether *old* was there and *new* is now.
        """

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*, in the order of their keys."""

    def close(self) -> None:
        """Release what this process holds open; the next call opens it again."""


class Updates(Protocol):
    """What a store offers besides when it can decide and write in one step of its own."""

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by what *change* makes of it at once; return its result."""


class Several(Protocol):
    """What a store offers besides when it can read several values faster than one by one."""

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the live value of each of *keys*, None for those that have none."""


class Quotas(Protocol):
    """What a store offers besides when it can decide about quotas by itself, in one step."""

    def take(
        self, key: str, algorithms: Sequence[Algorithm], cost: int = 1
    ) -> tuple[tuple[Verdict, ...], float]:
        """Decide about one request against all *algorithms*: all allow it, or none is charged.

        :param cost: How many requests it counts as; 0 only looks.
        :returns: Each quota's own verdict, and the store's time in seconds.
        :raises ValueError: There is no algorithm, two are the same, or *cost* is not one that all
            of the quotas allow.
        """


ATTEMPTS = 100
"""How often a value changed by others is read again before the store counts as failed."""


def update(store: Store, key: str, change: Change[R]) -> R:
    """Replace the value of *key* by what *change* makes of it, atomically; return its result.

    One step of the store's own where it has one; else read, decide, and swap until nobody was
    faster. *change* must be pure, as it may be called more than once.

    :raises StoreError: The store failed, or others changed the value every time.
    """
    own = getattr(store, "update", None)
    if own is not None:
        result: R = own(key, change)
        return result
    for _ in range(ATTEMPTS):
        old, now = store.get(key)
        new, ttl, result = change(old, now)
        if new is old or store.swap(key, old, new, ttl):
            return result
    raise StoreError(f"{key!r} is changed by others faster than it can be read")


def get_all(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return the live value of each of *keys*, None for those that have none.

    They need not all have been there at one moment. One step of the store's own where it has one,
    else one after the other.

    :raises StoreError: The store failed.
    """
    own: Callable[[Sequence[str]], list[bytes | None]] | None = getattr(store, "get_all", None)
    return [store.get(key)[0] for key in keys] if own is None else own(keys)


def usage(store: Store) -> dict[str, int]:
    """Return how full *store* is: ``used`` and ``limit`` in bytes, ``items``, ``maxItems``.

    What it does not know or bound is left out; of a store that tells nothing the result is empty.

    :raises StoreError: The store fails.
    """
    own = getattr(store, "usage", None)
    return {} if own is None else dict(own())


NETWORKED = frozenset(
    [
        *("redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"),
        *(
            f"{name}+{kind}"
            for name in ("redis", "rediss", "valkey", "valkeys")
            for kind in ("sentinel", "cluster")
        ),
    ]
)
"""What the URLs of stores begin with that many machines may share."""
