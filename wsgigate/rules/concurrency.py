"""How many requests of a caller may be under way at a time, decided one at a time.

The state of a caller is a list of leases, one for each of its requests: 8 bytes that tell it from
all others, and the moment it ends unless it is renewed. A worker that dies renews none, so that
what it held is free again after the time of a lease. A lease that would end later than a new one
is taken for a new one: a clock that is set back keeps no place occupied for longer than that.
"""

from __future__ import annotations

import struct
from collections.abc import Collection

from wsgigate.rules.quota import Verdict

__all__ = ["ID_BYTES", "LARGEST", "Concurrency"]

ID_BYTES = 8
_LEASE = struct.Struct(">8sd")

LARGEST = 4000
"""More leases do not fit into a store's value, 64 KiB."""


class Concurrency:
    """*limit* requests at a time.

    :param limit: How many, 1 to 4000.
    :param lease: For how many seconds a place is kept for a request without being renewed.
    :raises ValueError: One of them is out of its range.
    """

    def __init__(self, limit: int, lease: float) -> None:
        if limit.__class__ is not int or not 1 <= limit <= LARGEST:
            raise ValueError(f"limit: a whole number of 1 to {LARGEST}, not {limit!r}")
        if (
            isinstance(lease, bool)
            or not isinstance(lease, int | float)
            or not 0.1 <= lease <= 3600
        ):
            raise ValueError(f"lease: 0.1 to 3600 seconds, not {lease!r}")
        self.limit = limit
        self.lease = float(lease)

    def take(
        self, old: bytes | None, now: float, lease: bytes
    ) -> tuple[bytes | None, float, Verdict]:
        """Decide about a request that begins *now*.

        :param old: The caller's state.
        :param lease: What its lease is to be called: 8 bytes that no other one has.
        :returns: The new state, how many seconds it is needed, and the verdict; its
            ``retry_after`` is when a place is free at the latest, should its holder be dead.
        """
        held, changed = self._live(old, now)
        allowed = len(held) < self.limit
        if allowed:
            held[lease] = now + self.lease
            changed = True
        ends = min(held.values()) - now
        return (
            _written(held) if changed else old,
            self._needed(held, now),
            Verdict(
                allowed, self.limit, max(0, self.limit - len(held)), 0.0, 0.0 if allowed else ends
            ),
        )

    def release(
        self, old: bytes | None, now: float, lease: bytes
    ) -> tuple[bytes | None, float, None]:
        """Free the place of *lease*; it may be gone already."""
        held, changed = self._live(old, now)
        if held.pop(lease, None) is None and not changed:
            return old, self._needed(held, now), None
        return _written(held), self._needed(held, now), None

    def renew(
        self, old: bytes | None, now: float, leases: Collection[bytes]
    ) -> tuple[bytes | None, float, None]:
        """Keep the places of *leases*, whose requests are still under way.

        One that has ended meanwhile, as its worker was stopped, is there again: the request is.
        """
        held, _ = self._live(old, now)
        held.update(dict.fromkeys(leases, now + self.lease))
        while len(held) > LARGEST:
            del held[next(iter(held))]
        return _written(held), self._needed(held, now), None

    def _live(self, old: bytes | None, now: float) -> tuple[dict[bytes, float], bool]:
        """Return the leases that have not ended, and whether that is not what *old* says."""
        held: dict[bytes, float] = {}
        if old is None or len(old) % _LEASE.size:
            return held, old is not None
        latest = now + self.lease
        changed = False
        for lease, ends in _LEASE.iter_unpack(old):
            if ends > latest:  # the clock was set back
                ends, changed = latest, True
            if ends > now:
                held[lease] = ends
            else:
                changed = True
        return held, changed

    def _needed(self, held: dict[bytes, float], now: float) -> float:
        return max(held.values()) - now + 0.001 if held else 0.0


def _written(held: dict[bytes, float]) -> bytes | None:
    return b"".join([_LEASE.pack(*each) for each in held.items()]) or None
