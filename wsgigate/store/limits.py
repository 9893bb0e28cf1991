"""What a store takes: how large a key and a value may be, and which go first when it is full.

Whoever sends requests can make up keys of counters: an address of IPv6, an API key, a claim. What
keeps the gateway right must not depend on how many. So there are three ranks, told by what a key
begins with, and a full store treats each in its own way:

- **vital**: health, circuits, the registry, the deny list, leases, maintenance. How many there are
  is bounded by the configuration and the operator. They have room that nothing else may use, and
  when that is used up, too, counters are removed for them.
- **counters** of callers. There is no room for new ones in a full store; the limiter's
  ``on_store_error`` says what becomes of the request. One that is lost is a caller with a whole
  quota.
- all others, which are the user's own: nothing is removed for them, and they are not removed.
"""

from __future__ import annotations

__all__ = ["COUNTERS", "KEY_BYTES", "VALUE_BYTES", "VITAL", "check_value", "encoded"]

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
