"""Answers as a Redis writes them."""

from __future__ import annotations

from typing import Any

__all__ = ["Error", "written"]


class Error(str):
    """The text of an error."""


def written(value: Any) -> bytes:
    """Return *value* as a server writes it; a text is a simple string unless it is an error."""
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        return b"%b%b\r\n" % (b"-" if isinstance(value, Error) else b"+", value.encode())
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n%b" % (len(value), b"".join(map(written, value)))
