"""Allowed instance addresses: protection against server-side request forgery (SSRF)."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from wsgigate.http.forwarded import AddressList, IPAddress

__all__ = ["PRIVATE", "CombinedDestinations", "Destinations", "Forbidden"]


PRIVATE = (
    *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    *("::1/128", "fc00::/7"),
)
"""Loopback and private addresses (RFC 1918, RFC 4193), allowed by default."""

_NEVER = (
    ("0.0.0.0/8", "an unspecified address"),
    ("::/128", "an unspecified address"),
    ("169.254.0.0/16", "a link-local address, as metadata services have"),
    ("fe80::/10", "a link-local address"),
    ("224.0.0.0/4", "a multicast address"),
    ("ff00::/8", "a multicast address"),
    ("240.0.0.0/4", "a reserved or broadcast address"),
    ("64:ff9b:1::/48", "a translated address (RFC 8215)"),  # the target depends on the network
    ("100.100.100.200/32", "a metadata service"),  # Alibaba
    ("168.63.129.16/32", "a metadata service"),  # Azure
    ("192.0.0.192/32", "a metadata service"),  # Oracle
    ("fd00:ec2::/32", "a metadata service"),  # AWS: ::254, ::23, ::250 and so on
    ("fd20:ce::254/128", "a metadata service"),  # Google
    ("fd00:c1::a9fe:a9fe/128", "a metadata service"),  # Oracle
    ("fd00:42::42/128", "a metadata service"),  # Scaleway
)

_FORBIDDEN = tuple((ipaddress.ip_network(network), why) for network, why in _NEVER)

_SIX_TO_FOUR = ipaddress.IPv6Network("2002::/16")  # RFC 3056

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052

_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1

_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765 section 2.1

_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 section 6.1

Lookup: TypeAlias = Callable[..., Sequence[Any]]


class Forbidden(ValueError):
    """An instance address is not allowed; the message says why, without naming the address."""


class Destinations:
    """The addresses that instances may have.

    Link-local, multicast and unspecified addresses and metadata services are always forbidden, in
    every IPv6 form of an IPv4 address. So are the gateway's own listeners.

    :param allowed_networks: Allowed addresses and networks.
    :param own: The gateway's own listeners, as ``(address, port)``. An unspecified address stands
        for all addresses of this machine.
    :param is_own: Returns whether an address belongs to this machine.
    :param lookup: Resolves a name, with the signature of :func:`socket.getaddrinfo`.
    :raises ValueError: An entry is not an address or network; the message names it.
    """

    def __init__(
        self,
        allowed_networks: Iterable[str] = PRIVATE,
        own: Iterable[tuple[str, int]] = (),
        *,
        is_own: Callable[[IPAddress], bool] | None = None,
        lookup: Lookup = socket.getaddrinfo,
    ) -> None:
        allowed = AddressList(allowed_networks)
        if "unix" in allowed.entries:
            raise ValueError(
                'allowed_networks takes addresses and networks such as "10.0.0.0/8", not sockets'
            )
        self._allowed = allowed
        self._own = tuple((ipaddress.ip_address(host), port) for host, port in own)
        self._own_ports = {port for _, port in self._own}
        self._is_own = is_own or _is_own
        self._lookup = lookup

    @property
    def allowed_networks(self) -> tuple[str, ...]:
        """The allowed addresses and networks."""
        return self._allowed.entries

    def check(self, address: IPAddress, port: int) -> None:
        """Check that an instance may have *address* and *port*.

        :raises Forbidden: It may not.
        """
        for each in effective_addresses(address):
            for network, why in _FORBIDDEN:
                if each in network:
                    raise Forbidden(f"an instance cannot be at {why}")
            if str(each) not in self._allowed:
                raise Forbidden("an instance cannot be outside of the allowed networks")
            if port in self._own_ports and self._is_gateway(each, port):
                raise Forbidden("the gateway itself cannot be an instance")

    def resolve(self, host: str, port: int) -> tuple[IPAddress, ...]:
        """Return the addresses of *host*, all of which are allowed.

        The name may resolve to other addresses later, so each address is checked again when a
        connection is opened.

        :param host: An address, or a name, which is resolved. That may take seconds.
        :raises Forbidden: One of the addresses is not allowed.
        :raises OSError: The name has no address, or its resolution failed.
        """
        try:
            found: list[IPAddress] = [ipaddress.ip_address(host)]
        except ValueError:
            try:
                entries = self._lookup(host, port, type=socket.SOCK_STREAM)
            except UnicodeError as error:
                raise OSError(f"not a name that can be resolved: {error}") from error
            texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in entries)
            found = [ipaddress.ip_address(text) for text in texts]
        if not found:
            raise OSError("the name has no address")
        for address in found:
            self.check(address, port)
        return tuple(found)

    def _is_gateway(self, address: IPAddress, port: int) -> bool:
        return any(
            port == own_port and (address == own or (own.is_unspecified and self._is_own(address)))
            for own, own_port in self._own
        )


class CombinedDestinations:
    """The intersection of several lists of allowed addresses.

    A registry checks an instance against its list when the instance registers. The gateway connects
    later, when a host name may resolve to another address, so the gateway applies the registry's
    list again, together with its own list for that service.

    :param lists: The lists known from the start; each of them must allow an address.
    """

    def __init__(self, *lists: Destinations) -> None:
        self._lists = lists
        self._narrowed: Destinations | None = None
        self._networks: tuple[str, ...] | None = None

    @property
    def networks(self) -> tuple[str, ...] | None:
        """The networks passed to :meth:`narrow` last; ``None`` before."""
        return self._networks

    def narrow(self, networks: Sequence[str]) -> None:
        """Require from now on that an address is in *networks* as well.

        :raises ValueError: An entry is not an address or network.
        """
        given = tuple(networks)
        if given != self._networks:
            self._narrowed = Destinations(given)
            self._networks = given

    def check(self, address: IPAddress, port: int) -> None:
        """Check that an instance may have *address* and *port*.

        :raises Forbidden: One of the lists does not allow it.
        """
        for each in self._lists:
            each.check(address, port)
        if self._narrowed is not None:
            self._narrowed.check(address, port)


def effective_addresses(address: IPAddress) -> tuple[IPAddress, ...]:
    """Return the addresses that packets to *address* finally reach.

    For an IPv6 address that embeds an IPv4 address (mapped, compatible, translated, NAT64, 6to4,
    ISATAP) the result contains the IPv4 address; for Teredo, those of the server and the client.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return (address,)
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    bits = int(address)
    if address in _NAT64 or address in _TRANSLATED:
        return (_four(bits),)
    if address in _COMPATIBLE and bits > 0xFFFF:  # below: ::, ::1 and unassigned addresses
        return (_four(bits),)
    if address in _SIX_TO_FOUR:
        return (_four(bits >> 80),)
    if address.teredo is not None:
        return tuple(address.teredo)
    if bits >> 32 & 0xFFFFFFFF in _ISATAP:
        return (address, _four(bits))
    return (ipaddress.IPv6Address(bits),)  # without a zone


def _four(bits: int) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(bits & 0xFFFFFFFF)


def _is_own(address: IPAddress) -> bool:
    """Return whether *address* is one of this machine's: whether a socket can be bound to it."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind((str(address), 0))
    except OSError:
        return False
    return True
