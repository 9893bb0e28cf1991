"""How values expire in LMDB: what is written before each, and how the expired ones are found.

Nobody is asked to sweep: whoever adds values looks at twice as many keys, in the same transaction,
from where the last one stopped. LMDB has one writer at a time, so all workers together sweep as one
would, none has to live for it, and a write waits for no more than a few looks. A store that nothing
is added to does not grow; what has expired in it goes while somebody writes.
"""

from __future__ import annotations

import struct
from itertools import islice
from typing import Any

__all__ = ["FIRST", "FORMAT", "MARKER", "OWN", "SWEEP_EVERY", "SWEEP_LOOKS", "expiry", "sweep"]

FIRST = b"="  # every key of ours starts with it, which keeps them apart from the next two
MARKER = b"\0wsgigate"  # no other program's file has it
POSITION = b"\0sweep"  # how far the sweep has come, over all processes
OWN = (MARKER, POSITION)
FORMAT = b"1"  # a value is its expiry, a big-endian double, and then the bytes that were stored

SWEEP_EVERY = 32  # new values; a large one counts for several
SWEEP_LOOKS = 64  # at keys: twice the new ones, so the file holds at most twice what is alive

expiry = struct.Struct(">d")
_expiry_of = expiry.unpack_from


def sweep(txn: Any, now: float, looks: int = SWEEP_LOOKS) -> None:
    """Remove the expired among the next *looks* keys, as a part of *txn*."""
    position = txn.get(POSITION, FIRST)
    following = _expire(txn, position, looks, now) or FIRST
    if following != position:
        txn.put(POSITION, following)


def _expire(txn: Any, position: bytes, looks: int, now: float) -> bytes | None:
    """Remove the expired of *looks* keys from *position* on; return where to go on, if anywhere."""
    with txn.cursor() as cursor:
        if not cursor.set_range(position):
            return None
        seen = [(key, _expiry_of(value)[0] <= now) for key, value in islice(cursor, looks + 1)]
    for key, expired in seen[:looks]:
        if expired:
            txn.delete(key)
    return seen[looks][0] if len(seen) > looks else None
