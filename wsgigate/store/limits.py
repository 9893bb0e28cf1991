"""What no store takes: keys and values larger than every one of them can keep."""

from __future__ import annotations

__all__ = ["KEY_BYTES", "VALUE_BYTES", "check_value", "encoded"]

KEY_BYTES = 480
VALUE_BYTES = 64 * 1024


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
