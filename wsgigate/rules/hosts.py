"""Which hosts are meant by a list of names, some of them for all names below."""

from __future__ import annotations

import re
from collections.abc import Iterable

__all__ = ["Hosts", "host_pattern"]

_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|\[[0-9a-f:.]+\]")


def host_pattern(text: str) -> str:
    """Return *text* in lower case and without a trailing dot.

    :raises ValueError: It is neither a host's name nor ``*.`` before one.
    """
    host = text.lower().rstrip(".")
    if not _PATTERN.fullmatch(host):
        raise ValueError(
            f'a host is a name such as "api.example.com" or "*.example.com", got {text!r}'
        )
    return host


class Hosts:
    """A set of hosts; ``host in hosts`` for a host in lower case, without port.

    :param patterns: Names, and ``*.example.com`` for every name below ``example.com``.
    :raises ValueError: One of them is no host, or they are a text instead of several.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        if isinstance(patterns, str):
            raise ValueError(f"expected a list of hosts, not {patterns!r}")
        known = [host_pattern(pattern) for pattern in patterns]
        self._names = frozenset(host for host in known if host[0] != "*")
        self._below = tuple(host[1:] for host in known if host[0] == "*")

    def __contains__(self, host: object) -> bool:
        if not isinstance(host, str) or not host:
            return False
        return host in self._names or (bool(self._below) and host.endswith(self._below))
