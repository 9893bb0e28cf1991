"""Addresses as peers and proxies write them, and lists of those that are trusted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeAlias

__all__ = ["UNIX", "AddressList", "address_of", "is_near"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENTRY = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<four>[0-9.]{7,15}))(?::[0-9]{1,5})?", re.ASCII
)


@lru_cache(maxsize=4096)
def address_of(entry: str) -> str | None:
    """Return the address that an ``X-Forwarded-For`` entry or a ``for=`` value names.

    Its port and brackets are dropped, and an IPv4 address written as IPv6 (``::ffff:192.0.2.1``)
    becomes the IPv4 address it is.

    :returns: ``None`` for anything else: ``unknown``, ``_hidden``, a host name, a zone, rubbish.
    """
    if len(entry) > 60 or "%" in entry:
        return None
    found = _ENTRY.fullmatch(entry)
    if found is not None:
        entry = found["six"] or found["four"]
        if found["six"] and ":" not in entry:
            return None
    parsed = _parse(entry)
    return None if parsed is None else str(parsed)


def _parse(text: str) -> Address | None:
    """Return the address in *text*, an IPv4-mapped one as IPv4; None when it is none."""
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped
    return parsed


UNIX = frozenset(("unix", "unix:"))
"""How a list names the peers of a Unix socket."""

_WITHOUT_ADDRESS = frozenset(("", "unix", "unix:", "localhost", "<local>"))
"""What servers call the peer of a Unix socket: waitress ``localhost``, werkzeug ``<local>``."""


def is_near(address: str) -> bool:
    """Return whether *address* cannot be a client's across the internet: that of a Unix socket, or
    a private, loopback or link-local one."""
    if address in _WITHOUT_ADDRESS:
        return True
    parsed = _parse(address)
    return parsed is not None and not parsed.is_global


class AddressList:
    """A list of addresses and networks; ``address in addresses`` tells whether one is listed.

    An IPv4 address written as IPv6 is the IPv4 address it is, on both sides, and an IPv6 zone
    (``%eth0``) does not count. What is no address is never in the list.

    :param entries: ``192.0.2.1``, ``10.0.0.0/8``, ``2001:db8::/32``; ``unix`` or ``unix:`` lists
        the peers of a Unix socket, which have no address.
    :raises ValueError: An entry is none of these; names it.
    """

    CACHED = 4096

    def __init__(self, entries: Iterable[str] = ()) -> None:
        if isinstance(entries, str):
            raise ValueError(f"expected a list of addresses and networks, not the text {entries!r}")
        self.entries = tuple(entries)
        self._unix = not UNIX.isdisjoint(self.entries)
        self._networks = tuple(_network(entry) for entry in self.entries if entry not in UNIX)
        self._find = lru_cache(maxsize=self.CACHED)(self._search)

    def __contains__(self, address: str) -> bool:
        return self._find(address)

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __repr__(self) -> str:
        return f"AddressList({list(self.entries)!r})"

    def _search(self, address: str) -> bool:
        if address in _WITHOUT_ADDRESS:
            return self._unix
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)


def _network(entry: object) -> Network:
    if not isinstance(entry, str):
        raise ValueError(f"an address or a network is a text, not {entry!r}")
    try:
        network = ipaddress.ip_network(entry)
    except ValueError:
        raise ValueError(_wrong(entry)) from None
    if isinstance(network, ipaddress.IPv6Network):
        mapped = network.network_address.ipv4_mapped
        if mapped is not None and network.prefixlen >= 96:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network


def _wrong(entry: str) -> str:
    try:
        loose = ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return f'{entry!r} is neither an IP address, nor a network like 10.0.0.0/8, nor "unix"'
    return f"{entry!r} has bits set behind its prefix; the network is {str(loose)!r}"
