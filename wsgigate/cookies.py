"""Cookies as a request has them: text in, text out, what is not asked for left as it is."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["cookie_values", "without_cookies"]


def cookie_values(field: str, name: str, most: int = 4) -> list[str]:
    """Return what the cookies called *name* say, in their order.

    There may be several, of different paths, and not all of them need be the gateway's own.

    :param field: The ``Cookie`` field.
    :param most: How many are returned at most.
    """
    begins = name + "="
    if begins not in field:
        return []
    pairs = [pair.strip(" \t") for pair in field.split(";")]
    return [pair[len(begins) :] for pair in pairs if pair.startswith(begins)][:most]


def without_cookies(field: str, names: Collection[str]) -> str:
    """Return the ``Cookie`` field *field* without the cookies called *names*.

    What is left is as it was, byte for byte; nothing if there are no others.
    """
    kept = [pair for pair in field.split(";") if pair.partition("=")[0].strip(" \t") not in names]
    return ";".join(kept).lstrip(" \t")
