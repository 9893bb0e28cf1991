"""Values that may be used once, over all workers of a store: nonces, and ids of proofs.

A signed message that was copied on its way verifies again. What tells the copy from the original is
a value in it that the workers accept once: the ``nonce`` of a message signature (RFC 9421 section
7.2.2), the ``jti`` of a DPoP proof (RFC 9449 section 11.1), the id of a webhook's message.

The marks of spent values lie in a fixed number of buckets, each one value of the store that is
changed in one atomic step. Three rules must hold:

- A value is spent only after the message is verified. Otherwise anyone could spend the values of
  others, and fill the buckets.
- A mark lives at least as long as the message is accepted. So its lifetime is given in seconds from
  now, and not as a moment by the clock of one worker, and :data:`SKEW` is added to it: the clock of
  another worker that accepts the message may be behind.
- A bucket never drops a live mark to make room. A full one fails like a store that is full, and the
  caller rejects the message. So the number of keys, and their size, is bounded whatever clients
  send: at most 16 MiB for a kind of values.
"""

from __future__ import annotations

import math
import re
from hashlib import sha256
from struct import Struct

from wsgigate.store import Store, StoreError, update

__all__ = ["LONGEST", "MOST_IN_BUCKET", "SKEW", "SpentOnce", "with_mark"]

SKEW = 60.0
"""Extra seconds for which a mark is kept, for clocks that differ between machines."""

LONGEST = 7 * 86400.0
"""Maximum seconds for which a value may be marked."""

MOST_IN_BUCKET = 1024
"""Maximum number of live marks in a bucket."""

BUCKETS = 1024

_DIGEST_BYTES = 12
_LAST = Struct(">I")  # moment at which the last mark of the bucket expires
_UNTIL = Struct(">I")
_MARK_BYTES = _DIGEST_BYTES + _UNTIL.size
_LATEST = 2**32 - 1
_KIND = re.compile(r"[a-z0-9-]{1,32}")


class SpentOnce:
    """The spent values of one kind, shared by all workers of a store.

    :param store: The store that the workers share.
    :param kind: The kind of the values, such as ``"nonce"``: lower case letters, digits and
        hyphens. A value of one kind is not spent as one of another.
    :raises ValueError: *kind* is malformed.
    """

    def __init__(self, store: Store, kind: str) -> None:
        if not isinstance(kind, str) or not _KIND.fullmatch(kind):
            raise ValueError(f"kind: lower case letters, digits and hyphens, not {kind!r}")
        self._store = store
        self._prefix = f"spent/{kind}/"

    def spend(self, *parts: str, seconds: float) -> bool:
        """Spend a value; return whether this call is the first to do so.

        Of any number of concurrent calls with the same value, in any worker, one returns True.

        :param parts: What makes the value unique, such as the id of a key and its nonce. The same
            text split in another way is another value.
        :param seconds: Seconds for which the message is accepted from now on, at most a week.
        :raises ValueError: *seconds* is negative or too large.
        :raises StoreError: The store failed, or has too many live marks; the value may be spent or
            not.
        """
        if not 0 <= seconds <= LONGEST:
            raise ValueError(f"seconds: 0 to {LONGEST:.0f}, not {seconds!r}")
        name = "".join(f"{len(part)}:{part}" for part in parts)
        digest = sha256(name.encode("utf-8", "surrogatepass")).digest()
        mark = digest[:_DIGEST_BYTES]
        lifetime = seconds + SKEW

        def change(old: bytes | None, now: float) -> tuple[bytes | None, float, bool]:
            new = with_mark(old, mark, now, now + lifetime)
            if new is None:
                return old, 0.0, False
            return new, _LAST.unpack_from(new)[0] - now, True

        bucket = int.from_bytes(digest[-2:], "big") % BUCKETS
        return update(self._store, f"{self._prefix}{bucket:03x}", change)


def with_mark(old: bytes | None, mark: bytes, now: float, until: float) -> bytes | None:
    """Return the bucket *old* with one more mark; None if *mark* is in it, and live.

    A malformed bucket counts as having every mark.

    :param mark: The mark, 12 bytes.
    :param now: Time in seconds.
    :param until: Time at which the mark expires.
    :raises StoreError: The bucket is full of live marks.
    """
    end = min(math.ceil(until), _LATEST)
    last, marks = end, b""
    if old is not None:
        if len(old) < _LAST.size or (len(old) - _LAST.size) % _MARK_BYTES:
            return None
        last, marks = max(_LAST.unpack_from(old)[0], end), old[_LAST.size :]
        at = _position(marks, mark)
        if at >= 0 and _expiry(marks, at) > now:
            return None
        if at >= 0 or len(marks) >= MOST_IN_BUCKET * _MARK_BYTES:
            marks = _live(marks, now)
        else:  # the marks of one kind mostly expire in the order in which they were made
            first = 0
            while first < len(marks) and _expiry(marks, first) <= now:
                first += _MARK_BYTES
            marks = marks[first:]
        if len(marks) >= MOST_IN_BUCKET * _MARK_BYTES:
            raise StoreError(f"more than {MOST_IN_BUCKET} values of a bucket are spent at a time")
    return _LAST.pack(last) + marks + mark + _UNTIL.pack(end)


def _position(marks: bytes, mark: bytes) -> int:
    at = marks.find(mark)
    while at % _MARK_BYTES and at >= 0:  # the bytes of two neighbours
        at = marks.find(mark, at + 1)
    return at


def _expiry(marks: bytes, at: int) -> int:
    until: int = _UNTIL.unpack_from(marks, at + _DIGEST_BYTES)[0]
    return until


def _live(marks: bytes, now: float) -> bytes:
    starts = range(0, len(marks), _MARK_BYTES)
    return b"".join(marks[at : at + _MARK_BYTES] for at in starts if _expiry(marks, at) > now)
