"""Stores: small values under string keys with a time to live, shared by workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from wsgigate.rules.algorithms import Algorithm
    from wsgigate.rules.quota import Verdict


__all__ = [
    "COUNTERS",
    "KEY_BYTES",
    "NETWORKED",
    "VALUE_BYTES",
    "VITAL",
    "Change",
    "DamagedStore",
    "MisconfiguredStore",
    "Quotas",
    "R",
    "Several",
    "Store",
    "StoreError",
    "Updates",
    "check_value",
    "encoded",
    "get_all",
    "removed",
    "update",
    "usage",
]


# The sizes of keys and values, and the order of eviction.
#
# A client can make up any number of keys of counters: an IPv6 address, an API key, a claim. What
# keeps the gateway correct must not depend on their number. So there are three ranks by the prefix
# of a key, which a full store treats differently:
#
# - **vital**: health, circuits, the registry, the deny list, API keys, spent nonces, leases,
#   maintenance, overrides of instances. Configuration, operator and code bound their number. They
#   have reserved room, and when that is used up, counters are evicted for them.
# - **counters** of callers. A full store rejects new ones, and the limiter's ``on_store_error``
#   decides about the request. An evicted counter gives its caller a whole quota.
# - all others, which belong to the user: nothing is evicted for them, and they are not evicted.

KEY_BYTES = 480

VALUE_BYTES = 64 * 1024

COUNTERS = ("limit/", "concurrency/")
"""Prefixes of the keys of counters, in the order of their eviction."""

VITAL = (
    *("api-keys/", "circuit/", "deny/", "health/", "instances/", "jwks/", "log/"),
    *("maintenance/", "overrides/", "registration/", "registry/", "service-circuit/", "spent/"),
)
"""Prefixes of the keys with reserved room."""


def encoded(key: str) -> bytes:
    """Return *key* in UTF-8.

    :raises ValueError: *key* is longer than 480 bytes, or has a lone surrogate.
    """
    data = key.encode()
    if len(data) > KEY_BYTES:
        raise ValueError(f"a store's key is at most {KEY_BYTES} bytes of UTF-8, got {len(data)}")
    return data


def check_value(value: bytes | bytearray) -> None:
    """Check the size of *value*.

    :raises ValueError: *value* is longer than 64 KiB.
    """
    if len(value) > VALUE_BYTES:
        raise ValueError(f"a store's value is at most {VALUE_BYTES} bytes, got {len(value)}")


R = TypeVar("R")

Change: TypeAlias = Callable[[bytes | None, float], tuple[bytes | None, float, R]]
"""``change(old, now) -> (new, ttl, result)``: decides about a value in one atomic step.

*old* is the live value or ``None``; *now* is the store's time in seconds. Returning *old* itself as
*new* leaves the value and its time to live unchanged; ``None`` removes it.
"""


def removed(old: bytes | None, now: float) -> tuple[bytes | None, float, None]:
    """Remove the value; a :data:`Change`."""
    return None, 0.0, None


class StoreError(Exception):
    """The store could not be read or written; the message names the store and the cause.

    Most causes pass: a server that does not answer, a full disk. Callers continue without the
    store, as their ``on_store_error`` or similar setting has it, and use it again later.
    """


class MisconfiguredStore(StoreError):
    """The store cannot be used until its configuration changes; waiting does not help.

    A wrong password, a database that does not exist, a folder of another user, a file of another
    program: each is an error at the start. The message names the cause and the remedy.
    """


class DamagedStore(StoreError):
    """The file of the store is damaged; the next process to use it moves it aside."""


@runtime_checkable
class Store(Protocol):
    """Small values shared by workers. Each may disappear after its time to live.

    The store has the clock, because workers that share a counter must share a clock. A key is at
    most 480 bytes of UTF-8, a value at most 64 KiB; larger ones raise ``ValueError``. Every method
    raises :class:`StoreError` when the store fails.
    """

    def get(self, key: str) -> tuple[bytes | None, float]:
        """Return the live value, or ``None``, and the store's time in seconds."""

    def swap(self, key: str, old: bytes | None, new: bytes | None, ttl: float) -> bool:
        """Replace the value by *new* if it is *old* (compare and swap); ``None`` means absent.

        :param ttl: Time to live of *new* in seconds.
        :returns: Whether the value was *old*, and was replaced.
        """

    def items(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the live items whose key starts with *prefix*, in the order of the keys."""

    def close(self) -> None:
        """Release the resources of this process; the next call opens them again."""


class Updates(Protocol):
    """Optional method of a store that can decide and write in one step."""

    def update(self, key: str, change: Change[R]) -> R:
        """Replace the value of *key* by the result of *change* atomically; return its result."""


class Several(Protocol):
    """Optional method of a store that can read several values faster than one by one."""

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Return the live value of each of *keys*, ``None`` for a missing one."""


class Quotas(Protocol):
    """Optional method of a store that can decide about quotas in one step."""

    def take(
        self, key: str, algorithms: Sequence[Algorithm], cost: int = 1
    ) -> tuple[tuple[Verdict, ...], float]:
        """Decide about one request by all *algorithms*: all allow it, or none is charged.

        :param cost: Quota units consumed; 0 checks without consuming.
        :returns: Each quota's own verdict, and the store's time in seconds.
        :raises ValueError: There is no algorithm, two are the same, or a quota does not allow
            *cost*.
        """


ATTEMPTS = 100
"""Attempts to change a contended value before the store counts as failed."""


def update(store: Store, key: str, change: Change[R]) -> R:
    """Replace the value of *key* by the result of *change* atomically; return its result.

    It uses the store's own ``update`` if there is one, else compare and swap in a loop. *change*
    must be pure, as it may be called more than once.

    :raises StoreError: The store failed, or other writers were faster 100 times.
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
    raise StoreError(f"{key!r} was changed by others during each of {ATTEMPTS} attempts")


def get_all(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return the live value of each of *keys*, ``None`` for a missing one.

    The values need not be of the same moment. It uses the store's own ``get_all`` if there is one,
    else one read per key.

    :raises StoreError: The store failed.
    """
    own: Callable[[Sequence[str]], list[bytes | None]] | None = getattr(store, "get_all", None)
    return [store.get(key)[0] for key in keys] if own is None else own(keys)


def usage(store: Store) -> dict[str, int]:
    """Return the usage of *store*: ``used`` and ``limit`` in bytes, ``items``, ``maxItems``.

    Members that the store does not provide are missing; the result may be empty.

    :raises StoreError: The store failed.
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
"""Schemes of the URLs of stores that several machines may share."""
